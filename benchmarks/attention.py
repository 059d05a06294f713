"""dot_product_attention takes at most the time of jax.nn's, and at most 1/16 of its temporaries.

Prints the time over that of jax.nn.dot_product_attention (torch's beside it where it is installed)
and the temporaries of the forward pass, the gradient, the jvp and the three Hessian-vector
products, causal time over non-causal time, what grows with the length n and how fast, calls outside
`jit`, and errors of the gradient in bfloat16 on values with a large common part.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._harness import (
    Claim,
    Ratio,
    Report,
    check_agreement,
    optional_peer,
    ratio,
    temp_bytes,
    time_in_turn,
)
from jaxsoftjac.attention import dot_product_attention

Arrays = tuple[jax.Array, ...]
FIRST_ORDER = ("forward", "gradient", "jvp")
SECOND_ORDER = ("forward over reverse", "reverse over reverse", "reverse over forward")
AT_LENGTH = (*FIRST_ORDER, "forward over reverse")


def modes(attention: Callable) -> dict[str, Callable]:
    """Functions of query, key and value; the tangents are their cosines."""

    def loss(*x):
        return jnp.sum(jnp.sin(attention(*x)))

    def pushed(f):
        return lambda *x: jax.jvp(f, x, jax.tree.map(jnp.cos, x))

    gradient = jax.grad(loss, (0, 1, 2))
    return {
        "forward": attention,
        "gradient": gradient,
        "jvp": pushed(attention),
        "forward over reverse": lambda *x: pushed(gradient)(*x)[1],
        "reverse over reverse": lambda *x: jax.vjp(gradient, *x)[1](jax.tree.map(jnp.cos, x)),
        "reverse over forward": jax.grad(lambda *x: pushed(loss)(*x)[1], (0, 1, 2)),
    }


def operands(n: int, heads: int = 1, features: int = 64, group: int = 1) -> Arrays:
    """Query, key and value; `group` heads of the query share one of the others."""
    keys, counts = jax.random.split(jax.random.key(n), 3), (heads, heads // group, heads // group)
    shapes = [(1, n, count, features) for count in counts]
    return tuple(
        jax.random.normal(k, shape, jnp.float32) for k, shape in zip(keys, shapes, strict=True)
    )


def compiled(attention: Callable, mode: str, x: Arrays) -> jax.stages.Compiled:
    return jax.jit(modes(attention)[mode]).lower(*x).compile()


def torch_call(torch: Any, mode: str, x: Arrays) -> Callable[[], Any] | None:
    """Forward or gradient by torch; its CPU kernel has no other mode."""
    torch.set_num_threads(os.cpu_count() or 1)
    attention = torch.nn.functional.scaled_dot_product_attention
    leaves = [torch.from_numpy(np.array(a).swapaxes(1, 2).copy()).requires_grad_() for a in x]

    def forward():
        with torch.no_grad():
            return attention(*leaves).numpy()

    def gradient():
        return [g.numpy() for g in torch.autograd.grad(attention(*leaves).sin().sum(), leaves)]

    return {"forward": forward, "gradient": gradient}.get(mode)


def agree(name: str, results: Any, expected: Any) -> None:
    for ours, theirs in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        check_agreement(name, ours, np.asarray(theirs), 1e-4)


def over_jax(
    report: Report, n: int, heads: int, names: Sequence[str], rounds: int, torch: Any
) -> tuple[float, float]:
    """Adds a table; the greatest of the ratios of time, and of temporaries."""
    x, rows, slowest, largest = operands(n, heads), [], 0.0, 0.0
    for name in names:
        ours = compiled(dot_product_attention, name, x)
        theirs = compiled(jax.nn.dot_product_attention, name, x)
        agree(f"{name}, n = {n}", ours(*x), theirs(*x))
        calls = {"ours": functools.partial(ours, *x), "jax.nn": functools.partial(theirs, *x)}
        of_torch = torch_call(torch, name, x) if torch else None
        times = time_in_turn(calls | ({"torch": of_torch} if of_torch else {}), rounds)
        against = {peer: ratio(times[peer], times["jax.nn"]) for peer in times}
        megabytes = [(temp_bytes(program) or 0) / 1e6 for program in (ours, theirs)]
        milliseconds = f"{np.median(times['ours']) * 1e3:.1f}"
        cells = [f"{size:.1f}" for size in megabytes]
        rows.append([name, milliseconds, against["ours"], against.get("torch", ""), *cells])
        slowest = max(slowest, against["ours"].median)
        largest = max(largest, megabytes[0] / max(megabytes[1], 1e-6))
    header = ["", "ms", "over jax.nn's", "torch over jax.nn's", "temporaries, MB", "jax.nn's"]
    report.add(f"n = {n}, {heads} heads of 64 features", header, rows)
    return slowest, largest


def causal(
    report: Report, sizes: Sequence[tuple[int, int]], names: Sequence[str], rounds: int
) -> None:
    """Causal time over that of all keys, and over jax.nn's, for lengths and numbers of heads."""
    rows, slowest = [], 0.0
    attentions = {"all keys": dot_product_attention, "jax.nn": jax.nn.dot_product_attention}
    for n, heads in sizes:
        x = operands(n, heads)
        for name in names:
            programs = {
                kind: compiled(functools.partial(f, is_causal=kind == "jax.nn"), name, x)
                for kind, f in attentions.items()
            }
            ours = compiled(functools.partial(dot_product_attention, is_causal=True), name, x)
            programs |= {"causal": ours}
            agree(f"causal {name}, n = {n}", ours(*x), programs["jax.nn"](*x))
            calls = {kind: functools.partial(f, *x) for kind, f in programs.items()}
            times = time_in_turn(calls, rounds)
            over, of_jax = (ratio(times["causal"], times[kind]) for kind in attentions)
            slowest = max(slowest, over.median)
            rows.append([f"n = {n}, {heads} heads, {name}", over, of_jax])
    report.add("Causal time", ["", "over all keys", "over jax.nn's, causal"], rows)
    report.claims.append(Claim("causal over non-causal time", 0.6, slowest))


class Cost(NamedTuple):
    """Of a program, and where they were asked for its ratios over jax.nn's."""

    seconds: float
    megabytes: float
    time_over: Ratio | None = None
    memory_over: float = np.nan


def cost(name: str, x: Arrays, beside_jax: bool, rounds: int) -> Cost:
    attentions: dict[str, Callable] = {"ours": dot_product_attention}
    if beside_jax:
        attentions["jax.nn"] = jax.nn.dot_product_attention
    programs = {peer: compiled(f, name, x) for peer, f in attentions.items()}
    times = time_in_turn({k: functools.partial(p, *x) for k, p in programs.items()}, rounds)
    megabytes = {peer: (temp_bytes(p) or 0) / 1e6 for peer, p in programs.items()}
    own = Cost(float(np.median(times["ours"])), megabytes["ours"])
    if not beside_jax:
        return own
    over = ratio(times["ours"], times["jax.nn"])
    return own._replace(time_over=over, memory_over=megabytes["ours"] / megabytes["jax.nn"])


def at_length(report: Report, sizes: Sequence[int], names: Sequence[str], rounds: int) -> None:
    """Time and temporaries against n: over jax.nn's at the second size, and fitted exponents."""
    rows, worst = [], np.zeros(3)
    for heads, group, features in ((1, 1, 64), (1, 1, 128), (2, 2, 64)):
        for name in names:
            costs = [
                cost(name, operands(n, heads, features, group), n == sizes[1], rounds)
                for n in sizes
            ]
            seconds, megabytes = (np.array([c[i] for c in costs]) for i in (0, 1))
            by_time, by_memory = (
                float(np.polyfit(np.log(sizes), np.log(y), 1)[0]) for y in (seconds, megabytes)
            )
            over, memory = costs[1].time_over, costs[1].memory_over
            worst = np.maximum(worst, [over.median if over else np.nan, memory, by_time])
            cells = [", ".join(f"{1e3 * s:.0f}" for s in seconds), over, f"{by_time:.2f}"]
            cells += [", ".join(f"{m:.1f}" for m in megabytes), f"{memory:.3f}"]
            label = f"{features} features, {heads} for {heads // group}, {name}"
            rows.append([label, *cells, f"{by_memory:.2f}"])
    lengths, at = ", ".join(map(str, sizes)), f"over jax.nn's at {sizes[1]}"
    header = ["features, heads", "ms", at, "exponent", "temporaries, MB", at, "exponent"]
    report.add(f"Against the length, n = {lengths}", header, rows)
    texts = f"all modes and heads, time {at}", f"their temporaries {at}", "exponent of time"
    for text, target, measured in zip(texts, (1.0, 1 / 16, 2.1), worst.tolist(), strict=True):
        report.claims.append(Claim(text, target, measured))


def in_models(report: Report, shapes: Sequence[Sequence[int]], rounds: int) -> None:
    """The gradient at sizes [batch, length, heads, features] of ordinary models."""
    rows = []
    for shape in shapes:
        keys = jax.random.split(jax.random.key(0), 3)
        x = tuple(jax.random.normal(key, shape, jnp.float32) for key in keys)
        calls = {}
        for peer, f in (("ours", dot_product_attention), ("jax.nn", jax.nn.dot_product_attention)):
            calls[peer] = functools.partial(compiled(f, "gradient", x), *x)
        times = time_in_turn(calls, rounds)
        rows.append([str(tuple(shape)), ratio(times["ours"], times["jax.nn"])])
    header = ["batch, length, heads, features", "gradient over jax.nn's"]
    report.add("At sizes of ordinary models", header, rows)


def eager(report: Report, n: int, rounds: int) -> None:
    """Calls outside `jit`, after the first one, which compiles."""
    x, rows, slowest = operands(n, 2), [], 0.0
    for name in ("forward", "gradient"):
        calls = {
            "ours": functools.partial(modes(dot_product_attention)[name], *x),
            "jax.nn": functools.partial(modes(jax.nn.dot_product_attention)[name], *x),
        }
        agree(f"{name} outside jit", calls["ours"](), calls["jax.nn"]())
        times = time_in_turn(calls, rounds)
        over = ratio(times["ours"], times["jax.nn"])
        slowest = max(slowest, over.median)
        rows.append([name, f"{np.median(times['ours']) * 1e3:.1f}", over])
    report.add(f"Outside jit, n = {n}, 2 heads", ["", "ms", "over jax.nn's"], rows)
    report.claims.append(Claim("outside jit, over jax.nn's", 1.3, slowest))


def exact_gradient(q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    """Gradient of ⟨g, attention⟩ of one head, [n, features], in float64."""
    scale = q.shape[-1] ** -0.5
    s = q @ k.T * scale
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d = g @ (v - v.mean(0)).T
    w = p * (d - (p * d).sum(-1, keepdims=True)) * scale
    return [w @ k, w.T @ q, p.T @ g]


def pulled(attention: Callable, g: jax.Array, *operands: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(attention, *operands)[1](g)


def low_precision(report: Report, n: int) -> None:
    """Errors normwise of the gradient in bfloat16, whose rounding alone makes 2⁻⁹ at most."""
    rows, worst = [], 0.0
    attentions = {"jaxsoftjac": dot_product_attention, "jax.nn": jax.nn.dot_product_attention}
    for offset in (0, 8, 64):
        q, k, v = operands(n)
        q, k, v = (a.astype(jnp.bfloat16) for a in (q, k, v + offset))
        g = operands(n + 1)[0][:, :n].astype(jnp.bfloat16)
        exact = exact_gradient(*(np.asarray(a[0, :, 0], np.float64) for a in (q, k, v, g)))
        for name, attention in attentions.items():
            gradient = jax.jit(functools.partial(pulled, attention))(g, q, k, v)
            errors = [
                np.linalg.norm(np.asarray(a[0, :, 0], np.float64) - b) / np.linalg.norm(b)
                for a, b in zip(gradient, exact, strict=True)
            ]
            rows.append([f"common part {offset}, {name}", *(f"{e:.1e}" for e in errors)])
            if name == "jaxsoftjac":
                worst = float(np.max([worst, *map(float, errors)]))
    report.add("Error of the gradient in bfloat16", ["", "query", "key", "value"], rows)
    report.claims.append(Claim("error of the gradient in bfloat16, normwise", 2.0**-8, worst))


def run(quick: bool) -> Report:
    """Accuracy, then time and memory against jax.nn, then what a causal mask saves."""
    report = Report("attention")
    torch = optional_peer("torch", report)
    small, middle, large = (64, 128, 256) if quick else (1024, 4096, 8192)
    rounds = 3 if quick else 5
    low_precision(report, small)
    largest, sizes = 0.0, ((small, 1, 1.3), (small, 8, 1.3), (middle, 1, 1.0), (large, 1, 1.0))
    for n, heads, bar in sizes[-1:] if quick else sizes:
        slowest, largest = over_jax(report, n, heads, FIRST_ORDER, rounds, torch)
        text = f"forward, gradient and jvp over jax.nn's, n = {n}, {heads} heads"
        report.claims.append(Claim(text, bar, slowest))
    report.claims.append(Claim(f"temporaries over jax.nn's, n = {large}", 1 / 16, largest))
    slowest, _ = over_jax(
        report, middle, 1, SECOND_ORDER[:1] if quick else SECOND_ORDER, rounds, None
    )
    text = f"Hessian-vector products over jax.nn's, n = {middle}"
    report.claims.append(Claim(text, 1.0, slowest))
    heads_at = ((large, 1),) if quick else ((large, 1), (middle, 1), (small, 8))
    causal(report, heads_at, FIRST_ORDER[:1] if quick else FIRST_ORDER, rounds)
    lengths, longer = ((32, 64), ("forward",)) if quick else ((1024, 4096, 16384), AT_LENGTH)
    at_length(report, lengths, longer, 3)
    sizes_of_models = ((8, 64, 8, 32), (8, 128, 8, 64), (4, 256, 8, 64), (8, 256, 8, 64))
    in_models(report, ((1, 8, 2, 4),) if quick else sizes_of_models, rounds)
    eager(report, small, rounds)
    return report

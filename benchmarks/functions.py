"""Forward and VJP of softmax cost at most 1.25 times jax.nn.softmax's, and keep their digits.

Prints the time over that of jax.nn.softmax in both settings of `jax_softmax_custom_jvp` (and
torch's), the worst error of the VJP over a grid of gap × offset × K, what each variant of the
product costs, and the bytes that the VJP keeps.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoftjac as jsj
from benchmarks._harness import (
    Claim,
    Report,
    check_agreement,
    geometric_mean,
    optional_peer,
    ratio,
    time_in_turn,
)
from jaxsoftjac._rows import ClassAxes
from jaxsoftjac.diagnostics._rounding import centred, exact_product, textbook, worst_error
from jaxsoftjac.products import pivot_weights, where_positive

SHAPES = [(4096, 1024), (64, 32768), (32, 131072), (65536, 64), (262144, 10)]
QUICK_SHAPES = [(64, 128)]
OURS, DEFAULT, CUSTOM = "jaxsoftjac", "jax.nn", "jax.nn, custom_jvp"


def row_sum(a: jax.Array) -> jax.Array:
    return jnp.sum(a, axis=-1, keepdims=True)


def three_centrings(v: jax.Array, s: jax.Array) -> jax.Array:
    return centred(v - row_sum(s * v), s)


def with_product(product: Callable) -> Callable:
    def forward_and_vjp(x, g):
        e = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
        sigma = e / row_sum(e)
        return sigma, product(g, sigma)

    return forward_and_vjp


def with_vjp(softmax: Callable, custom_jvp: bool = False) -> Callable:
    def forward_and_vjp(x, g):
        with jax.softmax_custom_jvp(custom_jvp):
            sigma, pullback = jax.vjp(softmax, x)
            return sigma, pullback(g)[0]

    return forward_and_vjp


def guarded_textbook(v: jax.Array, s: jax.Array) -> jax.Array:
    return where_positive(textbook(where_positive(v, s), s), s)


def pivot_unguarded(v: jax.Array, s: jax.Array) -> jax.Array:
    e = pivot_weights(s, ClassAxes((-1,)))
    d = v - row_sum(e * v)
    w = s * (d - row_sum(s * d))
    return w - e * row_sum(w)


CONTESTANTS = {
    OURS: with_vjp(jsj.softmax),
    DEFAULT: with_vjp(jax.nn.softmax),
    CUSTOM: with_vjp(jax.nn.softmax, custom_jvp=True),
    "textbook product": with_product(textbook),
    "textbook, guarded": with_product(guarded_textbook),
    "two centrings": with_product(centred),
    "three centrings": with_product(three_centrings),
    "pivot, unguarded": with_product(pivot_unguarded),
    "softmax_vjp": with_product(jsj.softmax_vjp),
}


def with_torch(torch: Any) -> Callable:
    torch.set_num_threads(os.cpu_count() or 1)

    def forward_and_vjp(x, g):
        x = torch.from_numpy(np.array(x)).requires_grad_()
        g = torch.from_numpy(np.array(g))

        def call():
            sigma = torch.softmax(x, -1)
            return sigma.detach().numpy(), torch.autograd.grad(sigma, x, g)[0].numpy()

        return call

    return forward_and_vjp


def accuracy_rows(K: int, gap: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x, v = random.normal(size=(2, 64, K))
    x[:, 0] += gap + (4 if gap else 0)
    return x.astype(np.float32), (v + offset).astype(np.float32)


def equal_modes() -> tuple[np.ndarray, np.ndarray]:
    """Two classes share the row and the vector is the same at both: only the third class counts."""
    x, v = accuracy_rows(3, 0, 1e6)
    x[:, :2] += np.float32(40)
    v[:, 1], v[:, 2] = v[:, 0], v[:, 0] + np.float32(1)
    return x, v


def accuracy(report: Report, calls: dict[str, Callable], gaps: tuple, sizes: tuple) -> None:
    cases = {
        f"K = {K}, gap {gap}": [accuracy_rows(K, gap, offset) for offset in (0.0, 1e3, 1e5)]
        for K in sizes
        for gap in gaps
    }
    cases["K = 3, equal modes"] = [equal_modes()]
    rows, worst = [], dict.fromkeys(calls, 0.0)
    for case, inputs in cases.items():
        exact = [exact_product(*pair) for pair in inputs]
        errors = [
            np.max([worst_error(call(*xv)[1], e) for xv, e in zip(inputs, exact, strict=True)])
            for call in calls.values()
        ]
        rows.append([case, *(f"{error:.0e}" for error in errors)])
        # np.maximum, unlike max, does not lose a NaN
        worst = {n: float(np.maximum(worst[n], e)) for n, e in zip(calls, errors, strict=True)}
    rows.append(["worst", *(f"{worst[name]:.0e}" for name in calls)])
    title = "Error of the VJP, ‖err‖₁/‖Jv‖₁, worst of offsets 0, 1e3, 1e5 (equal modes: 1e6)"
    report.add(title, ["", *calls], rows)
    report.claims.append(Claim("worst relative error of the VJP", 128 * 2.0**-24, worst[OURS]))


def speed(report: Report, shapes: list, rounds: int, torch: Any) -> None:
    names = [*CONTESTANTS, *(["torch"] if torch else []), "add of the same bytes"]
    over_default: dict[str, list] = {name: [] for name in names}
    over_custom = []
    rows = []
    for shape in shapes:
        keys = jax.random.split(jax.random.key(0))
        x = 3 * jax.random.normal(keys[0], shape, jnp.float32)
        g = jax.random.normal(keys[1], shape, jnp.float32)
        expected = exact_product(np.asarray(x[:2]), np.asarray(g[:2]))
        calls: dict[str, Callable] = {}
        for name, function in CONTESTANTS.items():
            calls[name] = functools.partial(jax.jit(function), x, g)
            check_agreement(name, calls[name]()[1][:2], expected, 1e-2)
        if torch:
            calls["torch"] = with_torch(torch)(x, g)
        # Logits and cotangent are read, σ and gradient written: two reads and two writes.
        calls["add of the same bytes"] = functools.partial(
            jax.jit(lambda x, g: (x + g, x - g)), x, g
        )
        times = time_in_turn(calls, rounds)
        ratios = {name: ratio(times[name], times[DEFAULT]) for name in names}
        for name in names:
            over_default[name].append(ratios[name].median)
        over_custom.append(ratio(times[OURS], times[CUSTOM]).median)
        rows.append([str(shape), *(str(ratios[name]) for name in names if name != DEFAULT)])
    others = [name for name in names if name != DEFAULT]
    means = {name: geometric_mean(over_default[name]) for name in names}
    rows.append(["geometric mean", *(f"{means[name]:.2f}" for name in others)])
    report.add("Time of forward and VJP over jax.nn.softmax's, [quartiles]", ["", *others], rows)
    report.claims += [
        Claim("softmax forward + VJP over jax.nn's", 1.25, means[OURS]),
        Claim("the same, jax_softmax_custom_jvp on", 1.25, geometric_mean(over_custom)),
    ]


def residuals(report: Report) -> None:
    def kept(softmax: Callable, dtype: str, custom_jvp: bool = False) -> str:
        x = jnp.ones((8, 128), dtype)
        with jax.softmax_custom_jvp(custom_jvp):
            leaves = jax.tree.leaves(jax.vjp(softmax, x)[1])
        large = [a for a in leaves if a.size >= x.size]
        return f"{len(large)} array(s), {sum(a.nbytes for a in leaves) / x.size:.2f} B"

    rows = [
        [
            dtype,
            kept(jsj.softmax, dtype),
            kept(jax.nn.softmax, dtype),
            kept(jax.nn.softmax, dtype, custom_jvp=True),
        ]
        for dtype in ("float32", "bfloat16")
    ]
    report.add("Kept for the VJP, bytes per logit (K = 128)", ["", OURS, DEFAULT, CUSTOM], rows)


def run(quick: bool) -> Report:
    """Accuracy, then speed, then memory."""
    report = Report("functions")
    torch = optional_peer("torch", report)
    calls: dict[str, Callable] = {name: jax.jit(f) for name, f in CONTESTANTS.items()}
    if torch:
        calls["torch"] = lambda x, v: with_torch(torch)(x, v)()
    accuracy(report, calls, *(((0, 20), (16,)) if quick else ((0, 8, 14, 20, 30), (16, 1024))))
    speed(report, QUICK_SHAPES if quick else SHAPES, 3 if quick else 31, torch)
    residuals(report)
    return report

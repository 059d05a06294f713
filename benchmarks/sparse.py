"""sparsemax and 1.5-entmax find their threshold in less time than a sort, to all digits.

Prints the time of forward and VJP over the sort-based formulas under autodiff, the VJP alone over
that of softmax, the error of either way against long double, and what the operator takes of the
time of dense algebra.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoftjac as jsj
from benchmarks._harness import (
    Claim,
    Report,
    check_agreement,
    geometric_mean,
    ratio,
    time_in_turn,
)

SHAPES = [(4096, 64), (1024, 1024), (32, 32768)]
DAMPING = 1e-2


def sorted_sparsemax(x: jax.Array) -> jax.Array:
    """Martins and Astudillo's algorithm 1."""
    ordered = -jnp.sort(-x, axis=-1)
    excess = jnp.cumsum(ordered, axis=-1) - 1
    count = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)[None]
    size = jnp.sum(count * ordered > excess, axis=-1, keepdims=True)
    tau = jnp.take_along_axis(excess, size - 1, axis=-1) / size.astype(x.dtype)
    return jnp.maximum(x - tau, 0)


def sorted_entmax(x: jax.Array) -> jax.Array:
    """Peters, Niculae and Martins' algorithm 2, α = 1.5."""
    x = (x - jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))) / 2
    ordered = -jnp.sort(-x, axis=-1)
    count = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)[None]
    mean = jnp.cumsum(ordered, axis=-1) / count
    spread = jnp.cumsum(ordered**2, axis=-1) - count * mean**2
    square = (1 - spread) / count
    is_positive = square > 0
    tau = mean - jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, square, 1)), 0)
    size = jnp.sum(tau <= ordered, axis=-1, keepdims=True)
    return jnp.maximum(x - jnp.take_along_axis(tau, size - 1, axis=-1), 0) ** 2


MEMBERS: dict[str, tuple[float, Callable, Callable]] = {
    "sparsemax": (2.0, jsj.sparsemax, sorted_sparsemax),
    "1.5-entmax": (1.5, jsj.entmax, sorted_entmax),
}


def reference(x: jax.Array, v: jax.Array, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """P by halves and its VJP, in long double."""
    beta = np.longdouble(alpha - 1)
    d = np.asarray(x, np.longdouble)
    d = beta * (d - d.max(-1, keepdims=True))
    low, high = np.zeros_like(d[:, :1]), np.ones_like(d[:, :1])
    for _ in range(80):
        t = (low + high) / 2
        is_low = (np.maximum(d + t, 0) ** (1 / beta)).sum(-1, keepdims=True) < 1
        low, high = np.where(is_low, t, low), np.where(is_low, high, t)
    p = np.maximum(d + low, 0) ** (1 / beta)
    s = np.where(p > 0, np.where(p > 0, p, 1) ** (1 - beta), 0)
    g = np.asarray(v, np.longdouble)
    return p, s * (g - (s * g).sum(-1, keepdims=True) / s.sum(-1, keepdims=True))


def forward_and_vjp(function: Callable) -> Callable:
    def both(x, v):
        p, pullback = jax.vjp(function, x)
        return p, pullback(v)[0]

    return jax.jit(both)


def inputs(shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    x, v = jax.random.normal(jax.random.key(0), (2, *shape), jnp.float32)
    return x, v


def speed(report: Report, shapes: list[tuple[int, int]], rounds: int) -> None:
    rows, over_sort, over_softmax = [], {n: [] for n in MEMBERS}, {n: [] for n in MEMBERS}
    for shape in shapes:
        x, v = inputs(shape)
        functions = {"softmax": jsj.softmax}
        for name, (alpha, ours, by_sort) in MEMBERS.items():
            functions |= {name: ours, f"{name}, sorted": by_sort}
            p, pulled = reference(x[:2], v[:2], alpha)
            for function in (ours, by_sort):
                found = forward_and_vjp(function)(x[:2], v[:2])
                check_agreement(name, found[0], p, 1e-3)
                check_agreement(f"VJP of {name}", found[1], pulled, 1e-3)
        calls = {name: partial(forward_and_vjp(f), x, v) for name, f in functions.items()}
        for name in ("softmax", *MEMBERS):
            pullback = jax.vjp(functions[name], x)[1]
            calls[f"VJP of {name}"] = partial(jax.jit(lambda f, v: f(v)[0]), pullback, v)
        times = time_in_turn(calls, rounds)
        cells = []
        for name in MEMBERS:
            faster = ratio(times[name], times[f"{name}, sorted"])
            vjp = ratio(times[f"VJP of {name}"], times["VJP of softmax"])
            over_sort[name].append(faster.median)
            over_softmax[name].append(vjp.median)
            cells += [str(faster), str(ratio(times[name], times["softmax"])), str(vjp)]
        rows.append([str(shape), *cells])
    kinds = "over sorted", "over softmax", "VJP over softmax's"
    header = ["", *(f"{name} {kind}" for name in MEMBERS for kind in kinds)]
    report.add("Time of forward and VJP, and of the VJP alone, [quartiles]", header, rows)
    for name in MEMBERS:
        mean = geometric_mean(over_sort[name])
        report.claims.append(Claim(f"{name} forward + VJP over the sort-based one", 1.0, mean))
        mean = geometric_mean(over_softmax[name])
        report.claims.append(Claim(f"VJP of {name} over softmax's", 1.2, mean))


def accuracy(report: Report, sizes: list[int]) -> None:
    """The largest error of p, in units of float32's ε, on rows of normal logits plus 100."""
    table, worst = [], 0.0
    for K in sizes:
        x, v = inputs((32, K))
        x = x + 100
        errors = []
        for alpha, *functions in MEMBERS.values():
            exact = reference(x, v, alpha)[0]
            for function in functions:
                error = np.abs(np.asarray(jax.jit(function)(x), np.longdouble) - exact).max()
                errors.append(float(error) / 2.0**-23)
        worst = max(worst, errors[0], errors[2])
        table.append([f"K = {K}", *(f"{error:.2g}" for error in errors)])
    header = ["", *(f"{name}{kind}" for name in MEMBERS for kind in ("", ", sorted"))]
    report.add("Largest error of p, in ε = 2⁻²³", header, table)
    report.claims.append(Claim("largest error of p, in ε", 4.0, worst))


def operators(report: Report, K: int, rounds: int) -> None:
    """Products and solves with J of 1.5-entmax, against dense algebra with the matrix it is."""
    x, v = inputs((8, K))
    J = jax.jit(jsj.EntmaxJacobian.from_logits)(x)
    eye = DAMPING * jnp.eye(K)[None]
    methods: dict[str, tuple[Callable, Callable]] = {
        "mv": (lambda J, v: J.mv(v), lambda J, v: (J.as_matrix() @ v[..., None])[..., 0]),
        "solve": (
            lambda J, v: J.solve(v, DAMPING),
            lambda J, v: jnp.linalg.solve(J.as_matrix() + eye, v[..., None])[..., 0],
        ),
        "eigvalsh": (lambda J, v: J.eigvalsh(), lambda J, v: jnp.linalg.eigvalsh(J.as_matrix())),
    }
    table = []
    for name, (ours, dense) in methods.items():
        programs = jax.jit(ours), jax.jit(dense)
        expected = np.asarray(programs[1](J, v), np.float64)
        if name == "solve":  # outside of the support ours is 0 by definition
            expected = np.where(J.softmax.sigma > 0, expected, 0)
        check_agreement(name, programs[0](J, v), expected, 1e-3)
        calls = {"ours": partial(programs[0], J, v), "dense": partial(programs[1], J, v)}
        times = time_in_turn(calls, rounds)
        faster = ratio(times["dense"], times["ours"])
        table.append([name, f"{1e3 * np.median(times['ours']):.3g}", str(faster)])
        text = f"dense over {name} of EntmaxJacobian, 8 rows of {K}"
        report.claims.append(Claim(text, 10, faster.median, at_most=False))
    report.add(f"Time on 8 rows of K = {K}", ["", "ours, ms", "dense over ours"], table)


def run(quick: bool) -> Report:
    """Speed, accuracy, and the operator."""
    report = Report("sparse")
    speed(report, [(16, 32)] if quick else SHAPES, 3 if quick else 21)
    accuracy(report, [16] if quick else [16, 1024, 32768])
    operators(report, *((32, 1) if quick else (1000, 7)))
    return report

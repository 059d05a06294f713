"""SoftmaxJacobian does in O(K) or O(K²) what the dense matrix does in O(K²) or O(K³).

Prints the time of the dense way over ours: the spectrum on 8 rows of 1000 classes, from the matrix;
products and solves on rows of 4096, from σ; and how ours grow with K. What is timed is first
compared with float64. On one row the product takes little more than calling any compiled program,
whose time is printed beside it; hence 8 rows for the claim.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._harness import Claim, Report, check_agreement, ratio, time_in_turn
from jaxsoftjac.operators import SoftmaxJacobian

DAMPING = 1e-2
SPECTRUM: dict[str, tuple[Callable, Callable, float]] = {
    "eigh": (SoftmaxJacobian.eigh, jnp.linalg.eigh, 5),
    "eigvalsh": (SoftmaxJacobian.eigvalsh, jnp.linalg.eigvalsh, 20),
    "spectral_norm": (
        SoftmaxJacobian.spectral_norm,
        lambda matrix: jnp.linalg.eigvalsh(matrix)[..., -1],
        100,
    ),
}
PRODUCTS: dict[str, tuple[Callable, Callable]] = {
    "mv": (
        lambda sigma, v: SoftmaxJacobian(sigma).mv(v),
        lambda sigma, v: dense(sigma) @ v,
    ),
    "pinv_mv": (
        lambda sigma, v: SoftmaxJacobian(sigma).pinv_mv(v),
        lambda sigma, v: jnp.linalg.pinv(dense(sigma), rtol=1e-5, hermitian=True) @ v,
    ),
    "solve": (
        lambda sigma, v: SoftmaxJacobian(sigma).solve(v, DAMPING),
        lambda sigma, v: jnp.linalg.solve(dense(sigma) + DAMPING * jnp.eye(v.size), v),
    ),
}


def dense(sigma: jax.Array) -> jax.Array:
    return jnp.diag(sigma) - sigma[:, None] * sigma[None, :]


def operators(rows: int, K: int) -> tuple[SoftmaxJacobian, jax.Array, jax.Array, np.ndarray]:
    """J of normal logits, its dense matrix, a vector, and the matrix in float64."""
    x = jax.random.normal(jax.random.key(0), (rows, K), jnp.float32)
    v = jax.random.normal(jax.random.key(1), (rows, K), jnp.float32)
    J = jax.jit(SoftmaxJacobian.from_logits)(x)
    z = np.asarray(x, np.float64)
    sigma = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    exact = sigma[..., None] * np.eye(K) - sigma[..., :, None] * sigma[..., None, :]
    return J, J.as_matrix(), v, exact


def spectrum(report: Report, rows: int, K: int, rounds: int) -> None:
    J, matrix, _, exact = operators(rows, K)
    expected = np.linalg.eigvalsh(exact)
    table = []
    for name, (ours, theirs, target) in SPECTRUM.items():
        programs = jax.jit(ours), jax.jit(theirs)
        results = programs[0](J), programs[1](matrix)
        for result in results:
            if name == "eigh":
                values, V = map(np.asarray, result)
                check_agreement("eigh", values, expected, 1e-5)
                rebuilt = np.einsum("nij,nj,nkj->nik", V, values, V, optimize=True)
                check_agreement("its vectors", rebuilt, exact, 1e-3)
            else:
                reference = expected if name == "eigvalsh" else expected[:, -1]
                check_agreement(name, result, reference, 1e-5)
        calls = {"ours": lambda p=programs: p[0](J), "dense": lambda p=programs: p[1](matrix)}
        measured = time_in_turn(calls, rounds)
        faster = ratio(measured["dense"], measured["ours"])
        table.append([name, f"{1e3 * np.median(measured['ours']):.3g}", str(faster)])
        text = f"jnp.linalg over {name}, {rows} rows of {K}"
        report.claims.append(Claim(text, target, faster.median, at_most=False))
    header = ["", "ours, ms", "dense over ours"]
    report.add(f"Time on {rows} rows of K = {K}, [quartiles]", header, table)


def products(report: Report, K: int, rounds: int) -> None:
    J, _, v, exact = operators(1, K)
    constant = np.full((K, K), 1 / K)
    w = np.asarray(v[0], np.float64)
    references = {
        "mv": exact[0] @ w,
        "pinv_mv": np.linalg.solve(exact[0] + constant, w - w.mean()),
        "solve": np.linalg.solve(exact[0] + DAMPING * np.eye(K), w),
    }
    table = []
    for name, functions in PRODUCTS.items():
        fast, slow = (jax.jit(jax.vmap(function)) for function in functions)
        check_agreement(name, fast(J.sigma, v)[0], references[name], 1e-5)
        check_agreement(f"dense {name}", slow(J.sigma, v)[0], references[name], 1e-2)
        faster = []
        for rows in (1, 8) if name == "mv" else (1,):
            arguments = jnp.tile(J.sigma, (rows, 1)), jnp.tile(v, (rows, 1))
            programs = {"ours": fast, "dense": slow, "sum": jax.jit(jnp.add)}
            calls = {name: partial(program, *arguments) for name, program in programs.items()}
            measured = time_in_turn(calls, rounds if name == "mv" else 1)
            faster.append(ratio(measured["dense"], measured["ours"]))
            times = [f"{1e6 * np.median(measured[n]):.3g}" for n in ("ours", "sum")]
            table.append([f"{name}, {rows} row{'s'[: rows > 1]}", *times, str(faster[-1])])
        text = f"dense over {name}, rows of {K}"
        report.claims.append(Claim(text, 1000, faster[-1].median, at_most=False))
    header = ["", "ours, µs", "σ + v, µs", "dense over ours"]
    report.add(f"Time at K = {K}, [quartiles]", header, table)


def growth(report: Report, sizes: list[int], rounds: int) -> None:
    """Time per class, which linear growth keeps constant once the call itself is paid."""
    methods = {name: jax.jit(ours) for name, (ours, _) in PRODUCTS.items()}
    methods["sqrt_mv"] = jax.jit(lambda sigma, v: SoftmaxJacobian(sigma).sqrt_mv(v))
    methods["spectral_norm"] = jax.jit(lambda sigma, v: SoftmaxJacobian(sigma).spectral_norm())
    table, per_class = [], {}
    for K in sizes:
        x = jax.random.normal(jax.random.key(K), (2, K), jnp.float32)
        sigma, v = jax.nn.softmax(x[0]), x[1]
        calls = {name: lambda f=f, a=sigma, b=v: f(a, b) for name, f in methods.items()}
        measured = time_in_turn(calls, rounds)
        medians = {name: float(np.median(times)) for name, times in measured.items()}
        per_class[K] = {name: median / K for name, median in medians.items()}
        table.append([f"{K}", *(f"{1e6 * median:.3g}" for median in medians.values())])
    report.add("Time against K, µs", ["K", *methods], table)
    largest, smaller = sizes[-1], sizes[-2]
    for name in PRODUCTS:
        text = f"{name}: time per class at K = {largest} over that at {smaller}"
        report.claims.append(Claim(text, 2.0, per_class[largest][name] / per_class[smaller][name]))


def run(quick: bool) -> Report:
    """The spectrum, products and solves against dense algebra, and growth with K."""
    report = Report("operators")
    spectrum(report, *((2, 50, 1) if quick else (8, 1000, 7)))
    products(report, *((64, 1) if quick else (4096, 7)))
    growth(report, [100, 1000] if quick else [100, 1000, 10_000, 100_000, 1_000_000], 3)
    return report

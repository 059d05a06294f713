"""The dense Jacobian is at least 3 times faster than vmap(jacrev(jax.nn.softmax)).

Prints the time of each peer over ours, and the worst relative error of the diagonal on a row with
one class 30 nats ahead.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoftjac as jsj
from benchmarks._harness import Claim, Report, check_agreement, optional_peer, ratio, time_in_turn
from jaxsoftjac.diagnostics._rounding import exact_softmax

PEER = "vmap(jacrev(jax.nn))"
JACOBIANS = {
    "jaxsoftjac": jsj.softmax_jacobian,
    PEER: jax.vmap(jax.jacrev(jax.nn.softmax)),
    "vmap(jacfwd(jax.nn))": jax.vmap(jax.jacfwd(jax.nn.softmax)),
}
HESSIANS = {
    "jaxsoftjac": jsj.softmax_hessian,
    "vmap(jacfwd(jacrev(jax.nn)))": jax.vmap(jax.jacfwd(jax.jacrev(jax.nn.softmax))),
}


def reference(x: np.ndarray, order: int) -> np.ndarray:
    """∂σ or ∂²σ of rows in long double, by the formulas."""
    s, _, _ = exact_softmax(x)
    log_jacobian = np.eye(x.shape[-1]) - s[:, None, :]
    jacobian = s[:, :, None] * log_jacobian
    if order == 1:
        return jacobian.astype(np.float64)
    squares = log_jacobian[:, :, :, None] * log_jacobian[:, :, None, :]
    return (s[:, :, None, None] * (squares - jacobian[:, None])).astype(np.float64)


def _write(x: jax.Array, order: int) -> jax.Array:
    return jnp.broadcast_to(x[..., *(None,) * order], x.shape + x.shape[1:] * order) + x[0, 0]


def compare(report: Report, shape: tuple[int, int], order: int, rounds: int, torch: Any) -> float:
    """Prints one row per contestant; gives the first peer's time over ours."""
    functions = JACOBIANS if order == 1 else HESSIANS
    x = 2 * jax.random.normal(jax.random.key(0), shape, jnp.float32)
    confident = jnp.zeros((1, shape[1]), jnp.float32).at[0, 0].set(30)
    others = (shape[1] - 1) * np.exp(-30.0)
    top_entry = others / (1 + others) ** 2
    calls, diagonal_errors = {}, {}
    for name, function in functions.items():
        compiled = jax.jit(function)
        check_agreement(name, compiled(x), reference(np.asarray(x), order), 1e-4)
        if order == 1:
            off = abs(float(compiled(confident)[0, 0, 0]) / top_entry - 1)
            diagonal_errors[name] = f"{off:.0e}"
        calls[name] = functools.partial(compiled, x)
    if torch and order == 1:
        jacobian = torch.func.vmap(torch.func.jacrev(functools.partial(torch.softmax, dim=-1)))
        tensor = torch.from_numpy(np.array(x))
        calls["torch vmap(jacrev)"] = lambda: jacobian(tensor).numpy()
        top = jacobian(torch.from_numpy(np.array(confident)))[0, 0, 0]
        diagonal_errors["torch vmap(jacrev)"] = f"{abs(float(top) / top_entry - 1):.0e}"
    # What any of them must do at the least: write the result.
    calls["writing it"] = functools.partial(jax.jit(_write, static_argnums=1), x, order)
    times = time_in_turn(calls, rounds)
    ratios = {name: ratio(times[name], times["jaxsoftjac"]) for name in calls}
    rows = [[name, ratios[name], diagonal_errors.get(name, "")] for name in calls]
    kind = "Jacobian" if order == 1 else "Hessian"
    report.add(f"{kind} at {shape}", ["", "time over ours", "error of top diagonal"], rows)
    return list(ratios.values())[1].median


def run(quick: bool) -> Report:
    """Jacobians at two shapes, the Hessian at one."""
    report = Report("dense")
    torch = optional_peer("torch", report)
    rounds = 3 if quick else 31
    for shape in [(8, 16)] if quick else [(256, 128), (16, 1000)]:
        faster = compare(report, shape, 1, rounds, torch)
        text = f"softmax_jacobian at {shape}: times faster than {PEER}"
        report.claims.append(Claim(text, 3, faster, at_most=False))
    compare(report, (2, 8) if quick else (16, 64), 2, rounds, torch)
    return report

"""What `jaxsoftjac accuracy` reports: the float32 errors of each library on this machine.

>>> [name for name, quantity in QUANTITIES.items() if quantity.error is worst_error]
['J·v', 'D²σ[v, v]']
"""

import importlib
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac.cli._cells import spell, table
from jaxsoftjac.cli._inspect_flow import plain
from jaxsoftjac.dense import softmax_jacobian
from jaxsoftjac.diagnostics._rounding import exact_product, exact_softmax, random_rows, worst_error
from jaxsoftjac.functions import log_softmax, softmax
from jaxsoftjac.losses import cross_entropy

_U = 2.0**-24  # unit roundoff of float32
_K = 32
_OURS, _JAX, _TORCH = "jaxsoftjac", "jax.nn", "torch"

Function = Callable[[Any, Any], Any]  # of logits and a vector


class Quantity(NamedTuple):
    """One line of the table: what is measured, where, and what is promised of it.

    Attributes:
        exact: the result in long double, of logits and vectors.
        error: of a result against the exact one.
        promise: bound of the error in units of 2⁻²⁴, of the spread of the logits in nats.
        cases: pairs of gap in nats and offset of the vector.
    """

    exact: Function
    error: Callable[[Any, np.ndarray], float]
    promise: Callable[[float], float]
    cases: tuple[tuple[float, float], ...]


def _worst_entry(found: Any, exact: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(found, np.longdouble) / exact - 1)))


def _exact_gradient(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    sigma, _, complement = exact_softmax(x)
    sigma[:, 0] = -complement[:, 0]
    return sigma


def _exact_second(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    sigma, _, _ = exact_softmax(x)
    v = v.astype(np.longdouble) - v[:, :1]
    return exact_product(x, (v - (sigma * v).sum(-1, keepdims=True)) ** 2)


QUANTITIES = {
    "σ": Quantity(
        lambda x, v: exact_softmax(x)[0], _worst_entry, lambda s: s + 8 + _K, ((0, 0), (40, 0))
    ),
    "log σ": Quantity(
        lambda x, v: exact_softmax(x)[1], _worst_entry, lambda s: s + 16, ((0, 0), (40, 0))
    ),
    "σᵢ(1 − σᵢ)": Quantity(
        lambda x, v: exact_softmax(x)[0] * exact_softmax(x)[2],
        _worst_entry,
        lambda s: 2 * (s + 8 + _K),
        ((0, 0), (40, 0)),
    ),
    "J·v": Quantity(
        exact_product,
        worst_error,
        lambda s: 128 + s + 8 + _K,
        ((0, 0), (20, 0), (0, 1e5), (20, 1e5)),
    ),
    "D²σ[v, v]": Quantity(
        _exact_second, worst_error, lambda s: 128 + s + 8 + _K, ((0, 0), (0, 1e3), (20, 1e3))
    ),
    "−log σ_c": Quantity(
        lambda x, v: -exact_softmax(x)[1][:, 0],
        _worst_entry,
        lambda s: s + 16,
        ((0, 0), (10, 0), (20, 0), (40, 0)),
    ),
    "σ − y": Quantity(
        _exact_gradient, _worst_entry, lambda s: s + 16, ((0, 0), (10, 0), (20, 0), (40, 0))
    ),
}


def _jax_functions(softmax: Callable, log_softmax: Callable, loss: Callable) -> dict[str, Function]:
    def derivative(x: jax.Array, v: jax.Array) -> jax.Array:
        return jax.jvp(softmax, (x,), (v,))[1]

    return {
        "σ": lambda x, v: softmax(x),
        "log σ": lambda x, v: log_softmax(x),
        "σᵢ(1 − σᵢ)": lambda x, v: jax.vmap(lambda x: jnp.diag(jax.jacrev(softmax)(x)))(x),
        "J·v": lambda x, v: jax.vjp(softmax, x)[1](v)[0],
        "D²σ[v, v]": lambda x, v: jax.jvp(lambda x: derivative(x, v), (x,), (v,))[1],
        "−log σ_c": lambda x, v: loss(x),
        "σ − y": lambda x, v: jax.grad(lambda x: jnp.sum(loss(x)))(x),
    }


def _libraries() -> dict[str, dict[str, Function]]:
    ours = _jax_functions(softmax, log_softmax, lambda x: cross_entropy(x, jnp.int32(0)))
    ours["σᵢ(1 − σᵢ)"] = lambda x, v: jnp.diagonal(softmax_jacobian(x), axis1=-2, axis2=-1)
    theirs = _jax_functions(
        jax.nn.softmax, jax.nn.log_softmax, lambda x: -jax.nn.log_softmax(x)[..., 0]
    )
    compiled = {
        library: {name: jax.jit(function) for name, function in functions.items()}
        for library, functions in ((_OURS, ours), (_JAX, theirs))
    }
    return compiled | _torch_functions()


def _torch_functions() -> dict[str, dict[str, Function]]:
    """Those of torch, or none where it is not installed."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return {}

    def of_numpy(function: Callable) -> Function:
        return lambda x, v: function(torch.from_numpy(x), torch.from_numpy(v)).numpy()

    def softmax(x: Any) -> Any:
        return torch.softmax(x, -1)

    def loss(x: Any) -> Any:
        return -torch.log_softmax(x, -1)[..., 0]

    def product(x: Any, v: Any) -> Any:
        return torch.func.vjp(softmax, x)[1](v)[0]

    functions = {
        "σ": lambda x, v: softmax(x),
        "log σ": lambda x, v: torch.log_softmax(x, -1),
        "σᵢ(1 − σᵢ)": lambda x, v: torch.func.vmap(torch.func.jacrev(softmax))(x).diagonal(0, 1, 2),
        "J·v": product,
        "D²σ[v, v]": lambda x, v: torch.func.vjp(lambda x: product(x, v), x)[1](v)[0],  # symmetric
        "−log σ_c": lambda x, v: loss(x),
        "σ − y": lambda x, v: torch.func.grad(lambda x: loss(x).sum())(x),
    }
    return {_TORCH: {name: of_numpy(function) for name, function in functions.items()}}


def accuracy_report(*, rows: int = 64) -> dict:
    """The worst relative errors over random rows, by entry or in the 1-norm, and what is promised.

    Args:
        rows: how many random rows of 32 logits each error is the worst of.

    Returns:
        A dictionary of numbers, strings, lists and dictionaries, fit for strict JSON.
    """
    libraries, cases = _libraries(), []
    for name, quantity in QUANTITIES.items():
        for gap, offset in quantity.cases:
            x, v = random_rows(gap, offset, K=_K, rows=rows)
            exact = quantity.exact(x, v)
            errors = {
                library: quantity.error(functions[name](x, v), exact)
                for library, functions in libraries.items()
            }
            promise = _U * quantity.promise(float(np.ptp(x, axis=1).max()))
            case = {"quantity": name, "gap": gap, "offset": offset, "promise": promise}
            case |= {"holds": errors[_OURS] <= promise}
            cases.append(case | {"errors": {k: plain(error) for k, error in errors.items()}})
    report = {
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__},
        "reference": f"long double, {np.finfo(np.longdouble).nmant + 1} bits",
        "rows": rows,
        "K": _K,
        "cases": cases,
        "all_hold": all(case["holds"] for case in cases),
    }
    if _TORCH in libraries:
        report["versions"]["torch"] = sys.modules["torch"].__version__
    return report


def accuracy_text(report: dict, *, encoding: str = "utf-8") -> str:
    """The report as a table; errors above the promise of jaxsoftjac are marked with a star."""
    libraries = list(report["cases"][0]["errors"])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    rows = [("quantity", "gap", "offset", *libraries, "promised")]
    for case in report["cases"]:
        errors = [_cell(case["errors"][library], case["promise"]) for library in libraries]
        place = case["quantity"], f"{case['gap']:g}", f"{case['offset']:g}"
        rows.append((*place, *errors, _power(case["promise"])))
    lines = [
        f"float32 on {report['device']}, {versions}; reference: {report['reference']}",
        *textwrap.wrap(
            f"Worst relative error over {report['rows']} rows of K = {report['K']} logits, whose "
            "class c = 0 is `gap` nats ahead; v is normal around `offset`. J·v and D²σ by "
            "‖err‖₁/‖exact‖₁, the others entry by entry. A star: above what jaxsoftjac promises "
            "for its own.",
            80,
        ),
        "",
        *table(rows, encoding),
        "",
        "All promises hold." if report["all_hold"] else "A promise of jaxsoftjac is not kept.",
    ]
    return spell("\n".join(lines), encoding)


def _cell(error: float | None, promise: float) -> str:
    if error is None:
        return "not finite *"
    return _power(error) + " *" * (error > promise)


def _power(error: float) -> str:
    """One digit and a power of ten, with the minus sign of the formulas."""
    return f"{error:.0e}".replace("-", "−")

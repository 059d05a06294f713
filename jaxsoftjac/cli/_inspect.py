"""What `jaxsoftjac inspect` reports: the properties of J at each row of logits.

The report is a dictionary fit for strict JSON, in which what is not finite is None. Files of any
length are read and measured in chunks, so that memory does not grow with the number of rows.

>>> from jaxsoftjac.cli._logits import numbers
>>> report = inspect_logits(numbers(["2.0", "1.0"], name="example"))
>>> report["K"], report["all_hold"]
(2, True)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac.cli._chunks import Measurements, measure_rows
from jaxsoftjac.cli._errors import InputError
from jaxsoftjac.cli._inspect_flow import flow_report, plain, spectrum_report, summary
from jaxsoftjac.cli._judgement import judgement
from jaxsoftjac.cli._logits import Logits
from jaxsoftjac.cli._pictures import flows_of, save_pictures, sweep_of
from jaxsoftjac.dense import jacobian_block, softmax_jacobian
from jaxsoftjac.diagnostics import (
    gradient_flow,
    probe_jacobian_properties,
    verify_jacobian_properties,
)
from jaxsoftjac.functions import softmax
from jaxsoftjac.operators import EntmaxJacobian
from jaxsoftjac.plots import (
    plot_gradient_flow,
    plot_jacobian,
    plot_spectrum,
    plot_temperature_sweep,
)
from jaxsoftjac.products import softmax_vjp
from jaxsoftjac.sparse import entmax

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DENSE_LIMIT = 64  # widest row whose J is formed and diagonalised
_FORMED_LIMIT = 2048  # widest row whose VJP is also taken with the full J


def inspect_logits(
    logits: Logits,
    *,
    row: int | None = None,
    alpha: float = 1.0,
    dtype: str = "float32",
    temperature: float = 1.0,
    vector: Sequence[float] | None = None,
    picture: str | None = None,
    flow: bool = False,
    spectrum: bool = False,
    sweep: Sequence[float] = (),
) -> dict:
    """The report on one row in full, or on all rows in summary.

    Rows of at most 64 logits are verified densely, O(K³) each; wider ones by matrix-free probes,
    O(K) each. Rows are read and measured in chunks of a few million elements.

    Args:
        logits: N rows of K logits.
        row: The one row to inspect; None for all, or for the only one.
        alpha: α in [1, 4], of the α-entmax whose J it is; 1 is softmax.
        dtype: Name of the dtype to compute in.
        temperature: Divides the logits.
        vector: K values to multiply J with, for one row; from −1 to 1 in even steps if None.
        picture: Where to save `plot_jacobian` of the row, or of that with the largest λ_max; the
            pictures of `flow`, `spectrum` and `sweep` go beside it.
        flow: Whether to report the gradient flow.
        spectrum: Whether to report the eigenvalues, of the row that a picture would be of.
        sweep: Temperatures, in place of `temperature`, at which to report the gradient flow.

    Returns:
        A dictionary of numbers, strings, lists and dictionaries; a logit of −∞ is None.

    Raises:
        InputError: if a value is not finite in `dtype`, or the picture cannot be written.
    """
    count, width = logits.shape
    row = 0 if count == 1 else row
    rows = range(count) if row is None else range(row, row + 1)

    def read(start: int, stop: int, temperature: float = temperature) -> np.ndarray:
        return logits.cast(logits.rows(start, stop), start, jnp.dtype(dtype), temperature)

    report = {"source": logits.name, "rows": count, "row": row, "K": width, "dtype": dtype}
    report |= {"alpha": alpha, "temperature": temperature, "x64": dtype == "float64"}
    report |= {"classes": list(logits.classes)} if logits.classes else {}
    report["method"] = "dense" if width <= _DENSE_LIMIT else "matrix-free"
    measured = _measure_properties(read, rows, width, alpha)
    if row is None:
        row, why = _steepest(measured)
        report["measurements"] = summary(measured)
    else:
        why = "the row inspected"
        report |= _one_row(read(row, row + 1)[0], vector, measured, alpha)
    report |= judgement(measured, alpha)
    x = jnp.asarray(read(row, row + 1)[0])
    parts: dict[str, _Part] = {}
    if flow:
        parts["flow"] = _flow_part(read, rows, logits, row, alpha)
    if spectrum:
        parts["spectrum"] = _spectrum_part(x, row, why, alpha)
    if sweep:
        parts["sweep"] = _sweep_part(read, rows, width, sweep, alpha)
    report |= {name: part.report for name, part in parts.items()}
    if picture is not None:
        draw = {"jacobian": lambda: plot_jacobian(x, alpha=alpha, classes=logits.classes or None)}
        draw |= {name: part.draw for name, part in parts.items()}
        report["picture"] = {"file": picture, "row": row, "reason": why}
        report["pictures"] = save_pictures(picture, draw)
    return report


class _Part(NamedTuple):
    """One more part of the report, and how to draw it."""

    report: dict | list
    draw: Callable[[], "Figure"]


def _flow_part(read: Callable, rows: range, logits: Logits, row: int, alpha: float) -> _Part:
    flows = measure_rows(partial(gradient_flow, alpha=alpha), read, rows, cost=logits.width)
    named = partial(flows_of, flows, logits.lead, row)
    return _Part(flow_report(flows), lambda: plot_gradient_flow(named(), alpha=alpha))


def _spectrum_part(x: jax.Array, row: int, why: str, alpha: float) -> _Part:
    found = {"row": row, "reason": why, **spectrum_report(x, alpha)}
    return _Part(found, lambda: plot_spectrum(x, alpha=alpha))


def _sweep_part(
    read: Callable, rows: range, width: int, temperatures: Sequence[float], alpha: float
) -> _Part:
    reads = [partial(read, temperature=T) for T in temperatures]
    measure = partial(gradient_flow, alpha=alpha)
    flows = [measure_rows(measure, at, rows, cost=width) for at in reads]
    reports = [
        {"temperature": T, **flow_report(flow)} for T, flow in zip(temperatures, flows, strict=True)
    ]
    draw = partial(plot_temperature_sweep, alpha=alpha)
    return _Part(reports, lambda: draw(sweep_of(temperatures, flows)))


def _measure_properties(read: Callable, rows: range, width: int, alpha: float) -> Measurements:
    is_narrow = width <= _DENSE_LIMIT
    measure = verify_jacobian_properties if is_narrow else probe_jacobian_properties
    cost = width * width if is_narrow else width
    return measure_rows(partial(measure, alpha=alpha), read, rows, cost=cost)


def _steepest(measured: Measurements) -> tuple[int, str]:
    if "largest_eigenvalue" in measured:
        return int(np.argmax(measured["largest_eigenvalue"])), "the largest λ_max"
    bound = measured["largest_eigenvalue_lower_bound"]
    return int(np.argmax(bound)), "the largest lower bound of λ_max"


def _one_row(
    x: np.ndarray, vector: Sequence[float] | None, measured: Measurements, alpha: float
) -> dict:
    """p, J and the measurements at one row, and the product J·v taken in three ways."""
    width = len(x)
    logits, v = jnp.asarray(x), jnp.asarray(_vector(vector, width, x.dtype))
    shown = np.arange(width)
    if width > _DENSE_LIMIT:
        shown = np.r_[shown[:3], shown[-3:]]
    row = _softmax_row if alpha == 1 else partial(_entmax_row, alpha=alpha)
    inputs, entries, products = row(logits, v, shown)
    formula = np.asarray(products["formula"], np.float64)
    differences = [np.abs(np.asarray(p, np.float64) - formula).max() for p in products.values()]
    return {
        "logits": plain(x),
        **{name: plain(values) for name, values in inputs.items()},
        "jacobian": {"indices": shown.tolist(), "entries": plain(entries)},
        "vjp": {
            "vector": plain(v),
            **{name: plain(product) for name, product in products.items()},
            "largest_difference": plain(max(differences)),
        },
        "measurements": {k: plain(v[0]) for k, v in measured.items() if v.dtype != bool},
    }


Arrays = dict[str, jax.Array]


def _softmax_row(x: jax.Array, v: jax.Array, shown: np.ndarray) -> tuple[Arrays, jax.Array, Arrays]:
    """σ; the entries of J that are shown; J·v in each way."""
    sigma = softmax(x)
    products = {"formula": softmax_vjp(v, sigma)}
    if len(x) <= _FORMED_LIMIT:
        products["full_jacobian"] = jnp.matmul(softmax_jacobian(x), v, precision="highest")
    products["autodiff"] = jax.vjp(jax.nn.softmax, x)[1](v)[0]
    return {"sigma": sigma}, jacobian_block(sigma, shown), products


def _entmax_row(
    x: jax.Array, v: jax.Array, shown: np.ndarray, *, alpha: float
) -> tuple[Arrays, jax.Array, Arrays]:
    """The same of α-entmax: p and s."""
    J = EntmaxJacobian.from_logits(x, alpha)
    products = {"formula": J @ v}
    if len(x) <= _FORMED_LIMIT:
        products["full_jacobian"] = jnp.matmul(J.as_matrix(), v, precision="highest")
    p, pullback = jax.vjp(lambda x: entmax(x, alpha), x)
    products["autodiff"] = pullback(v)[0]
    inputs = {"probabilities": p, "weights": J.scale * J.softmax.sigma}
    return inputs, J.scale * jacobian_block(J.softmax.sigma, shown), products


def _vector(vector: Sequence[float] | None, width: int, dtype: np.dtype) -> np.ndarray:
    wide = np.linspace(-1.0, 1.0, width) if vector is None else np.array(vector)
    with np.errstate(over="ignore"):
        v = wide.astype(dtype)
    if not np.isfinite(v).all():
        bad = wide[np.argmin(np.isfinite(v))]
        raise InputError(f"command line: --vjp {bad:g} is not finite in {dtype.name}")
    return v

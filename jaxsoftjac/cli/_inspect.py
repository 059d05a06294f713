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
from jaxsoftjac.cli._logits import Logits
from jaxsoftjac.cli._pictures import flows_of, save_pictures, sweep_of
from jaxsoftjac.dense import jacobian_block, softmax_jacobian
from jaxsoftjac.diagnostics import (
    gradient_flow,
    probe_jacobian_properties,
    verify_jacobian_properties,
)
from jaxsoftjac.functions import softmax
from jaxsoftjac.plots import (
    plot_gradient_flow,
    plot_jacobian,
    plot_spectrum,
    plot_temperature_sweep,
)
from jaxsoftjac.products import softmax_vjp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DENSE_LIMIT = 64  # widest row whose J is formed and diagonalised
_FORMED_LIMIT = 2048  # widest row whose VJP is also taken with the full J

# For each property: its formula and the fields to judge it by, as verified densely and as probed.
_VERIFIED = {
    "is_symmetric": ("J = Jᵀ", ["symmetry_error"]),
    "rows_sum_to_zero": ("Σⱼ Jᵢⱼ = 0", ["row_sum_error"]),
    "columns_sum_to_zero": ("Σᵢ Jᵢⱼ = 0", ["column_sum_error"]),
    "is_positive_semidefinite": ("λ_min ≥ 0", ["smallest_eigenvalue"]),
    "rank_is_expected": ("rank J = K − 1", ["rank"]),
    "annihilates_ones": ("J·1 = 0", ["null_vector_error"]),
    "diagonal_matches": ("Jᵢᵢ = σᵢ(1 − σᵢ)", ["diagonal_error"]),
    "largest_eigenvalue_is_bounded": ("λ_max ≤ 1/2", ["largest_eigenvalue"]),
    "agrees_with_autodiff": ("analytic = jacfwd = jacrev", ["jacfwd_error", "jacrev_error"]),
}
_PROBED = {
    "is_symmetric": ("⟨a, Jb⟩ = ⟨b, Ja⟩", ["adjoint_error"]),
    "products_sum_to_zero": ("Σᵢ (Ja)ᵢ = 0", ["sum_error"]),
    "annihilates_ones": ("J·1 = 0", ["null_vector_error"]),
    "is_positive_semidefinite": ("⟨a, Ja⟩ ≥ 0", ["quadratic_form"]),
    "largest_eigenvalue_is_bounded": ("⟨w, Jw⟩/⟨w, w⟩ ≤ 1/2", ["rayleigh_quotient"]),
    "agrees_with_autodiff": ("formula = jvp = vjp", ["autodiff_error"]),
}
_WORST_WHEN_SMALL = ("smallest_eigenvalue", "quadratic_form", "rank")


def inspect_logits(
    logits: Logits,
    *,
    row: int | None = None,
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
    report |= {"temperature": temperature, "x64": dtype == "float64"}
    report |= {"classes": list(logits.classes)} if logits.classes else {}
    report["method"] = "dense" if width <= _DENSE_LIMIT else "matrix-free"
    measured = _measure_properties(read, rows, width)
    if row is None:
        row, why = _steepest(measured)
        report["measurements"] = summary(measured)
    else:
        why = "the row inspected"
        report |= _one_row(read(row, row + 1)[0], vector, measured)
    report |= _judgement(measured)
    x = jnp.asarray(read(row, row + 1)[0])
    parts: dict[str, _Part] = {}
    if flow:
        parts["flow"] = _flow_part(read, rows, logits, row)
    if spectrum:
        parts["spectrum"] = _spectrum_part(x, row, why)
    if sweep:
        parts["sweep"] = _sweep_part(read, rows, width, sweep)
    report |= {name: part.report for name, part in parts.items()}
    if picture is not None:
        draw = {"jacobian": lambda: plot_jacobian(x)}
        draw |= {name: part.draw for name, part in parts.items()}
        report["picture"] = {"file": picture, "row": row, "reason": why}
        report["pictures"] = save_pictures(picture, draw)
    return report


class _Part(NamedTuple):
    """One more part of the report, and how to draw it."""

    report: dict | list
    draw: Callable[[], "Figure"]


def _flow_part(read: Callable, rows: range, logits: Logits, row: int) -> _Part:
    flows = measure_rows(gradient_flow, read, rows, cost=logits.width)
    named = partial(flows_of, flows, logits.lead, row)
    return _Part(flow_report(flows), lambda: plot_gradient_flow(named()))


def _spectrum_part(x: jax.Array, row: int, why: str) -> _Part:
    found = {"row": row, "reason": why, **spectrum_report(x)}
    return _Part(found, lambda: plot_spectrum(x))


def _sweep_part(read: Callable, rows: range, width: int, temperatures: Sequence[float]) -> _Part:
    reads = [partial(read, temperature=T) for T in temperatures]
    flows = [measure_rows(gradient_flow, at, rows, cost=width) for at in reads]
    reports = [
        {"temperature": T, **flow_report(flow)} for T, flow in zip(temperatures, flows, strict=True)
    ]
    return _Part(reports, lambda: plot_temperature_sweep(sweep_of(temperatures, flows)))


def _measure_properties(read: Callable, rows: range, width: int) -> Measurements:
    if width <= _DENSE_LIMIT:
        return measure_rows(verify_jacobian_properties, read, rows, cost=width * width)
    return measure_rows(probe_jacobian_properties, read, rows, cost=width)


def _steepest(measured: Measurements) -> tuple[int, str]:
    if "largest_eigenvalue" in measured:
        return int(np.argmax(measured["largest_eigenvalue"])), "the largest λ_max"
    bound = measured["largest_eigenvalue_lower_bound"]
    return int(np.argmax(bound)), "the largest lower bound of λ_max"


def _one_row(x: np.ndarray, vector: Sequence[float] | None, measured: Measurements) -> dict:
    """σ, J and the measurements at one row, and the product J·v taken in three ways."""
    width = len(x)
    logits, v = jnp.asarray(x), jnp.asarray(_vector(vector, width, x.dtype))
    sigma = softmax(logits)
    shown = np.arange(width)
    if width > _DENSE_LIMIT:
        shown = np.r_[shown[:3], shown[-3:]]
    products = {"formula": softmax_vjp(v, sigma)}
    if width <= _FORMED_LIMIT:
        products["full_jacobian"] = jnp.matmul(softmax_jacobian(logits), v, precision="highest")
    products["autodiff"] = jax.vjp(jax.nn.softmax, logits)[1](v)[0]
    formula = np.asarray(products["formula"], np.float64)
    differences = [np.abs(np.asarray(p, np.float64) - formula).max() for p in products.values()]
    return {
        "logits": plain(x),
        "sigma": plain(sigma),
        "jacobian": {"indices": shown.tolist(), "entries": plain(jacobian_block(sigma, shown))},
        "vjp": {
            "vector": plain(v),
            **{name: plain(product) for name, product in products.items()},
            "largest_difference": plain(max(differences)),
        },
        "measurements": {k: plain(v[0]) for k, v in measured.items() if v.dtype != bool},
    }


def _vector(vector: Sequence[float] | None, width: int, dtype: np.dtype) -> np.ndarray:
    wide = np.linspace(-1.0, 1.0, width) if vector is None else np.array(vector)
    with np.errstate(over="ignore"):
        v = wide.astype(dtype)
    if not np.isfinite(v).all():
        bad = wide[np.argmin(np.isfinite(v))]
        raise InputError(f"command line: --vjp {bad:g} is not finite in {dtype.name}")
    return v


def _judgement(measured: Measurements) -> dict:
    """For each property whether it holds, in how many rows, and the row where it is worst."""
    properties = {}
    for name, holds in measured.items():
        if holds.dtype != bool or name == "all_hold":
            continue
        known = _VERIFIED if "largest_eigenvalue" in measured else _PROBED
        formula, judged_by = known.get(name, (name.replace("_", " "), []))
        values = {key: measured[key] for key in judged_by if key in measured}
        worst = _worst_row(holds, values, measured["tolerance"])
        properties[name] = {
            "formula": formula,
            "holds": bool(holds.all()),
            "rows_that_hold": int(holds.sum()),
            "worst_row": worst,
            "worst": {key: plain(value[worst]) for key, value in values.items()},
        }
    return {"properties": properties, "all_hold": bool(measured["all_hold"].all())}


def _worst_row(holds: np.ndarray, values: Measurements, tolerance: np.ndarray) -> int:
    """The row furthest off, among those that fail if any does; errors count in tolerances."""
    badness = []
    for name, value in values.items():
        wide = value.astype(np.float64)
        if name.endswith("_error"):
            wide /= np.fmax(tolerance.astype(np.float64), np.finfo(np.float64).tiny)
        badness.append(-wide if name in _WORST_WHEN_SMALL else wide)
    badness = np.max(badness or [~holds], axis=0)
    worst = np.where(np.isnan(badness), np.inf, badness)
    rows = np.arange(len(holds)) if holds.all() else np.flatnonzero(~holds)
    return int(rows[np.argmax(worst[rows])])

"""What `jaxsoftjac inspect` reports: the properties of J at each row of logits.

The report is a dictionary fit for strict JSON, in which what is not finite is None. Files of any
length are read and measured in chunks, so that memory does not grow with the number of rows.

>>> from jaxsoftjac.logits_files import numbers
>>> report = inspect_logits(numbers(["2.0", "1.0"], name="example"))
>>> report["K"], report["all_hold"]
(2, True)
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac.dense import softmax_jacobian
from jaxsoftjac.diagnostics import probe_jacobian_properties, verify_jacobian_properties
from jaxsoftjac.functions import softmax
from jaxsoftjac.logits_files import InputError, Logits
from jaxsoftjac.plots import jacobian_block, plot_jacobian
from jaxsoftjac.products import softmax_vjp

_DENSE_LIMIT = 64  # widest row whose J is formed and diagonalised
_FORMED_LIMIT = 2048  # widest row whose VJP is also taken with the full J
_CHUNK_ELEMENTS = 2**22  # of logits, or of J where it is formed

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

Measurements = dict[str, np.ndarray]


def inspect_logits(
    logits: Logits,
    *,
    row: int | None = None,
    dtype: str = "float32",
    temperature: float = 1.0,
    vector: Sequence[float] | None = None,
    picture: str | None = None,
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
        picture: Where to save `plot_jacobian` of the row, or of that with the largest λ_max.

    Returns:
        A dictionary of numbers, strings, lists and dictionaries.

    Raises:
        InputError: if a value is not finite in `dtype`, or the picture cannot be written.
    """
    count, width = logits.shape

    def chunk(start: int, stop: int) -> np.ndarray:
        return logits.cast(logits.rows(start, stop), start, jnp.dtype(dtype), temperature)

    row = 0 if count == 1 else row
    report = {"source": logits.name, "rows": count, "row": row, "K": width, "dtype": dtype}
    report |= {"temperature": temperature, "x64": dtype == "float64"}
    report["method"] = "dense" if width <= _DENSE_LIMIT else "matrix-free"
    if row is None:
        measured = _measure(_chunks(chunk, logits.shape), logits.shape)
        row, why = _steepest(measured)
        report |= _summary(measured)
    else:
        x, why = chunk(row, row + 1), "the row inspected"
        measured = _measure([x], (1, width))
        report |= _one_row(x[0], vector, measured)
    report |= _judgement(measured)
    if picture is not None:
        _save_picture(chunk(row, row + 1)[0], picture)
        report["picture"] = {"file": picture, "row": row, "reason": why}
    return report


def _chunks(chunk: Callable[[int, int], np.ndarray], shape: tuple[int, int]) -> Iterator:
    """All rows in chunks of one shape, so that one compilation serves; the last one is padded."""
    count, width = shape
    cost = width * width if width <= _DENSE_LIMIT else width
    size = min(count, max(1, _CHUNK_ELEMENTS // cost))
    with _progress(count) as bar:
        for start in range(0, count, size):
            rows = chunk(start, min(start + size, count))
            yield rows[np.minimum(np.arange(size), len(rows) - 1)]
            if bar is not None:
                bar.update(len(rows))


def _progress(total: int):
    if not sys.stderr.isatty():
        return nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext()
    return tqdm(total=total, unit="row", leave=False)


def _measure(chunks: Iterable[np.ndarray], shape: tuple[int, int]) -> Measurements:
    """The fields of the diagnostics over all rows; vectors (the eigenvalues) for one row only."""
    count, width = shape
    dense = width <= _DENSE_LIMIT
    measure = jax.jit(verify_jacobian_properties if dense else probe_jacobian_properties)
    parts = []
    for chunk in chunks:
        fields = measure(jnp.asarray(chunk))._asdict()
        parts.append({k: np.asarray(v) for k, v in fields.items() if v.ndim == 1 or count == 1})
    return {name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]}


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
        "logits": _plain(x),
        "sigma": _plain(sigma),
        "jacobian": {"indices": shown.tolist(), "entries": _plain(jacobian_block(sigma, shown))},
        "vjp": {
            "vector": _plain(v),
            **{name: _plain(product) for name, product in products.items()},
            "largest_difference": _plain(max(differences)),
        },
        "measurements": {k: _plain(v[0]) for k, v in measured.items() if v.dtype != bool},
    }


def _vector(vector: Sequence[float] | None, width: int, dtype: np.dtype) -> np.ndarray:
    wide = np.linspace(-1.0, 1.0, width) if vector is None else np.array(vector)
    with np.errstate(over="ignore"):
        v = wide.astype(dtype)
    if not np.isfinite(v).all():
        bad = wide[np.argmin(np.isfinite(v))]
        raise InputError(f"command line: --vjp {bad:g} is not finite in {dtype.name}")
    return v


def _summary(measured: Measurements) -> dict:
    statistics = {"min": np.min, "median": np.median, "max": np.max}
    return {
        "measurements": {
            name: {k: _plain(f(values.astype(np.float64))) for k, f in statistics.items()}
            for name, values in measured.items()
            if values.dtype != bool
        }
    }


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
            "worst": {key: _plain(value[worst]) for key, value in values.items()},
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


def _plain(value):
    """Python numbers and lists of an array; None for what strict JSON cannot say."""
    array = np.asarray(value)
    if array.dtype.kind in "iu":
        return array.tolist()
    wide = array.astype(np.float64)
    return np.where(np.isfinite(wide), wide, np.array(None)).tolist()


def _save_picture(x: np.ndarray, path: str) -> None:
    try:
        plot_jacobian(jnp.asarray(x)).savefig(path, dpi=200)
    except OSError as error:
        raise InputError(f"--plot {path}: cannot be written: {error.strerror or error}") from None

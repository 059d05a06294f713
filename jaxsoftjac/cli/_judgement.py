"""What `jaxsoftjac inspect` says of each property: its formula, and where it is worst.

>>> holds = {"is_symmetric": np.array([True, False]), "all_hold": np.array([True, False])}
>>> errors = {"symmetry_error": np.array([0.0, 1.0]), "tolerance": np.array([1e-6, 1e-6])}
>>> judgement(holds | errors, 1.0)["properties"]["is_symmetric"]["worst_row"]
1
"""

import numpy as np

from jaxsoftjac.cli._chunks import Measurements
from jaxsoftjac.cli._inspect_flow import plain

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
# What is written otherwise of α-entmax.
_OF_ENTMAX = {
    "rank_is_expected": "rank J = |S| − 1",
    "diagonal_matches": "Jᵢᵢ = sᵢ(1 − sᵢ/Σs)",
    "λ_max ≤ 1/2": "λ_max ≤ Σs/2",
    "⟨w, Jw⟩/⟨w, w⟩ ≤ 1/2": "⟨w, Jw⟩/⟨w, w⟩ ≤ Σs/2",
}
_WORST_WHEN_SMALL = ("smallest_eigenvalue", "quadratic_form", "rank")


def judgement(measured: Measurements, alpha: float) -> dict:
    """For each property whether it holds, in how many rows, and the row where it is worst."""
    properties = {}
    for name, holds in measured.items():
        if holds.dtype != bool or name == "all_hold":
            continue
        known = _VERIFIED if "largest_eigenvalue" in measured else _PROBED
        formula, judged_by = known.get(name, (name.replace("_", " "), []))
        if alpha != 1:
            formula = _OF_ENTMAX.get(name, _OF_ENTMAX.get(formula, formula))
        values = {key: measured[key] for key in judged_by if key in measured}
        worst = _worst_row(holds, values, measured["tolerance"])
        properties[name] = {
            "formula": formula,
            "holds": bool(holds.all()),
            "rows_that_hold": int(holds.sum()),
            "worst_row": worst,
            "worst": {key: plain(value[worst]) for key, value in values.items()},
        }
        if name == "rank_is_expected":
            properties[name]["expected"] = plain(measured["expected_rank"][worst])
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

"""The report of `jaxsoftjac inspect` as text of 80 columns."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from jaxsoftjac.cli._cells import COLUMNS, number, pick, shown_places, spell, table, vectors, whole

_WIDTH = 80
_PRODUCTS = {"vector": "v", "formula": "formula", "full_jacobian": "full J", "autodiff": "jax.vjp"}

_FLOW = {
    "classes": "K",
    "entropy": "H = −Σ σ log σ",
    "entropy_share": "H / log K",
    "max_probability": "max σ",
    "effective_classes": "exp H",
    "spectral_norm": "‖J‖₂ = λ_max",
    "spectral_norm_share": "2‖J‖₂",
    "frobenius_norm": "‖J‖_F",
    "gradient_gain": "‖J‖_F / √(K − 1)",
    "effective_rank": "tr(J)² / ‖J‖_F²",
    "condition_number": "λ_max / λ₂",
    "saturation": "1 − max σ",
    "digits_lost": "log₁₀ κ of J·v",
}
_FLOW_OF_ENTMAX = {
    "entropy": "H = −Σ p log p",
    "max_probability": "max p",
    "spectral_norm_share": "2‖J‖₂ / Σs",
    "saturation": "1 − max p",
    "support": "|S|, S where p > 0",
}
_DRAWN = {
    "flow": "the gradient flow",
    "spectrum": "its spectrum",
    "sweep": "the temperatures",
}
_SYMBOLS = {"smallest_eigenvalue": "λ_min", "largest_eigenvalue": "λ_max"}
_SWEPT = ("entropy_share", "max_probability", "spectral_norm", "gradient_gain", "digits_lost")


def report_text(report: dict, *, encoding: str = "utf-8") -> str:
    """The report laid out in tables.

    Args:
        report: What `inspect_logits` returned.
        encoding: Of the stream that the text is for.

    Returns:
        Lines of text, without a final newline.
    """
    blocks = [_heading(report)]
    if report["row"] is None:
        blocks += [_statistics(report), _judgement(report, encoding)]
    else:
        blocks += [
            *_row_tables(report, encoding),
            _properties(report, encoding),
            _measurements(report),
        ]
    blocks += [part(report, encoding) for name, part in _PARTS.items() if name in report]
    blocks.append(_verdict(report))
    return "\n\n".join(spell("\n".join(block), encoding) for block in blocks)


def _heading(report: dict) -> list[str]:
    which = f"{report['rows']} rows" if report["row"] is None else f"row {report['row']}"
    which += f" of {report['rows']}" * (report["row"] is not None and report["rows"] > 1)
    dtype = report["dtype"] + " (x64 turned on for this process)" * report["x64"]
    what = f": {which}, K = {report['K']}"
    room = _WIDTH - len(what)
    member = "" if report["alpha"] == 1 else f"α-entmax with α = {report['alpha']:g}, "
    source = report["source"]
    source = source if len(source) <= room else "…" + source[1 - room :]
    how = f"temperature {report['temperature']:g}, {report['method']} verification"
    return [f"{source}{what}", *textwrap.wrap(f"{member}{dtype}, {how}", _WIDTH)]


def _row_tables(report: dict, encoding: str) -> list[list[str]]:
    shown, vjp = shown_places(range(report["K"])), report["vjp"]
    names = report.get("classes", range(report["K"]))
    header = ("", ["…" if i is None else _class_name(str(names[i])) for i in shown])
    logits = [-math.inf if x is None else x for x in report["logits"]]  # what JSON cannot say
    inputs = [("x" if report["temperature"] == 1 else "x / T", logits)]
    if report["alpha"] == 1:
        inputs.append(("σ", report["sigma"]))
        titles = "J = diag(σ) − σ·σᵀ", "VJP: J·v = σ ⊙ (v − ⟨v, σ⟩)"
    else:
        inputs += [("p", report["probabilities"]), ("s", report["weights"])]
        titles = "J = diag(s) − s·sᵀ/Σs, s = p^(2 − α)", "VJP: J·v = s ⊙ (v − ⟨v, s⟩/Σs)"
    products = [(label, vjp[name]) for name, label in _PRODUCTS.items() if name in vjp]
    difference = f"largest difference {number(vjp['largest_difference'])}"
    if "full_jacobian" not in vjp:
        difference += "; the full J is too wide to be formed"
    matrix = vectors([header, *_matrix(report["jacobian"], shown)], encoding)
    ways = vectors([header, *_picked(products, shown)], encoding)
    return [
        vectors([header, *_picked(inputs, shown)], encoding),
        [titles[0], *matrix],
        [titles[1], *ways, difference],
    ]


def _class_name(name: str) -> str:
    """What fits above a column."""
    name = " ".join(name.split())
    return name if len(name) <= 9 else f"{name[:4]}~{name[-4:]}"


def _matrix(jacobian: dict, shown: Sequence[int | None]) -> list[tuple[str, list[str]]]:
    places = [None if i is None else jacobian["indices"].index(i) for i in shown]
    rows = []
    for index, place in zip(shown, places, strict=True):
        if place is None:
            rows.append(("…", ["…"] * len(shown)))
        else:
            rows.append((str(index), pick(jacobian["entries"][place], places)))
    return rows


def _properties(report: dict, encoding: str) -> list[str]:
    rows = [("property", "holds", "measured")]
    for name, p in report["properties"].items():
        rows.append((_claim(report, name), "✓" if p["holds"] else "✗", _pairs(p["worst"])))
    return [*table(rows, encoding), *_rank_note(report)]


def _measurements(report: dict) -> list[str]:
    lines = []
    for name, value in report["measurements"].items():
        if isinstance(value, list):
            value = ", ".join(pick(value, shown_places(value, COLUMNS - 2)))
            lines.append(f"{name:<32}{value}")
        else:
            lines.append(f"{name:<32}{number(value)}")
    return lines


def _statistics(report: dict) -> list[str]:
    lines = [f"{'measurement':<32}{'min':>12}{'median':>12}{'max':>12}"]
    for name, values in report["measurements"].items():
        lines.append(f"{name:<32}" + "".join(f"{whole(v):>12}" for v in values.values()))
    return lines


def _judgement(report: dict, encoding: str) -> list[str]:
    rows = [("property", "holds", "in rows", "worst row", "measured there")]
    for name, p in report["properties"].items():
        tick, there = "✓" if p["holds"] else "✗", _shortest(p["worst"])
        counts = str(p["rows_that_hold"]), str(p["worst_row"])
        rows.append((_claim(report, name), tick, *counts, there))
    return [*table(rows, encoding), *_rank_note(report)]


def _shortest(worst: dict) -> str:
    """What was measured, by symbols where they say it, and of several errors the largest."""
    errors = [value for name, value in worst.items() if name.endswith("_error")]
    if errors:
        return f"error {number(None if None in errors else max(errors))}"
    return _pairs({_SYMBOLS.get(name, name): value for name, value in worst.items()})


def _claim(report: dict, name: str) -> str:
    """The formula of a property; what the rank is judged by where it is not K − 1."""
    if name == "rank_is_expected" and _missing_rank(report):
        return "rank J, numerically"
    return report["properties"][name]["formula"]


def _missing_rank(report: dict) -> int:
    """How many of the K − 1 dimensions (|S| − 1) the worst numerical rank lacks, as expected."""
    judged = report["properties"].get("rank_is_expected")
    if judged is None or not judged["holds"]:
        return 0
    return judged["expected"] - judged["worst"]["rank"]


def _rank_note(report: dict) -> list[str]:
    missing = _missing_rank(report)
    if not missing:
        return []
    expected = report["properties"]["rank_is_expected"]["expected"]
    exact = f"{'K' if report['alpha'] == 1 else '|S|'} − 1 = {expected}"
    if report["alpha"] == 1 and expected != report["K"] - 1:
        exact = f"{expected}, one less than the classes that are not excluded"
    note = (
        f"In exact arithmetic rank J = {exact}. Of these eigenvalues {missing} "
        f"lie{'s' * (missing == 1)} below the tolerance of rounding, as the probabilities let "
        "expect: the numerical rank leaves them out."
    )
    return ["", *textwrap.wrap(note, _WIDTH)]


def _flow_formulas(report: dict) -> dict[str, str]:
    return _FLOW if report["alpha"] == 1 else _FLOW | _FLOW_OF_ENTMAX


def _flow(report: dict, encoding: str) -> list[str]:
    """The gradient flow: one value of each field, or its statistics and how many rows collapsed."""
    flow, formulas = report["flow"], _flow_formulas(report)
    collapsed = f"{formulas['max_probability']} = 1 in float32"
    many = "collapsed_rows" in flow
    rows = [("gradient flow", "formula", *(("min", "median", "max") if many else ("value",)))]
    for name, formula in formulas.items():
        values = flow[name].values() if many else [flow[name]]
        rows.append((name, formula, *map(whole, values)))
    if many:
        rows.append(("collapsed_rows", collapsed, "", "", str(flow["collapsed_rows"])))
    else:
        rows.append(("is_collapsed", collapsed, "✓" if flow["is_collapsed"] else "✗"))
    return table(rows, encoding)


def _spectrum(report: dict, encoding: str) -> list[str]:
    spectrum = report["spectrum"]
    letter = "σ" if report["alpha"] == 1 else "s"
    poles = spectrum["probabilities" if letter == "σ" else "weights"]
    outside = 0 if letter == "σ" else poles.count(0)  # there λ = 0 is no eigenvalue of interest
    eigenvalues, sigma = spectrum["eigenvalues"][outside:], poles[outside:]
    sorted_as = f"{letter}₍ₖ₎ ≤ λₖ₊₁ ≤ {letter}₍ₖ₊₁₎ with {letter} sorted"
    rows = [["k", f"{letter}₍ₖ₎", "λₖ₊₁", f"{letter}₍ₖ₊₁₎"]]
    for k in shown_places(range(len(sigma) - 1), 12):
        if k is None:
            rows.append(["…"] * 4)
        else:
            rows.append([str(k + 1), *map(number, (sigma[k], eigenvalues[k + 1], sigma[k + 1]))])
    return [
        f"Spectrum at row {spectrum['row']}, {spectrum['reason']}",
        f"λ_1 = 0, and {sorted_as}" + ("" if letter == "σ" else ", on the support"),
        *table(rows, encoding),
    ]


def _sweep(report: dict, encoding: str) -> list[str]:
    """The gradient flow against temperature; medians where there are many rows."""
    sweep, formulas = report["sweep"], _flow_formulas(report)
    many = "collapsed_rows" in sweep[0]
    rows = [("T", *(formulas[name].split(" = ")[0] for name in _SWEPT))]
    for flow in sweep:
        values = [flow[name]["median"] if many else flow[name] for name in _SWEPT]
        rows.append((f"{flow['temperature']:g}", *map(number, values)))
    title = "Gradient flow of x / T" + ", medians over the rows" * many
    return [title, *table(rows, encoding)]


def _verdict(report: dict) -> list[str]:
    failed = [p["formula"] for p in report["properties"].values() if not p["holds"]]
    verdict = "All properties hold." if report["all_hold"] else f"Failed: {', '.join(failed)}"
    lines = textwrap.wrap(verdict, _WIDTH)
    if "picture" in report:
        picture = report["picture"]
        lines.append(f"Picture of row {picture['row']}, {picture['reason']}: {picture['file']}")
        others = {k: file for k, file in report["pictures"].items() if k in _DRAWN}
        lines += [f"Picture of {_DRAWN[name]}: {file}" for name, file in others.items()]
    return lines


def _picked(
    rows: Iterable[tuple[str, Any]], shown: Sequence[int | None]
) -> list[tuple[str, list[str]]]:
    return [(label, pick(values, shown)) for label, values in rows]


def _pairs(values: dict) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())


_PARTS = {"flow": _flow, "spectrum": _spectrum, "sweep": _sweep}

"""The report of `jaxsoftjac inspect` as text of 80 columns.

Where the encoding lacks the symbols of mathematics, words stand for them.

>>> spell("λ_max ≤ 1/2", "utf-8"), spell("λ_max ≤ 1/2", "ascii")
('λ_max ≤ 1/2', 'lambda_max <= 1/2')
"""

import textwrap
from collections.abc import Iterable, Sequence, Sized

_COLUMNS = 7  # of ten characters each, beside a label of ten
_WORDS = {
    **{"ᵢᵢ": "_ii", "ᵢⱼ": "_ij", "ᵢ": "_i", "ⱼ": "_j", "ᵀ": "^T", "σ": "sigma", "λ": "lambda"},
    **{"Σ": "sum", "·": "*", "⊙": "*", "⟨": "<", "⟩": ">", "−": "-", "≥": ">=", "≤": "<="},
    **{"₍ₖ₎": "_(k)", "₍ₖ₊₁₎": "_(k+1)", "ₖ₊₁": "_(k+1)", "₁₀": "_10", "₁": "_1", "₂": "_2"},
    **{"‖": "||", "²": "^2", "√": "sqrt", "∂": "d", "δ": "delta", "κ": "kappa"},
    **{"…": "...", "✓": "yes", "✗": "no", "≠": "!="},
}
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
    "digits_lost": "log₁₀ κ",
}
_COLLAPSED = "max σ = 1 in float32"
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
    blocks += [part(report[name], encoding) for name, part in _PARTS.items() if name in report]
    blocks.append(_verdict(report))
    return "\n\n".join(spell("\n".join(block), encoding) for block in blocks)


def spell(text: str, encoding: str) -> str:
    """`text` as it is if `encoding` can hold all the symbols used here, else in words."""
    try:
        "".join(_WORDS).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        for symbol, word in _WORDS.items():
            text = text.replace(symbol, word)
    return text


def _heading(report: dict) -> list[str]:
    which = f"{report['rows']} rows" if report["row"] is None else f"row {report['row']}"
    which += f" of {report['rows']}" * (report["row"] is not None and report["rows"] > 1)
    dtype = report["dtype"] + " (x64 turned on for this process)" * report["x64"]
    return [
        f"{report['source']}: {which}, K = {report['K']}",
        f"{dtype}, temperature {report['temperature']:g}, {report['method']} verification",
    ]


def _row_tables(report: dict, encoding: str) -> list[list[str]]:
    shown, vjp = shown_places(range(report["K"])), report["vjp"]
    header = ("", ["…" if i is None else str(i) for i in shown])
    inputs = [("x" if report["temperature"] == 1 else "x / T", report["logits"])]
    inputs.append(("σ", report["sigma"]))
    products = [(label, vjp[name]) for name, label in _PRODUCTS.items() if name in vjp]
    difference = f"largest difference {number(vjp['largest_difference'])}"
    if "full_jacobian" not in vjp:
        difference += "; the full J is too wide to be formed"
    matrix = _vectors([header, *_matrix(report["jacobian"], shown)], encoding)
    vectors = _vectors([header, *_picked(products, shown)], encoding)
    return [
        _vectors([header, *_picked(inputs, shown)], encoding),
        ["J = diag(σ) − σ·σᵀ", *matrix],
        ["VJP: J·v = σ ⊙ (v − ⟨v, σ⟩)", *vectors, difference],
    ]


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
    for p in report["properties"].values():
        rows.append((p["formula"], "✓" if p["holds"] else "✗", _pairs(p["worst"])))
    return table(rows, encoding)


def _measurements(report: dict) -> list[str]:
    lines = []
    for name, value in report["measurements"].items():
        if isinstance(value, list):
            value = ", ".join(pick(value, shown_places(value, _COLUMNS - 2)))
            lines.append(f"{name:<32}{value}")
        else:
            lines.append(f"{name:<32}{number(value)}")
    return lines


def _statistics(report: dict) -> list[str]:
    lines = [f"{'measurement':<32}{'min':>12}{'median':>12}{'max':>12}"]
    for name, values in report["measurements"].items():
        lines.append(f"{name:<32}" + "".join(f"{_whole(v):>12}" for v in values.values()))
    return lines


def _judgement(report: dict, encoding: str) -> list[str]:
    rows = [("property", "holds", "in rows", "worst row", "measured there")]
    for p in report["properties"].values():
        tick, there = "✓" if p["holds"] else "✗", _pairs(p["worst"])
        rows.append((p["formula"], tick, str(p["rows_that_hold"]), str(p["worst_row"]), there))
    return table(rows, encoding)


def _flow(flow: dict, encoding: str) -> list[str]:
    """The gradient flow: one value of each field, or its statistics and how many rows collapsed."""
    many = "collapsed_rows" in flow
    rows = [("gradient flow", "formula", *(("min", "median", "max") if many else ("value",)))]
    for name, formula in _FLOW.items():
        values = flow[name].values() if many else [flow[name]]
        rows.append((name, formula, *map(_whole, values)))
    if many:
        rows.append(("collapsed_rows", _COLLAPSED, "", "", str(flow["collapsed_rows"])))
    else:
        rows.append(("is_collapsed", _COLLAPSED, "✓" if flow["is_collapsed"] else "✗"))
    return table(rows, encoding)


def _spectrum(spectrum: dict, encoding: str) -> list[str]:
    eigenvalues, sigma = spectrum["eigenvalues"], spectrum["probabilities"]
    rows = [["k", "σ₍ₖ₎", "λₖ₊₁", "σ₍ₖ₊₁₎"]]
    for k in shown_places(range(len(sigma) - 1), 12):
        if k is None:
            rows.append(["…"] * 4)
        else:
            rows.append([str(k + 1), *map(number, (sigma[k], eigenvalues[k + 1], sigma[k + 1]))])
    return [
        f"Spectrum at row {spectrum['row']}, {spectrum['reason']}",
        "λ_1 = 0, and σ₍ₖ₎ ≤ λₖ₊₁ ≤ σ₍ₖ₊₁₎ with σ sorted",
        *table(rows, encoding),
    ]


def _sweep(sweep: Sequence[dict], encoding: str) -> list[str]:
    """The gradient flow against temperature; medians where there are many rows."""
    many = "collapsed_rows" in sweep[0]
    rows = [("T", *(_FLOW[name].split(" = ")[0] for name in _SWEPT))]
    for flow in sweep:
        values = [flow[name]["median"] if many else flow[name] for name in _SWEPT]
        rows.append((f"{flow['temperature']:g}", *map(number, values)))
    title = "Gradient flow of x / T" + ", medians over the rows" * many
    return [title, *table(rows, encoding)]


def _verdict(report: dict) -> list[str]:
    failed = [p["formula"] for p in report["properties"].values() if not p["holds"]]
    verdict = "All properties hold." if report["all_hold"] else f"Failed: {', '.join(failed)}"
    lines = textwrap.wrap(verdict, 80)
    if "picture" in report:
        picture = report["picture"]
        lines.append(f"Picture of row {picture['row']}, {picture['reason']}: {picture['file']}")
    return lines


def table(rows: Sequence[Sequence[str]], encoding: str) -> list[str]:
    """Left-aligned columns of the width that the cells have once they are spelled."""
    spelled = [[spell(cell, encoding) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*spelled, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in spelled]


def _vectors(rows: Iterable[tuple[str, list[str]]], encoding: str) -> list[str]:
    return [
        f"{spell(label, encoding):<10}" + "".join(f"{spell(cell, encoding):>10}" for cell in cells)
        for label, cells in rows
    ]


def _picked(rows, shown: Sequence[int | None]) -> list[tuple[str, list[str]]]:
    return [(label, pick(values, shown)) for label, values in rows]


def shown_places(values: Sized, most: int = _COLUMNS) -> list[int | None]:
    """The places to show: all, or the first and the last few with None for those between."""
    count, few = len(values), most // 2
    if count <= most:
        return list(range(count))
    return [*range(few), None, *range(count - few, count)]


def pick(values: Sequence, places: Iterable[int | None]) -> list[str]:
    """The values at these places, as text."""
    return ["…" if i is None else number(values[i]) for i in places]


def _pairs(values: dict) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())


def _whole(value: float | None) -> str:
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e6
    return f"{value:g}" if is_whole else number(value)


def number(value: float | int | None) -> str:
    """Five significant digits or so."""
    if value is None:
        return "not finite"
    if isinstance(value, int) or value == 0:
        return f"{value:g}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


_PARTS = {"flow": _flow, "spectrum": _spectrum, "sweep": _sweep}

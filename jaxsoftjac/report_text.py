"""The report of `jaxsoftjac inspect` as text of 80 columns.

Where the encoding lacks the symbols of mathematics, words stand for them.

>>> spell("λ_max ≤ 1/2", "utf-8"), spell("λ_max ≤ 1/2", "ascii")
('λ_max ≤ 1/2', 'lambda_max <= 1/2')
"""

import textwrap
from collections.abc import Iterable, Sequence

_COLUMNS = 7  # of ten characters each, beside a label of ten
_WORDS = {
    **{"ᵢᵢ": "_ii", "ᵢⱼ": "_ij", "ᵢ": "_i", "ⱼ": "_j", "ᵀ": "^T", "σ": "sigma", "λ": "lambda"},
    **{"Σ": "sum", "·": "*", "⊙": "*", "⟨": "<", "⟩": ">", "−": "-", "≥": ">=", "≤": "<="},
    **{"…": "...", "✓": "yes", "✗": "no"},
}
_PRODUCTS = {"vector": "v", "formula": "formula", "full_jacobian": "full J", "autodiff": "jax.vjp"}


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
    shown, vjp = _shown(range(report["K"])), report["vjp"]
    header = ("", ["…" if i is None else str(i) for i in shown])
    inputs = [("x" if report["temperature"] == 1 else "x / T", report["logits"])]
    inputs.append(("σ", report["sigma"]))
    products = [(label, vjp[name]) for name, label in _PRODUCTS.items() if name in vjp]
    difference = f"largest difference {_number(vjp['largest_difference'])}"
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
            rows.append((str(index), _pick(jacobian["entries"][place], places)))
    return rows


def _properties(report: dict, encoding: str) -> list[str]:
    rows = [("property", "holds", "measured")]
    for p in report["properties"].values():
        rows.append((p["formula"], "✓" if p["holds"] else "✗", _pairs(p["worst"])))
    return _table(rows, encoding)


def _measurements(report: dict) -> list[str]:
    lines = []
    for name, value in report["measurements"].items():
        if isinstance(value, list):
            value = ", ".join(_pick(value, _shown(value, _COLUMNS - 2)))
            lines.append(f"{name:<32}{value}")
        else:
            lines.append(f"{name:<32}{_number(value)}")
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
    return _table(rows, encoding)


def _verdict(report: dict) -> list[str]:
    failed = [p["formula"] for p in report["properties"].values() if not p["holds"]]
    verdict = "All properties hold." if report["all_hold"] else f"Failed: {', '.join(failed)}"
    lines = textwrap.wrap(verdict, 80)
    if "picture" in report:
        picture = report["picture"]
        lines.append(f"Picture of row {picture['row']}, {picture['reason']}: {picture['file']}")
    return lines


def _table(rows: Sequence[Sequence[str]], encoding: str) -> list[str]:
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
    return [(label, _pick(values, shown)) for label, values in rows]


def _shown(values: Sequence, most: int = _COLUMNS) -> list[int | None]:
    """The places to show: all, or the first and the last few with None for those between."""
    count, few = len(values), most // 2
    if count <= most:
        return list(range(count))
    return [*range(few), None, *range(count - few, count)]


def _pick(values: Sequence, places: Iterable[int | None]) -> list[str]:
    return ["…" if i is None else _number(values[i]) for i in places]


def _pairs(values: dict) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _whole(value: float | None) -> str:
    return f"{value:g}" if value is not None and value.is_integer() else _number(value)


def _number(value: float | int | None) -> str:
    if value is None:
        return "not finite"
    if isinstance(value, int) or value == 0:
        return f"{value:g}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"

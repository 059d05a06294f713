"""The report of `jaxsoftjac inspect` as text of 80 columns.

Where the encoding lacks the symbols of mathematics, words stand for them.

>>> spell("λ_max ≤ 1/2", "utf-8"), spell("λ_max ≤ 1/2", "ascii")
('λ_max ≤ 1/2', 'lambda_max <= 1/2')
"""

_COLUMNS = 7  # of ten characters each, beside a label of ten
_WORDS = {
    **{"✓": "yes", "✗": "no", "σ": "sigma", "λ": "lambda", "Σ": "sum", "ᵀ": "^T", "·": "*"},
    **{"−": "-", "≥": ">=", "≤": "<=", "⟨": "<", "⟩": ">", "⊙": "*", "…": "...", "×": "x"},
    **{"ᵢ": "_i", "ⱼ": "_j"},
}


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
        blocks += [*_row_tables(report), _properties(report, encoding), _measurements(report)]
    blocks.append(_verdict(report))
    return "\n\n".join(spell("\n".join(block), encoding) for block in blocks)


def spell(text: str, encoding: str) -> str:
    """`text` as it is if `encoding` can hold all the symbols used here, else in words."""
    try:
        "".join(_WORDS).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(str.maketrans(_WORDS))
    return text


def _heading(report: dict) -> list[str]:
    which = f"{report['rows']} rows" if report["row"] is None else f"row {report['row']}"
    dtype = report["dtype"] + " (x64 turned on for this process)" * report["x64"]
    return [
        f"{report['source']}: {which} of K = {report['K']} logits",
        f"{dtype}, temperature {report['temperature']:g}, {report['method']} verification",
    ]


def _row_tables(report: dict) -> list[list[str]]:
    jacobian, width = report["jacobian"], report["K"]
    shown = _shown(range(width))
    places = [None if i is None else jacobian["indices"].index(i) for i in shown]
    entries = jacobian["entries"]
    matrix = [
        (_index(i), _pick(entries[p], places))
        for i, p in zip(shown, places, strict=True)
        if p is not None
    ]
    if None in shown:
        matrix.insert(shown.index(None), ("…", ["…"] * len(shown)))
    header = ("", [_index(i) for i in shown])
    vjp = [(name, _pick(values, shown)) for name, values in report["vjp"].items()]
    divided = "x" if report["temperature"] == 1 else "x / T"
    inputs = [(divided, _pick(report["logits"], shown)), ("σ", _pick(report["sigma"], shown))]
    difference = f"largest difference {_number(report['vjp_largest_difference'])}"
    if "by full J" not in report["vjp"]:
        difference += "; the full J is too wide to be formed"
    return [
        _vectors([header, *inputs]),
        ["J = diag(σ) − σσᵀ", *_vectors([header, *matrix])],
        ["VJP: J·v = σ ⊙ (v − ⟨v, σ⟩)", *_vectors([header, *vjp]), difference],
    ]

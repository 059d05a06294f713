"""Cells of the reports: numbers and symbols as text, in columns, spelled for the terminal.

Where the encoding lacks the symbols of mathematics, words stand for them.

>>> spell("λ_max ≤ 1/2", "utf-8"), spell("λ_max ≤ 1/2", "ascii")
('λ_max ≤ 1/2', 'lambda_max <= 1/2')
"""

from collections.abc import Iterable, Sequence, Sized

COLUMNS = 7  # of ten characters each, beside a label of ten
_WORDS = {
    "Σs": "sum(s)",
    **{"ᵢᵢ": "_ii", "ᵢⱼ": "_ij", "ᵢ": "_i", "ⱼ": "_j", "ᵀ": "^T", "σ": "sigma", "λ": "lambda"},
    **{"Σ": "sum", "·": "*", "⊙": "*", "⟨": "<", "⟩": ">", "−": "-", "≥": ">=", "≤": "<="},
    **{"₍ₖ₎": "_(k)", "₍ₖ₊₁₎": "_(k+1)", "ₖ₊₁": "_(k+1)", "₁₀": "_10", "₀": "_0", "₁": "_1"},
    **{"₂": "_2", "⁻⁵": "^-5", "²": "^2", "‖": "||", "√": "sqrt", "∞": "inf", "∂": "d"},
    **{"α": "alpha", "τ": "tau", "μ": "mu", "₊": "_+", "→": "->", "–": "-"},
    **{"δ": "delta", "κ": "kappa", "…": "...", "✓": "yes", "✗": "no", "≠": "!="},
}


def spell(text: str, encoding: str) -> str:
    """`text` as it is if `encoding` can hold all the symbols used here, else in words."""
    try:
        "".join(_WORDS).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        for symbol, word in _WORDS.items():
            text = text.replace(symbol, word)
    return text


def table(rows: Sequence[Sequence[str]], encoding: str) -> list[str]:
    """Left-aligned columns of the width that the cells have once they are spelled."""
    spelled = [[spell(cell, encoding) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*spelled, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in spelled]


def vectors(rows: Iterable[tuple[str, list[str]]], encoding: str) -> list[str]:
    """Right-aligned columns of one width, beside labels."""
    return [
        f"{spell(label, encoding):<10}" + "".join(f" {spell(cell, encoding):>9}" for cell in cells)
        for label, cells in rows
    ]


def shown_places(values: Sized, most: int = COLUMNS) -> list[int | None]:
    """The places to show: all, or the first and the last few with None for those between."""
    count, few = len(values), most // 2
    if count <= most:
        return list(range(count))
    return [*range(few), None, *range(count - few, count)]


def pick(values: Sequence, places: Iterable[int | None]) -> list[str]:
    """The values at these places, as text."""
    return ["…" if i is None else number(values[i]) for i in places]


def whole(value: float | None) -> str:
    """A number, without a fraction where it has none."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e6
    return f"{value:g}".replace("-", "−") if is_whole else number(value)


def number(value: float | int | None) -> str:
    """Five significant digits or so, with the minus sign of the formulas."""
    if value is None:
        return "not finite"
    if isinstance(value, int) or value == 0:
        text = f"{value + 0:g}"  # + 0, for −0 is 0
    else:
        digits = 4 if abs(value) < 1e3 else 3
        text = f"{value:.{digits}f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
    return text.replace("-", "−").replace("inf", "∞")

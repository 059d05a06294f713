"""What `jaxsoftjac explain` prints: the derivation of J, step by step, on given logits.

>>> text = explanation(np.array([2.0, 1.0]))
>>> print(text.splitlines()[0])
The Jacobian of softmax at z = (2, 1)
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxsoftjac.cli._cells import shown_places, spell
from jaxsoftjac.cli._entmax_lesson import entmax_row, entmax_steps
from jaxsoftjac.cli._lesson import Columns, Formula, Step, row_of
from jaxsoftjac.cli._steps import steps


def explanation(
    z: np.ndarray,
    *,
    vector: Sequence[float] | None = None,
    label: int | None = None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    source: str = "",
    classes: Sequence[str] = (),
    style: str = "text",
    encoding: str = "utf-8",
) -> str:
    """Shift invariance, the two cases, the matrix, the VJP, the loss, the second derivative at `z`.

    Args:
        z: K ≥ 2 logits, finite or −∞.
        vector: The cotangent g = ∂L/∂σ of the VJP; from −1 to 1 in even steps if None.
        label: The true class c, counted from 0; None leaves the loss out.
        alpha: α in [1, 4]: 1 explains softmax, any other α-entmax.
        temperature: T by which the logits x have been divided: z = x / T.
        source: Where the logits come from.
        classes: The names of the K classes, if they have any.
        style: "text" or "markdown".
        encoding: Of the stream that the text is for.

    Returns:
        Lines of text, without a final newline; of wide rows the first and last few classes.
    """
    if alpha == 1:
        what, lesson = "softmax", steps(row_of(z, vector, label), label)
    else:
        what = f"α-entmax, α = {alpha:g},"
        lesson = entmax_steps(entmax_row(z, alpha, vector, label), label)
    values = ", ".join("…" if i is None else _plain(z[i]) for i in shown_places(z))
    T = "" if temperature == 1 else f"{temperature:g}"
    title = f"The Jacobian of {what} at z = " + f"x / {T} = " * bool(T) + f"({values})"
    notes = [f"{source}."] if source else []
    if classes:
        named = ("…" if i is None else f"{i} {classes[i]}" for i in shown_places(classes, 12))
        notes.append(f"The classes are {', '.join(named)}.")
    if T:
        notes.append(
            f"The logits are x, and T = {T} is the temperature. Derivatives are by z: a first "
            "derivative by x is 1/T of that by z, a second 1/T²."
        )
    lines = _STYLES[style](title, " ".join(notes), lesson, encoding)
    return "\n".join(spell(line, encoding) for line in lines)


def _plain(value: float) -> str:
    return f"{value:.6g}".replace("-", "−").replace("inf", "∞")


def _as_text(title: str, note: str, steps: Iterable[Step], encoding: str) -> Iterator[str]:
    yield from _wrapped(title, "", encoding)
    if note:
        room = textwrap.TextWrapper(80, break_on_hyphens=False, break_long_words=False)
        yield from ("", *room.wrap(spell(note, encoding)))  # names of files stay whole
    for index, (heading, parts) in enumerate(steps, 1):
        yield from ("", *_wrapped(f"{index}. {heading}", "", encoding), "")
        for part in parts:
            if isinstance(part, Columns):
                table = [
                    [spell(cell, encoding) for cell in row] for row in (part.heads, *part.rows)
                ]
                widths = [max(map(len, column)) for column in zip(*table, strict=True)]
                yield ""
                for cells in table:
                    yield "   " + "  ".join(map(str.rjust, cells, widths))
                yield from [""] * (part is not parts[-1])
            else:
                yield from _wrapped(part.text, "   ", encoding)


def _wrapped(text: str, indent: str, encoding: str) -> list[str]:
    """The text in lines of 80 columns, for words are longer than symbols."""
    room = textwrap.TextWrapper(80, initial_indent=indent, subsequent_indent=indent + "  ")
    room.break_on_hyphens = False
    return room.wrap(spell(text, encoding))


def _as_markdown(title: str, note: str, steps: Iterable[Step], _: str) -> Iterator[str]:
    yield f"# {title}"
    if note:
        yield from ("", note)
    for index, (heading, parts) in enumerate(steps, 1):
        yield from ("", f"## {index}. {heading}")
        for part in parts:
            yield ""
            if isinstance(part, Columns):
                for cells in (part.heads, ["---:"] * len(part.heads), *part.rows):
                    yield "| " + " | ".join(cells) + " |"
            elif isinstance(part, Formula):
                yield f"$${part.tex}$$"
            else:
                yield part.text


_STYLES: dict[str, Callable[[str, str, Iterable[Step], str], Iterable[str]]] = {
    "text": _as_text,
    "markdown": _as_markdown,
}

r"""Tables of logits in text: `,`, `;`, tabs or blanks between the values, `#` before comments.

The first line may hold the names of the classes, the first column those of the rows. Lines and
columns count from 1, as in editors.

>>> table = read_table([b",cat,dog\n", b"a,1,2\n", b"b,-inf,4\n"], name="example")
>>> table.values.tolist(), table.classes
([[1.0, 2.0], [-inf, 4.0]], ('cat', 'dog'))
"""

import csv
import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from jaxsoftjac.cli._errors import InputError, shortened

_COMMENT = re.compile(r"(?:^|\s)#")
_QUOTED = re.compile(r'"[^"]*"')
_ROW_HEADS = ("", "id", "index", "row")  # heads of a column that names the rows


class Table(NamedTuple):
    """What a text holds.

    Attributes:
        values: [N, K] in float64; none is NaN or +∞.
        classes: K names, or none if the text has no header.
    """

    values: np.ndarray
    classes: tuple[str, ...]


class _Layout(NamedTuple):
    """How the lines of a table are to be read, as its first lines show.

    Attributes:
        first: the line of the first row.
        width: K.
        named: how many columns hold names of rows, 0 or 1.
        by_header: whether the header says so, and not only the rows.
        classes: from the header.
    """

    first: int
    width: int
    named: int
    by_header: bool
    classes: tuple[str, ...]


def read_table(stream: Iterable[bytes], *, name: str) -> Table:
    """The rows of a text.

    Args:
        stream: Its lines.
        name: What errors call it.

    Raises:
        InputError: if it is not a table of numbers that are finite or −∞.
    """
    records = _records(stream, name)
    header, first = _opening(records, name)
    layout = _layout(header, first, name)
    values, lines = array("d"), array("Q")
    for line, cells in chain([first], records):
        _require_shape(cells, layout, f"{name}: line {line}")
        try:
            values.extend(map(float, cells[layout.named :]))
        except ValueError:
            raise _not_a_number(cells, layout.named, f"{name}: line {line}") from None
        lines.append(line)
    table = np.frombuffer(values).reshape(-1, layout.width)
    if not (table < np.inf).all():
        row, column = np.unravel_index(np.argmin(table < np.inf), table.shape)
        where = f"line {lines[row]}, column {column + 1 + layout.named}"
        raise InputError(f"{name}: {where}: {table[row, column]} is not finite")
    return Table(table, layout.classes)


def _records(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line that has any; of quoted cells that go on, the last."""
    lines = (_decoded(raw, f"{name}: line {i}") for i, raw in enumerate(stream, 1))
    blank, first = 0, ""
    for first in lines:
        if first:
            break
        blank += 1
    delimiter = _delimiter(first, f"{name}: line {blank + 1}")
    lines = chain([first], lines)
    if delimiter is None:
        yield from ((i, line.split()) for i, line in enumerate(lines, blank + 1) if line)
        return
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        yield from ((blank + reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise InputError(f"{name}: line {blank + reader.line_num}: {error}") from None


def _decoded(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text") from None
    return _COMMENT.split(text, maxsplit=1)[0].strip(" \r\n")


def _delimiter(line: str, where: str) -> str | None:
    bare = _QUOTED.sub("", line)
    found = [mark for mark in "\t;," if mark in bare]
    if ";" in found and "," in found:
        raise InputError(f"{where}: both ',' and ';' separate values (write decimals with '.')")
    return found[0] if found else None


def _opening(records: Iterator[tuple[int, list[str]]], name: str):
    """The header, if there is one, and the first row with its line."""
    line, cells = next(records, (0, []))
    if not cells:
        raise InputError(f"{name}: empty: no logits")
    if not _is_header(cells):
        return None, (line, cells)
    for first in records:
        return cells, first
    raise InputError(
        f"{name}: line {line}, column 1: {shortened(cells[0])!r} is not a number, "
        "and no rows follow a header"
    )


def _is_header(cells: list[str]) -> bool:
    """Whether none is a number, or all but the first count the classes as pandas does."""
    counted = len(cells) > 1 and cells[1:] == [str(i) for i in range(len(cells) - 1)]
    is_named = not any(map(is_number, cells)) and any(cells)
    return is_named or (counted and not is_number(cells[0]))


def _layout(header: list[str] | None, first: tuple[int, list[str]], name: str) -> _Layout:
    line, cells = first
    is_name = not is_number(cells[0].replace(",", "."))  # a decimal comma is no name
    named = len(cells) > 1 and is_name and all(map(is_number, cells[1:]))
    if header is None:
        named = named and len(cells) > 2  # one number beside one word is rather a slip of the pen
        return _Layout(line, len(cells) - named, int(named), False, ())
    if len(header) not in (len(cells), len(cells) - 1):
        raise InputError(
            f"{name}: line {line}: ragged rows: {len(cells)} values under {len(header)} names"
        )
    by_header = len(header) < len(cells) or header[0].lower() in _ROW_HEADS
    named = (named or by_header) and len(cells) > 1
    classes = tuple(header[len(header) - (len(cells) - named) :])
    return _Layout(line, len(cells) - named, int(named), by_header, classes)


def _require_shape(cells: list[str], layout: _Layout, where: str) -> None:
    width = layout.width + layout.named
    if len(cells) != width:
        raise InputError(
            f"{where}: ragged rows: {len(cells)} values, but line {layout.first} has {width}"
        )
    if layout.named and not layout.by_header and is_number(cells[0]):
        raise InputError(
            f"{where}, column 1: a number, but line {layout.first} begins with the name of a row"
        )


def _not_a_number(cells: list[str], named: int, where: str) -> InputError:
    column, word = next((i, c) for i, c in enumerate(cells, 1) if i > named and not is_number(c))
    hint = " (write decimals with '.')" if "," in word else ""
    return InputError(f"{where}, column {column}: {shortened(word)!r} is not a number{hint}")


def is_number(word: str) -> bool:
    """Whether Python reads `word` as a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True

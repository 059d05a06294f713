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
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from jaxsoftjac.cli._errors import InputError, shortened

_COMMENT = re.compile(r"(?:^|\s)#")
_QUOTED = re.compile(r'"[^"]*"')
_WHOLE = re.compile(r"[-+]?[0-9]+")
_ROW_HEADS = ("", "id", "index", "row")  # heads of a column that names the rows

Record = tuple[int, list[str]]  # the number of a line, and its cells


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
    header, opening = _opening(records, name)
    layout = _layout(header, opening[0], name)
    values, lines = array("d"), array("Q")
    for line, cells in chain(opening, records):
        _require_shape(cells, layout, f"{name}: line {line}")
        try:
            values.extend(map(as_number, cells[layout.named :]))
        except ValueError:
            raise _not_a_number(cells, layout.named, f"{name}: line {line}") from None
        lines.append(line)
    table = np.frombuffer(values).reshape(-1, layout.width)
    if not (table < np.inf).all():
        row, column = np.unravel_index(np.argmin(table < np.inf), table.shape)
        where = f"line {lines[row]}, column {column + 1 + layout.named}"
        raise InputError(f"{name}: {where}: {table[row, column]} is not finite")
    return Table(table, layout.classes)


def _records(stream: Iterable[bytes], name: str) -> Iterator[Record]:
    """The number and the cells of each line that has any; of quoted cells that go on, the last."""
    raw_lines = (line for raw in stream for line in raw.splitlines())  # a lone CR ends a line too
    lines = (_decoded(raw, f"{name}: line {i}") for i, raw in enumerate(raw_lines, 1))
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


def _opening(records: Iterator[Record], name: str) -> tuple[list[str] | None, list[Record]]:
    """The header, if there is one, and the first rows of those that follow."""
    opening = list(islice(records, 2))
    if not opening:
        raise InputError(f"{name}: empty: no logits")
    line, cells = opening[0]
    if not _is_header(cells, opening[-1][1]):
        return None, opening
    if len(opening) == 1:
        word = shortened(cells[0])
        where = f"{name}: line {line}, column 1"
        raise InputError(f"{where}: {word!r} is not a number, and no rows follow a header")
    return cells, opening[1:]


def _is_header(cells: list[str], following: list[str]) -> bool:
    """Whether no cell is a number, or they count the classes as pandas does.

    A first line 0, 1, …, K − 1 is a header if what follows is not in whole numbers too.
    """
    if not any(map(is_number, cells)):
        return any(cells)
    if cells == _counted(len(cells)):
        return not all(map(_WHOLE.fullmatch, following))
    return not is_number(cells[0]) and len(cells) > 1 and cells[1:] == _counted(len(cells) - 1)


def _counted(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _layout(header: list[str] | None, first: Record, name: str) -> _Layout:
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


def as_number(word: str) -> float:
    """The number, also as reports write it: with a minus sign in place of a hyphen, or ∞."""
    return float(word.replace("−", "-").replace("∞", "inf"))


def is_number(word: str) -> bool:
    """Whether `as_number` can read it."""
    try:
        as_number(word)
    except ValueError:
        return False
    return True

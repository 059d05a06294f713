"""Rows of logits from a file, or an `InputError` that says exactly what is wrong and where.

Arrays (`.npy`, `.npz`) count rows and columns from 0, as NumPy does; text (`.csv`, `.txt`, standard
input) counts lines and columns from 1, as editors do. A `.npy` file is mapped into memory anew for
each block of rows, so that the pages already read do not add up in the resident memory.

>>> numbers(["2.0", "1.0"], name="example").rows(0, 1)
array([[2., 1.]])
"""

import re
import sys
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SEPARATOR = re.compile(r" *[,;\t] *| +")
_STRIP_BYTES = 2**27  # mapped at a time when the rows do not lie one after another in the file


class InputError(ValueError):
    """Input that the command line cannot use; its text is one line for the user."""


@dataclass(frozen=True)
class Logits:
    """N rows of K logits: `load()` gives them as one array [N, K], mapped or in memory."""

    name: str
    shape: tuple[int, int]
    load: Callable[[], np.ndarray]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A copy of the rows [start, stop), which must all be finite."""
        view, (count, width) = self.load(), self.shape
        strip = width
        if not view.flags.c_contiguous:
            strip = max(1, _STRIP_BYTES // (count * view.itemsize))
        del view
        strips = range(0, width, strip)
        block = np.concatenate(
            [np.array(self.load()[start:stop, left : left + strip]) for left in strips], axis=1
        )
        self._require(np.isfinite(block), block, start, "is not finite")
        return block

    def cast(self, block: np.ndarray, start: int, dtype: np.dtype, temperature: float):
        """`block / temperature` in `dtype`; a logit that overflows there is an error."""
        with np.errstate(over="ignore"):
            logits = (block.astype(np.float64) / temperature).astype(dtype)
        problem = f"divided by the temperature {temperature:g} does not fit {dtype.name}"
        self._require(np.isfinite(logits), block, start, problem)
        return logits

    def _require(self, good: np.ndarray, block: np.ndarray, start: int, problem: str):
        if not good.all():
            row, column = np.unravel_index(np.argmin(good), good.shape)
            value = block[row, column]
            raise InputError(f"{self.name}: row {start + row}, column {column}: {value} {problem}")


def numbers(words: Iterable[str], *, name: str, axis: int = -1) -> Logits:
    """One row of numbers that are written out; `name` is what errors call it."""
    row = np.array([_number(word, f"{name}: number {i}") for i, word in enumerate(words, 1)])
    return _in_memory(name, row, axis)


def read_logits(source: str, *, key: str | None = None, axis: int = -1) -> Logits:
    """The rows of logits in `source`, a path or `-` for standard input.

    Args:
        source: A `.npy`, `.npz`, `.csv` or `.txt` file, or `-`.
        key: The name of the array in an `.npz` file that holds several.
        axis: The axis along which the logits of one row lie.

    Returns:
        The rows; one row for an array of one dimension.

    Raises:
        InputError: if the file cannot be read as finite, real numbers of one or two dimensions.
    """
    suffix = Path(source).suffix.lower()
    if key is not None and suffix != ".npz":
        raise InputError(f"{source}: --key is for .npz files")
    try:
        if source == "-":
            return _in_memory("standard input", _text(sys.stdin.buffer, "standard input"), axis)
        if suffix == ".npy":
            return _mapped(source, axis)
        if suffix == ".npz":
            return _in_memory(source, _npz(source, key), axis)
        if suffix in (".csv", ".txt"):
            with open(source, "rb") as stream:
                return _in_memory(source, _text(stream, source), axis)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from None
    raise InputError(
        f"{source}: unknown suffix {suffix!r}: expected numbers, .npy, .npz, .csv, .txt or -"
    )


def _in_memory(name: str, stored: np.ndarray, axis: int) -> Logits:
    rows = _as_rows(name, stored, axis)
    return Logits(name, rows.shape, lambda: rows)


def _mapped(path: str, axis: int) -> Logits:
    def load() -> np.ndarray:
        try:
            stored = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, EOFError, OverflowError) as error:
            if "Python objects" in str(error):
                raise InputError(f"{path}: holds pickled Python objects, not numbers") from None
            raise InputError(f"{path}: truncated, or not a .npy file ({error})") from None
        return _as_rows(path, stored, axis)

    return Logits(path, load().shape, load)


def _npz(path: str, key: str | None) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            archive = np.load(file)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: not an .npz file")
            return np.asarray(archive[_choose(path, archive.files, key)])
    except InputError:
        raise
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise InputError(f"{path}: holds pickled Python objects, not numbers") from None
        raise InputError(f"{path}: truncated, or not an .npz file ({error})") from None


def _choose(path: str, names: list[str], key: str | None) -> str:
    holds = f"holds {', '.join(names) or 'no arrays'}"
    if key is None and len(names) != 1:
        raise InputError(f"{path}: choose an array with --key: the file {holds}")
    if key is not None and key not in names:
        raise InputError(f"{path}: no array is named {key!r}: the file {holds}")
    return names[0] if key is None else key


def _as_rows(name: str, stored: np.ndarray, axis: int) -> np.ndarray:
    if stored.dtype.kind not in "fiu":
        raise InputError(f"{name}: not numeric: dtype {stored.dtype} is not of real numbers")
    if stored.ndim not in (1, 2):
        raise InputError(f"{name}: wrong number of dimensions: expected 1 or 2, got {stored.ndim}")
    if not -stored.ndim <= axis < stored.ndim:
        raise InputError(f"{name}: --axis {axis} is out of range for shape {stored.shape}")
    if stored.size == 0:
        raise InputError(f"{name}: empty: shape {stored.shape} holds no logits")
    return np.atleast_2d(np.moveaxis(stored, axis, -1))


def _text(stream: Iterable[bytes], name: str) -> np.ndarray:
    values, width, first = array("d"), 0, 0
    for line, raw in enumerate(stream, 1):
        where = f"{name}: line {line}"
        words = _words(raw, where)
        if not words:
            continue
        values.extend(_number(word, f"{where}, column {i}") for i, word in enumerate(words, 1))
        if first and len(words) != width:
            raise InputError(
                f"{where}: ragged rows: {len(words)} values, but line {first} has {width}"
            )
        width, first = len(words), first or line
    if not first:
        raise InputError(f"{name}: empty: no logits")
    return np.frombuffer(values).reshape(-1, width)


def _words(raw: bytes, where: str) -> list[str]:
    try:
        line = raw.decode("utf-8-sig").split("#", 1)[0].strip()
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text") from None
    if "," in line and ";" in line:
        raise InputError(f"{where}: both ',' and ';' separate values (write decimals with '.')")
    return _SEPARATOR.split(line) if line else []


def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise InputError(f"{where}: {word.strip()!r} is not a number") from None
    if not isfinite(value):
        raise InputError(f"{where}: {word.strip()} is not finite")
    return value


def save_picture(figure: "Figure", path: str) -> None:
    """Write a picture that the command line was asked for.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=200)
    except OSError as error:
        raise InputError(f"--plot {path}: cannot be written: {error.strerror or error}") from None

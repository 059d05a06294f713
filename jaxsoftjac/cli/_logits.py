"""Rows of logits, wherever they are stored: mapped from a file or held in memory.

>>> numbers(["2.0", "1.0"], name="example").rows(0, 1)
array([[2., 1.]])
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np

from jaxsoftjac.cli._errors import InputError, shortened
from jaxsoftjac.cli._tables import as_number

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_STRIP_BYTES = 2**27  # mapped at a time when the rows do not lie one after another in the file


@dataclass(frozen=True)
class Logits:
    """Rows of K logits.

    Attributes:
        name: What errors and reports call them.
        lead: The shape of the array without its class axis; rows count through it, as in C.
        width: K.
        load: Gives the array [*lead, K], mapped anew at each call or held in memory.
        classes: The K names of the classes, or none.
    """

    name: str
    lead: tuple[int, ...]
    width: int
    load: Callable[[], np.ndarray]
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """N, the number of rows, and K."""
        return prod(self.lead), self.width

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A copy of the rows [start, stop): numbers, and −∞ for classes that are excluded.

        Raises:
            InputError: at a NaN or +∞, or where every class of a row is excluded.
        """
        places, strip = np.unravel_index(np.arange(start, stop), self.lead), self.width
        view = self.load()
        if not view.flags.c_contiguous:
            strip = max(1, _STRIP_BYTES // (prod(self.lead) * view.itemsize))
        del view  # for the pages of a mapping count as this process's memory until it is gone
        strips = range(0, self.width, strip)
        parts = [np.array(self.load()[..., left : left + strip][places]) for left in strips]
        block = np.concatenate(parts, axis=1)
        block = block.astype(np.float32) if block.dtype == BFLOAT16 else block
        self._require(block < np.inf, block, start, "is not finite")
        excluded = np.all(block == -np.inf, axis=1)
        if excluded.any():
            row = self._named(start + int(np.argmax(excluded)))
            raise InputError(f"{self.name}: {row}: every logit is -inf: a row needs one class")
        return block

    def cast(
        self, block: np.ndarray, start: int, dtype: np.dtype, temperature: float
    ) -> np.ndarray:
        """`block / temperature` in `dtype`; a logit that overflows there is an error."""
        with np.errstate(over="ignore"):
            logits = (block.astype(np.float64) / temperature).astype(dtype)
        problem = f"divided by the temperature {temperature:g} does not fit {dtype.name}"
        self._require(np.isfinite(logits) | (block == -np.inf), block, start, problem)
        return logits

    def _require(self, good: np.ndarray, block: np.ndarray, start: int, problem: str) -> None:
        if not good.all():
            row, column = np.unravel_index(np.argmin(good), good.shape)
            where = f"{self._named(start + int(row))}, column {column}"
            raise InputError(f"{self.name}: {where}: {block[row, column]} {problem}")

    def _named(self, row: int) -> str:
        if len(self.lead) == 1:
            return f"row {row}"
        place = ", ".join(str(i) for i in np.unravel_index(row, self.lead))
        return f"row {row} at [{place}]"


def along(
    axis: int,
    shape: tuple[int, ...],
    load: Callable[[], np.ndarray],
    *,
    name: str,
    classes: tuple[str, ...] = (),
) -> Logits:
    """The rows of the array of this shape that `load` gives, with the classes on `axis`.

    Raises:
        InputError: if the array has no such axis, or is empty.
    """
    if not shape:
        raise InputError(f"{name}: wrong number of dimensions: expected 1 or more, got 0")
    if not -len(shape) <= axis < len(shape):
        raise InputError(f"{name}: --axis {axis} is out of range for shape {shape}")
    if prod(shape) == 0:
        raise InputError(f"{name}: empty: shape {shape} holds no logits")
    lead = tuple(np.delete(shape, axis).tolist())

    def rows() -> np.ndarray:
        return np.atleast_2d(np.moveaxis(load(), axis, -1))

    is_last = axis % len(shape) == len(shape) - 1
    return Logits(name, lead or (1,), shape[axis], rows, classes if is_last else ())


def held(stored: np.ndarray, axis: int, *, name: str, classes: tuple[str, ...] = ()) -> Logits:
    """The rows of an array in memory."""
    require_real(stored.dtype, name)
    return along(axis, stored.shape, lambda: stored, name=name, classes=classes)


def require_real(dtype: np.dtype, name: str) -> None:
    """An `InputError` unless `dtype` is of real numbers."""
    if dtype.kind not in "fiu" and dtype != BFLOAT16:
        shown = shortened(str(dtype))
        raise InputError(f"{name}: not numeric: dtype {shown} is not of real numbers")


def numbers(words: Iterable[str], *, name: str, axis: int = -1) -> Logits:
    """One row of numbers that are written out; `name` is what errors call it."""
    row = np.array([_number(word, f"{name}: number {i}") for i, word in enumerate(words, 1)])
    return held(row, axis, name=name)


def _number(word: str, where: str) -> float:
    try:
        value = as_number(word)
    except ValueError:
        raise InputError(f"{where}: {shortened(word)!r} is not a number") from None
    if not value < np.inf:
        raise InputError(f"{where}: {shortened(word)} is not finite")
    return value

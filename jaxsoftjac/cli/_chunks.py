"""Rows of logits of any number, measured in chunks, so that memory does not grow with them.

>>> import numpy as np
>>> from jaxsoftjac.diagnostics import gradient_flow
>>> read = lambda start, stop: np.zeros((stop - start, 4), np.float32)
>>> measure_rows(gradient_flow, read, range(0, 10), cost=4)["max_probability"].shape
(10,)
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK_ELEMENTS = 2**22  # of logits, or of J where it is formed

Measurements = dict[str, np.ndarray]


def measure_rows(
    measure: Callable, read: Callable[[int, int], np.ndarray], rows: range, *, cost: int
) -> Measurements:
    """The fields that `measure` gives of each row; of vectors, those of a single row only.

    Args:
        measure: A function of logits [n, K] that returns a NamedTuple of arrays [n, ...].
        read: Gives the rows [start, stop).
        rows: Which rows to measure.
        cost: Elements that one row takes.

    Returns:
        Arrays of the length of `rows`, by field.
    """
    program, parts = jax.jit(measure), []
    for chunk in _chunks(read, rows, cost):
        fields = program(jnp.asarray(chunk))._asdict()
        parts.append({k: np.asarray(v) for k, v in fields.items() if v.ndim == 1 or len(rows) == 1})
    return {name: np.concatenate([p[name] for p in parts])[: len(rows)] for name in parts[0]}


def _chunks(read: Callable[[int, int], np.ndarray], rows: range, cost: int) -> Iterator[np.ndarray]:
    """The rows in chunks of one shape, so that one compilation serves; the last one is padded."""
    size = min(len(rows), max(1, _CHUNK_ELEMENTS // cost))
    with _progress(len(rows)) as bar:
        for start in range(rows.start, rows.stop, size):
            chunk = read(start, min(start + size, rows.stop))
            yield chunk[np.minimum(np.arange(size), len(chunk) - 1)]
            if bar is not None:
                bar.update(len(chunk))


def _progress(total: int) -> Any:
    if not sys.stderr.isatty():
        return nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext()
    return tqdm(total=total, unit="row", leave=False)

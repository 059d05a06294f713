"""Tools that every comparison shares: timing in turn, bytes, agreement, reports, optional peers.

Ours and its peers are called in turn in one run, and what is reported is the median of the ratios
of neighbouring calls: what slows the machine for a while slows both.
"""

import importlib
import operator
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Thunk = Callable[[], Any]

geometric_mean = statistics.geometric_mean


class Disagreement(Exception):
    """A result differs from its reference: timing it would be meaningless."""


class Ratio(NamedTuple):
    """Median of the pairwise ratios of two series of timings, with their quartiles."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        """The median, and the quartiles in brackets."""
        return f"{self.median:.2f} [{self.lower:.2f}, {self.upper:.2f}]"


@dataclass
class Table:
    """A title, a header, and rows of as many texts, the first of which names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        """Columns laid out under a rule, as wide as their widest text."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.header, ["─" * width for width in widths], *self.rows]
        laid_out = (
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        )
        return "\n".join([*filter(None, [self.title]), *laid_out])


@dataclass
class Claim:
    """A statement of the library, the bound that it names, and what was measured for it."""

    text: str
    target: float
    measured: float
    at_most: bool = True
    met: bool = field(init=False)

    def __post_init__(self):
        """Compare, so that a NaN does not meet a claim."""
        compare = operator.le if self.at_most else operator.ge
        self.met = bool(compare(self.measured, self.target))


@dataclass
class Report:
    """All that one subject measured; `absent` names the peers that are not installed."""

    subject: str
    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def add(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Append a table; its cells become texts."""
        self.tables.append(Table(title, list(header), [[str(c) for c in row] for row in rows]))

    def __str__(self) -> str:
        """All tables, then the absent peers."""
        absent = [f"{peer}: not installed, left out" for peer in self.absent]
        return "\n\n".join([*map(str, self.tables), *absent])


def claims_table(reports: Sequence[Report]) -> Table:
    rows = [
        [
            claim.text,
            f"{'≤' if claim.at_most else '≥'} {claim.target:.6g}",
            f"{claim.measured:.3g}",
            "met" if claim.met else "not met",
        ]
        for report in reports
        for claim in report.claims
    ]
    return Table("", ["claim", "target", "measured", ""], rows)


def check_agreement(name: str, actual: Any, expected: np.ndarray, tolerance: float) -> None:
    """Raise `Disagreement` unless max|actual − expected| ≤ tolerance·max|expected|."""
    actual = np.asarray(actual, np.longdouble)
    if actual.shape != expected.shape:
        raise Disagreement(f"{name}: shape {actual.shape}, reference {expected.shape}")
    size = np.max(np.abs(expected), initial=np.finfo(np.float64).tiny)
    error = float(np.max(np.abs(actual - expected), initial=0) / size)
    if not error <= tolerance:  # a NaN fails too
        raise Disagreement(f"{name}: relative error {error:.1e}, allowed {tolerance:.1e}")


def time_in_turn(
    callables: Mapping[str, Thunk],
    repeats: int,
    *,
    shortest: float = 2e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each, `repeats` times in turn; every other round runs backwards.

    A timing covers as many calls as last `shortest` seconds. Each callable is called twice before:
    the first call may compile.
    """
    calls = {}
    for name, thunk in callables.items():
        _seconds(thunk, 1, clock)
        calls[name] = max(1, int(shortest / max(_seconds(thunk, 1, clock), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in callables}
    for i in range(repeats):
        for name in list(callables)[:: -1 if i % 2 else 1]:
            times[name].append(_seconds(callables[name], calls[name], clock) / calls[name])
    return times


def _seconds(thunk: Thunk, calls: int, clock: Callable[[], float]) -> float:
    start, result = clock(), None
    for _ in range(calls):
        result = jax.block_until_ready(thunk())
    elapsed = clock() - start
    del result  # freeing the last output is not timed
    return elapsed


def ratio(times: Sequence[float], base: Sequence[float]) -> Ratio:
    """Median and quartiles of the ratios of paired timings."""
    lower, median, upper = np.quantile(np.divide(times, base), (0.25, 0.5, 0.75)).tolist()
    return Ratio(median, lower, upper)


def temp_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes of temporaries of a compiled program; None where the backend does not tell."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def same_bytes_add(nbytes: int) -> Thunk:
    """The physical limit: a float32 addition that reads and writes `nbytes` bytes in all."""
    a = jnp.ones((max(1, nbytes // 12),), jnp.float32)  # two inputs and one output of 4 bytes
    b = jnp.full_like(a, 2)
    add = jax.jit(jnp.add)
    return lambda: add(a, b)


def optional_peer(name: str, report: Report) -> Any:
    """The peer's module, or None if it is not installed, which the report then says."""
    try:
        return importlib.import_module(name)
    except ImportError:
        report.absent.append(name)
        return None


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

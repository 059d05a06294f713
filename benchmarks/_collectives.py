"""What a program compiled for CPU sends between devices, read from its text.

The bytes of a collective are those of the larger of what goes into it and what comes out, on one
device; those in a loop count as often as it runs, those among groups of one device not at all. A
ring sends about twice that for an all-reduce, once for the others.
"""

import re
from collections import Counter
from typing import NamedTuple

import jax

from benchmarks._hlo import COMPUTATION, INSTRUCTION, nbytes, operands_of

KINDS = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
_CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|\S+)")
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}(,\{\d+\})*\}|\[\d+,1\])")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")  # as JAX 0.12 writes it
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class _Computation(NamedTuple):
    sent: Counter[str]
    called: list[tuple[str, int]]  # what it calls, and how often


def collective_bytes(compiled: jax.stages.Compiled) -> Counter[str]:
    """Bytes per kind of collective, on one device."""
    computations, entry = _computations(compiled.as_text() or "")

    def total(name: str) -> Counter[str]:
        sent, called = computations[name]
        result = Counter(sent)
        for other, times in called:
            for kind, amount in total(other).items():
                result[kind] += times * amount
        return result

    return total(entry)


def _computations(text: str) -> tuple[dict[str, _Computation], str]:
    computations, entry, sizes = {}, "", {}
    current = _Computation(Counter(), [])
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current, sizes = _Computation(Counter(), []), {}
            computations[head[2]] = current
            entry = head[2] if head[1] else entry
        elif instruction := INSTRUCTION.match(line):
            _read(instruction, current, sizes)
    return computations, entry


def _read(instruction: re.Match[str], into: _Computation, sizes: dict[str, int]) -> None:
    name, type_, opcode, rest = instruction.groups()
    sizes[name] = nbytes(type_)
    if opcode in KINDS and not _is_alone(rest):
        into.sent[opcode] += max(sizes[name], sum(sizes.get(o, 0) for o in operands_of(rest)))
    trips = _TRIPS.search(rest)
    if opcode == "while" and trips is None:
        raise ValueError(f"{name}: a loop that does not tell how often it runs")
    for called in _CALLED.findall(rest):
        times = int(trips[1]) if trips else 1
        into.called.extend((o, times) for o in re.findall(r"%?([\w.\-]+)", called.strip("{},")))


def _is_alone(attributes: str) -> bool:
    """Whether each device is a group of its own."""
    if groups := _MESH.search(attributes):
        sizes = dict(axis.split("=") for axis in groups[1].split(","))
        return all(sizes.get(name.strip()) == "1" for name in groups[2].split(","))
    return _ALONE.search(attributes) is not None

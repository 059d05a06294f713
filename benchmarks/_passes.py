"""The passes over memory of a program compiled for CPU, read from its text.

Each fusion, reduction and other operation of a program reads its operands and writes its results
once; arrays of at least half the size of the logits are counted, in the body of a loop once. A pass
that is added shows here without a clock.
"""

import re
from typing import NamedTuple

import jax

from benchmarks._hlo import COMPUTATION, INSTRUCTION, array_sizes, operands_of

# What moves nothing, or only hands on what another computation moves.
_FREE = "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"
_INNER = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")


class Pass(NamedTuple):
    """A visit of arrays of the logits' size."""

    name: str  # as the compiler calls it
    reads: int
    writes: int

    def __str__(self) -> str:
        """Its name and how many arrays it reads and writes."""
        return f"{self.name} {self.reads}r{self.writes}w"


def passes(compiled: jax.stages.Compiled, elements: int) -> list[Pass]:
    """The passes of a program over arrays of as many `elements`, in the order of its text."""
    lines = (compiled.as_text() or "").splitlines()
    found, inner = [INSTRUCTION.match(line) for line in lines], set()
    for instruction in filter(None, found):
        if instruction[3] != "call":
            inner.update(_INNER.findall(instruction[4]))
    visits: list[Pass] = []
    sizes: dict[str, list[int]] = {}
    is_visited = False
    for line, instruction in zip(lines, found, strict=True):
        if head := COMPUTATION.match(line):
            is_visited = head[2] not in inner
        elif is_visited and instruction:
            name, type_, opcode, rest = instruction.groups()
            sizes[name] = array_sizes(type_)
            reads, writes = (
                sum(2 * size >= elements for n in names for size in sizes.get(n, []))
                for names in (operands_of(rest), [name])
            )
            if opcode not in _FREE and reads + writes:
                visits.append(Pass(re.sub(r"[.\d]+$", "", name), reads, writes))
    return visits


def arrays(visits: list[Pass]) -> int:
    """How many arrays of the logits' size the passes read and write in all."""
    return sum(visit.reads + visit.writes for visit in visits)

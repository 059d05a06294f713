"""The text of a program compiled for CPU: computations, instructions, and the sizes of arrays."""

import math
import re
from collections import Counter, defaultdict

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_ROUNDS = re.compile(r"known_trip_count\W+n\W+(\d+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")


def operands_of(rest: str) -> list[str]:
    """The names of the operands, from what follows the opcode."""
    return re.findall(r"%([\w.\-]+)", rest.partition(")")[0])


def array_sizes(type_: str) -> list[int]:
    """The number of elements of each array of a type."""
    return [_elements(shape) for _, shape in _ARRAY.findall(type_)]


def nbytes(type_: str) -> int:
    """The bytes of the arrays of a type."""
    bits = (
        8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
        for dtype, _ in _ARRAY.findall(type_)
    )
    return sum(b // 8 * n for b, n in zip(bits, array_sizes(type_), strict=True))


def _elements(shape: str) -> int:
    size = 1
    for n in filter(None, shape.split(",")):
        size *= int(n)
    return size


def multiplications(text: str) -> float:
    """Of numbers, in the products of matrices of a program, in all rounds of its loops."""
    sizes: dict[str, int] = {}
    own, within = Counter(), defaultdict(list)
    entry = current = ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current = head[2]
            entry = current if head[1] else entry
        elif instruction := INSTRUCTION.match(line):
            name, type_, opcode, rest = instruction.groups()
            sizes[name] = sum(array_sizes(type_))
            if opcode == "dot":  # M·K·N from the sizes M·K, K·N and M·N
                of_three = math.prod(sizes[n] for n in (*operands_of(rest), name))
                own[current] += math.isqrt(of_three)
            rounds = _ROUNDS.search(rest)
            times = int(rounds[1]) if rounds else 1
            within[current] += [(called, times) for called in _CALLED.findall(rest)]

    def total(computation: str) -> float:
        calls = (times * total(called) for called, times in within[computation])
        return own[computation] + sum(calls)

    return total(entry)

"""The text of a program compiled for CPU: computations, instructions, and the sizes of arrays."""

import re

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
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

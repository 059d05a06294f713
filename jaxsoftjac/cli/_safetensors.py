"""Logits in `.safetensors` files, mapped; safetensors is of the optional extra `files`.

The library checks the file; the tensor is mapped here, for the library copies all of it and has no
bfloat16 in NumPy.
"""

import json
from math import prod

import numpy as np

from jaxsoftjac.cli._errors import InputError, chosen, optional, refusing
from jaxsoftjac.cli._logits import BFLOAT16, Logits, along

_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"},
}


def map_safetensors(path: str, key: str | None, axis: int) -> Logits:
    """The rows of one tensor.

    Raises:
        InputError: if the file is malformed, does not hold such a tensor of real numbers, or
            safetensors is not installed.
    """
    library = optional("safetensors", path)
    with refusing(path, "a .safetensors file"):
        with library.safe_open(path, framework="numpy") as file:
            name = chosen(path, sorted(file.keys()), key)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensor = json.loads(file.read(length))[name]
        if tensor["dtype"] not in _DTYPES:
            kind = tensor["dtype"]
            raise InputError(f"{path}: not numeric: dtype {kind} is not of real numbers read here")
    shape, dtype = tuple(tensor["shape"]), np.dtype(_DTYPES[tensor["dtype"]])
    offset, size = 8 + length + tensor["data_offsets"][0], prod(shape) * dtype.itemsize

    def load() -> np.ndarray:
        return np.memmap(path, np.uint8, "r", offset, (size,)).view(dtype).reshape(shape)

    return along(axis, shape, load, name=path)

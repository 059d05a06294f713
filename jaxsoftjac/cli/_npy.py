"""Arrays that NumPy has saved, in files of their own (`.npy`) and in archives (`.npz`).

A `.npy` file is mapped into memory anew for each block of rows, so that the pages already read do
not add up in the resident memory; so is a member that an archive holds uncompressed.

>>> import io
>>> file = io.BytesIO()
>>> np.save(file, np.arange(3.0))
>>> _ = file.seek(0)
>>> read_npy(file, name="example")
array([0., 1., 2.])
"""

import os
import zipfile
from collections.abc import Callable
from math import prod
from typing import Literal, NamedTuple, Protocol

import numpy as np

from jaxsoftjac.cli._errors import InputError, chosen, refusing
from jaxsoftjac.cli._logits import BFLOAT16, Logits, along, held, require_real

MAGIC = np.lib.format.MAGIC_PREFIX
_PIECE = 2**24  # bytes that are read at a time, so that a false header does not allocate
_READERS: dict[tuple[int, int], Callable] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs in names of fields, which are no logits
}


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`."""
        ...


class _Header(NamedTuple):
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def most_bytes(stored: int) -> int:
    """How far `stored` bytes may expand: real logits do so a few times, a zip bomb 1000 times."""
    return max(2**26, 100 * stored)


def map_npy(path: str, axis: int) -> Logits:
    """The rows of a `.npy` file, mapped.

    Raises:
        InputError: if it is malformed, or not of real numbers.
    """
    with refusing(path, "a .npy file"), open(path, "rb") as file:
        return _mapped(path, path, 0, os.fstat(file.fileno()).st_size, axis)


def _mapped(name: str, path: str, start: int, size: int, axis: int) -> Logits:
    with open(path, "rb") as file:
        file.seek(start)
        header = _header(file, name)
        offset = file.tell()
    _require_size(header, size - (offset - start), name)

    def load() -> np.ndarray:
        stored = np.memmap(path, np.uint8, "r", offset, (header.size,))
        return stored.view(header.dtype).reshape(header.shape, order=header.order)

    load()  # finds out, while errors are still turned into one line, that this shape can be had
    return along(axis, header.shape, load, name=name)


def read_npy(stream: Readable, *, name: str, most: int | None = None) -> np.ndarray:
    """The array in a stream, of which no more than the header declares is read.

    Raises:
        InputError: if it is malformed, not of real numbers, or of more than `most` bytes.
    """
    with refusing(name, "a .npy file"):
        header = _header(stream, name)
        if most is not None and header.size > most:
            raise InputError(f"{name}: expands to {header.size} bytes, over 100 times the file")
        data = read_up_to(stream, header.size)
        _require_size(header, len(data), name)
        stream.read(1)  # the end of what is compressed, where its checksum is
        return np.frombuffer(data, header.dtype).reshape(header.shape, order=header.order)


def read_npz(path: str, key: str | None, axis: int) -> Logits:
    """The rows of one array of an archive: mapped, or in memory if it is compressed.

    Raises:
        InputError: if the archive is malformed, or does not hold such an array of real numbers.
    """
    with refusing(path, "an .npz file"), open(path, "rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            raise InputError(f"{path}: not an .npz file, but a .npy file")
        archive = zipfile.ZipFile(file)
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        info = archive.getinfo(chosen(path, names, key) + ".npy")
        most = most_bytes(os.fstat(file.fileno()).st_size)
        with archive.open(info) as stream:  # checks the member's own header
            if info.compress_type != zipfile.ZIP_STORED:
                return held(read_npy(stream, name=path, most=most), axis, name=path)
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")  # of the member's name and extra field
        start = info.header_offset + 30 + int(lengths.sum())
        size = min(info.file_size, os.fstat(file.fileno()).st_size - start)
        return _mapped(path, path, start, size, axis)


def read_up_to(stream: Readable, size: int) -> bytearray:
    """The next `size` bytes of a stream, or all that there are."""
    data = bytearray()
    while len(data) < size and (piece := stream.read(min(_PIECE, size - len(data)))):
        data += piece
    return data


def _header(stream: Readable, name: str) -> _Header:
    version = np.lib.format.read_magic(stream)
    if version not in _READERS:
        raise InputError(f"{name}: a .npy file of unknown version {version[0]}.{version[1]}")
    shape, is_fortran, dtype = _READERS[version](stream)
    if dtype.hasobject:
        raise InputError(f"{name}: holds pickled Python objects, not numbers")
    if dtype == np.dtype("V2"):  # NumPy has no name for it in a file
        dtype = BFLOAT16
    require_real(dtype, name)
    if min(shape, default=0) < 0:
        raise InputError(f"{name}: malformed: a shape of {shape}")
    return _Header(tuple(map(int, shape)), "F" if is_fortran else "C", dtype)


def _require_size(header: _Header, size: int, name: str) -> None:
    if size < header.size:
        raise InputError(
            f"{name}: truncated: {header.size} bytes expected for shape {header.shape}, got {size}"
        )

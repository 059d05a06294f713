"""Logits from a file of any kind, or an `InputError` that says exactly what is wrong and where.

Arrays count rows and columns from 0, as NumPy does; text counts lines and columns from 1, as
editors do.

>>> read_logits("logits.csv", key="a")
Traceback (most recent call last):
jaxsoftjac.cli._errors.InputError: logits.csv: --key is for .npz, .safetensors, .parquet files
"""

import gzip
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from jaxsoftjac.cli._errors import InputError, cannot_read, refusing, shortened
from jaxsoftjac.cli._logits import Logits, held
from jaxsoftjac.cli._npy import MAGIC, map_npy, most_bytes, read_npy, read_npz, read_up_to
from jaxsoftjac.cli._parquet import read_parquet
from jaxsoftjac.cli._safetensors import map_safetensors
from jaxsoftjac.cli._tables import read_table

_ZIP = b"PK\x03\x04"  # what .npz begins with
_TEXTS = (".csv", ".tsv", ".txt")
_KEYED = {".npz": read_npz, ".safetensors": map_safetensors, ".parquet": read_parquet}
_EXPECTED = ".npy, .csv, .tsv or .txt, also with .gz, .npz, .safetensors, .parquet, numbers or -"


def read_logits(source: str, *, key: str | None = None, axis: int = -1) -> Logits:
    """The rows of logits in `source`.

    Args:
        source: A path, `path:key` for a file of several arrays, or `-` for standard input.
        key: The name of the array in such a file.
        axis: The axis along which the logits of one row lie.

    Returns:
        The rows, flattened where there are more than two dimensions; one row where there is one.

    Raises:
        InputError: if the file cannot be read as real numbers, finite or −∞.
    """
    source, key = _with_key(source, key)
    suffix = _suffix(source)
    if key is not None and suffix not in _KEYED:
        raise InputError(f"{shortened(source, 200)}: --key is for {', '.join(_KEYED)} files")
    try:
        if source == "-":
            return _standard_input(axis)
        if suffix in _KEYED:
            return _KEYED[suffix](source, key, axis)
        if suffix == ".npy":
            return map_npy(source, axis)
        if suffix in _TEXTS:
            with open(source, "rb") as stream:
                return _table(stream, source, axis)
        if suffix == ".gz" and _suffix(source[:-3]) in (".npy", *_TEXTS):
            return _decompressed(source, axis)
    except OSError as error:
        raise cannot_read(source, error) from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shortened(source, 200)!r}: cannot be read: {error}") from None
    named = shortened(source, 200)
    raise InputError(f"{named}: unknown suffix {shortened(suffix)!r}: expected {_EXPECTED}")


def _suffix(source: str) -> str:
    return Path(source).suffix.lower()


def _with_key(source: str, key: str | None) -> tuple[str, str | None]:
    """`path:key` taken apart, unless there is a file of that very name."""
    path, colon, name = source.rpartition(":")
    if not colon or _suffix(path) not in _KEYED or os.path.exists(source):
        return source, key
    if key is not None:
        raise InputError(f"{shortened(source, 200)}: names a key, and so does --key")
    return path, name


def _standard_input(axis: int) -> Logits:
    name = "standard input"
    if sys.stdin is None:
        raise InputError(f"{name}: is closed")
    stream = io.BufferedReader(sys.stdin.buffer)  # pyright: ignore[reportArgumentType]
    try:
        if stream.peek(len(MAGIC)).startswith(MAGIC):
            return held(read_npy(stream, name=name), axis, name=name)
        if stream.peek(len(_ZIP)).startswith(_ZIP):
            raise InputError(f"{name}: looks like .npz, which is read from a file only")
        return _table(stream, name, axis)
    finally:
        stream.detach()  # else standard input is closed with it


def _decompressed(path: str, axis: int) -> Logits:
    most = most_bytes(os.path.getsize(path))
    with refusing(path, "a gzip file"), gzip.open(path) as stream:
        if _suffix(path[:-3]) == ".npy":
            return held(read_npy(stream, name=path, most=most), axis, name=path)
        text = read_up_to(stream, most + 1)
        if len(text) > most:
            raise InputError(f"{path}: expands to more than {most} bytes, 100 times the file")
        return _table(io.BytesIO(text), path, axis)


def _table(stream: Iterable[bytes], name: str, axis: int) -> Logits:
    with refusing(name, "a table of numbers"):
        table = read_table(stream, name=name)
    return held(table.values, axis, name=name, classes=table.classes)

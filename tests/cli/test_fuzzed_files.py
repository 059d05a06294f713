"""2000 files that chance has spoilt: each is read, or refused in one line; nothing else happens.

`JAXSOFTJAC_FUZZED_FILES=100000 python -m pytest tests/cli/test_fuzzed_files.py` tries many more.
"""

import gzip
import io
import os
import re
import zipfile
from importlib.util import find_spec

import ml_dtypes
import numpy as np
import pytest

from jaxsoftjac.cli import _inspect, _main

pytestmark = pytest.mark.once

COUNT = int(os.environ.get("JAXSOFTJAC_FUZZED_FILES", "2000"))
ARRAY = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
TEXT = b"name,cat,dog,cow\n" + b"".join(b"row %d,1.5,-2e3,-inf\n" % i for i in range(5))
WORDS = [
    *b"( ) { ' \\ # , ; - L 1e999 nan inf 999999999999999999999999".split(),
    *b"'descr' '<f8' '|O' 'V2' (-1,) True \x93NUMPY PK\x03\x04 \x1f\x8b PAR1".split(),
    *(b"\n", b"\t", b"\0", b"\xff", b"\x00\x00\x00\x80", b"\xff" * 8),
]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("logits.npy", npy(ARRAY))
    return file.getvalue()


def parquet():
    import pyarrow
    from pyarrow.parquet import write_table

    file = io.BytesIO()
    write_table(pyarrow.table({f"c{i}": column for i, column in enumerate(ARRAY.T)}), file)
    return file.getvalue()


def valid_files():
    """Pairs of a suffix and the content of a valid file."""
    files = [(".npy", npy(a)) for a in (ARRAY, ARRAY.T, ARRAY.astype(ml_dtypes.bfloat16))]
    methods = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
    files += [(".npz", npz(method)) for method in methods]
    files += [(".csv", TEXT), (".tsv", TEXT.replace(b",", b"\t")), (".txt", b"1 2\n3 -inf\n")]
    files += [(".npy.gz", gzip.compress(npy(ARRAY))), (".csv.gz", gzip.compress(TEXT))]
    if find_spec("safetensors"):
        from safetensors.numpy import save

        files.append((".safetensors", save({"logits": ARRAY})))
    if find_spec("pyarrow"):
        files.append((".parquet", parquet()))
    return files


def spoilt(content, other, chance):
    """The content after one to three mutations; half of them strike its first 128 bytes."""
    data = bytearray(content)
    for _ in range(chance.integers(1, 4)):
        reach = len(data) if chance.random() < 0.5 else min(len(data), 128)
        place = int(chance.integers(0, reach + 1))
        match chance.integers(0, 6):
            case 0:
                data[place : place + 1] = chance.bytes(1)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + int(chance.integers(1, 9))]
            case 3:
                data[place:place] = WORDS[chance.integers(len(WORDS))]
            case 4:
                word = WORDS[chance.integers(len(WORDS))]
                data[place : place + len(word)] = word
            case 5:
                data[: place % 12] = other[: place % 12]  # the magic of another format
    return bytes(data)


def read_only(logits, **_):
    """What `inspect_logits` does before it measures."""
    block = logits.rows(0, min(logits.shape[0], 100))
    logits.cast(block, 0, np.dtype(np.float32), 1.0)
    return {"all_hold": True}


def test_no_file_raises(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(_inspect, "inspect_logits", read_only)
    files, chance, refused = valid_files(), np.random.default_rng(2), 0
    for index in range(COUNT):
        suffix, content = files[index % len(files)]
        other = files[chance.integers(len(files))][1]
        path = tmp_path / f"{index % 50}{suffix}"
        path.write_bytes(spoilt(content, other, chance))
        status = _main.main(["inspect", str(path), "--json"])
        out, err = capsys.readouterr()
        if status == 2:
            assert re.fullmatch(r"jaxsoftjac: error: [^\n]{1,700}\n", err), path
            assert out == ""
        else:
            assert (status, err) == (0, ""), path
        refused += status == 2
    assert 0.3 < refused / COUNT < 0.99

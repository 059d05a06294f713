"""Files that cannot be used: one line says what is wrong and where, in bounded time and memory."""

import gzip
import io
import sys
import zipfile

import numpy as np
import pytest
from command_runs import error

pytestmark = pytest.mark.once


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


BAD_FILES = {
    "header.csv": (b"a,b\n", ["line 1", "'a' is not a number", "no rows follow"]),
    "typo.csv": (b"1,two,3\n4,5,6\n", ["line 1, column 2", "'two' is not a number"]),
    "slip.csv": (b"l.5,2\n3,4\n", ["line 1, column 1", "'l.5' is not a number"]),
    "slips.csv": (b"l.5,2,3\n4,5,6\n", ["line 2, column 1", "line 1 begins with the name"]),
    "names.csv": (b"a,b\n1,2,3,4\n", ["line 2", "4 values under 2 names"]),
    "decimal.csv": (b"a;b\n1,5;2\n", ["line 2, column 1", "write decimals with '.'"]),
    "long.csv": (b"x" * 10**7 + b",1\n2,3\n", ["line 1", "field limit"]),
    "long.txt": (b"x" * 10**7 + b" 1\n2 3\n", ["line 1, column 1", "'xxx", "…' is not"]),
    "ragged.csv": (b"1,2\n\n3,4,5\n", ["line 3", "ragged", "3 values", "line 1 has 2"]),
    "nan.txt": (b"1 2\n3 nan\n", ["line 2, column 2", "nan is not finite"]),
    "hole.csv": (b"1,,2\n", ["line 1, column 2", "'' is not a number"]),
    "comma.csv": (b"1,5;2,5\n", ["line 1", "both"]),
    "latin.csv": (b"1,2\n\xe9,3\n", ["line 2", "not UTF-8"]),
    "empty.csv": (b"# nothing\n", ["empty"]),
    "nan.npy": (npy([[1.0, 2], [3, np.nan]]), ["row 1, column 1", "nan is not finite"]),
    "inf.npy": (npy([1.0, np.inf]), ["row 0, column 1", "inf is not finite"]),
    "excluded.npy": (npy([[1.0, 2], [-np.inf, -np.inf]]), ["row 1", "every logit is -inf"]),
    "cube.npy": (npy(np.full((2, 3, 4), np.nan)), ["row 0 at [0, 0], column 0", "nan"]),
    "lower.npy": (npy([1.0, -1e39]), ["row 0, column 1", "-1e+39", "does not fit float32"]),
    "big.npy": (npy([1.0, 1e39]), ["row 0, column 1", "1e+39", "does not fit float32"]),
    "scalar.npy": (npy(np.array(1.0)), ["wrong number of dimensions", "got 0"]),
    "none.npy": (npy(np.zeros((0, 3))), ["empty"]),
    "thin.npy": (npy(np.zeros((3, 0))), ["empty"]),
    "words.npy": (npy(["a", "b"]), ["not numeric", "<U1"]),
    "bool.npy": (npy([True, False]), ["not numeric", "bool"]),
    "complex.npy": (npy([1j]), ["not numeric", "complex128"]),
    "pickled.npy": (npy(np.array([{}, 1], dtype=object)), ["pickled"]),
    "short.npy": (npy(np.zeros(100))[:-8], ["truncated"]),
    "shorter.npy": (npy(np.zeros(100))[:20], ["truncated"]),
    "nothing.npy": (b"", ["truncated"]),
    "two.npz": (npz(a=np.zeros(2), b=np.zeros(2)), ["--key", "a, b"]),
    "no.npz": (npz(), ["--key", "no arrays"]),
    "pickled.npz": (npz(a=np.array([{}], dtype=object)), ["pickled"]),
    "short.npz": (npz(a=np.zeros(100))[:-50], ["truncated"]),
    "nothing.npz": (b"", ["truncated"]),
    "nothing.npy.gz": (b"", ["truncated"]),
    "short.npy.gz": (gzip.compress(npy(np.zeros(100)))[:-9], ["truncated"]),
    "short.csv.gz": (gzip.compress(b"1,2\n" * 99)[:-9], ["truncated"]),
    "plain.csv.gz": (b"1,2\n", ["not a gzip file"]),
    "x.npz.gz": (b"", ["unknown suffix '.gz'"]),
    "x.safetensors": (b"12345678{}", ["truncated, or not a .safetensors file"]),
    "x.parquet": (b"PAR1 PAR1", ["truncated, or not a Parquet file"]),
    "array.npz": (npy(np.zeros(2)), ["not an .npz file"]),
    "x.json": (b"[1, 2]", ["unknown suffix '.json'"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_what_is_wrong_and_where(capsys, tmp_path, name):
    for suffix, library in (("safetensors", "safetensors"), ("parquet", "pyarrow")):
        if name.endswith(suffix):
            pytest.importorskip(library)
    content, parts = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    line = error(capsys, "inspect", tmp_path / name)
    assert len(line) < 600
    for part in [str(tmp_path / name), *parts]:
        assert part in line


def header(text, version=1):
    """A .npy file with this header, of whatever is written there, and some data."""
    body = text.encode().ljust(118) + b"\n"
    length = len(body).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + body + bytes(64)


def described(descr="'<f8'", order="False", shape="(8,)"):
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}")


BAD_HEADERS = [
    header("("),
    header("{'descr': '<f8'"),
    header(" x\n  y\n z"),
    header('"""'),
    header("(" * 9000),
    header("-" * 9000 + "1"),
    header("[" * 200 + "]" * 200),
    header("{" * 90),
    header("x" * 20000),
    header("{}"),
    header("1L"),
    header("{'descr': '<f8', 'fortran_order': False, 'shape': (8,)}", version=7),
    header("\0\0"),
    described(descr="'<f99'"),
    described(descr="'V0'"),
    described(descr="[('a', '<f8')]"),
    described(descr="('<f8', (2,))"),
    described(descr="{}"),
    described(descr="'O'"),
    described(descr="'<M8[ns]'"),
    described(order="7"),
    described(shape="(-1, 8)"),
    described(shape="(10**5,)"),
    described(shape="(100000000000000000000000,)"),
    described(shape=f"({2**62}, {2**62})"),
    described(shape="(2.0,)"),
    described(shape="7"),
    described(shape="(True, 'x')"),
    described(shape="(" + "1," * 99 + ")"),
]


@pytest.mark.parametrize("index", range(len(BAD_HEADERS)))
@pytest.mark.parametrize("kind", [".npy", ".npz", ".npy.gz", "-"])
def test_a_bad_header_is_refused_wherever_it_stands(capsys, tmp_path, monkeypatch, index, kind):
    content = BAD_HEADERS[index]
    path = tmp_path / f"x{kind}"
    if kind == ".npz":
        with zipfile.ZipFile(path, "w", (zipfile.ZIP_STORED, zipfile.ZIP_LZMA)[index % 2]) as file:
            file.writestr("a.npy", content)
    else:
        path.write_bytes(gzip.compress(content) if kind == ".npy.gz" else content)
    if kind == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert len(error(capsys, "inspect", "-" if kind == "-" else path)) < 600


def zipped(method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.npy", npy(np.zeros(2**24)))
    return file.getvalue()


BOMBS = {
    "deflate.npz": lambda: zipped(zipfile.ZIP_DEFLATED),
    "lzma.npz": lambda: zipped(zipfile.ZIP_LZMA),
    "zeros.npy.gz": lambda: gzip.compress(npy(np.zeros(2**24))),
    "zeros.csv.gz": lambda: gzip.compress(b"0,0\n" * (2**24 + 1)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_expands_a_hundredfold_is_refused(capsys, tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name]())
    assert "expands to" in error(capsys, "inspect", tmp_path / name)


def test_an_encrypted_archive_and_an_unknown_compression(capsys, tmp_path):
    content = bytearray(npz(a=np.zeros(2)))
    entry = content.rindex(b"PK\1\2")
    for offset, value, problem in ((8, 1, "encrypted"), (10, 77, "compression")):
        changed = bytearray(content)
        changed[entry + offset] = value
        changed[offset - 2] = value
        (tmp_path / "x.npz").write_bytes(changed)
        assert problem in error(capsys, "inspect", tmp_path / "x.npz")


def test_bad_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1 2\n3 x\n")))
    line = error(capsys, "inspect", "-")
    assert "standard input: line 2, column 2: 'x' is not a number" in line
    file = io.BytesIO()
    np.savez(file, np.eye(2))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.getvalue())))
    assert "looks like .npz, which is read from a file only" in error(capsys, "inspect", "-")

"""Files of every kind give the rows that were stored in them."""

import gzip
import io
import json
import sys

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from command_runs import error, report

from jaxsoftjac.cli._errors import InputError
from jaxsoftjac.cli._files import read_logits

pytestmark = pytest.mark.once

ROWS = np.linspace(-3, 3, 12).reshape(3, 4).astype(np.float32)
ROWS[1, 2] = -np.inf  # an excluded class


def rows_of(path, **options):
    logits = read_logits(str(path), **options)
    return logits.rows(0, logits.shape[0])


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def save(path, array):
    if path.name.endswith(".npy.gz"):
        path.write_bytes(gzip.compress(npy(array)))
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.name == "compressed.npz":
        np.savez_compressed(path, logits=array)
    elif path.suffix == ".npz":
        np.savez(path, logits=array)
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file({"logits": array}, path)
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        table = arrow.table({f"c{i}": column for i, column in enumerate(array.T)})
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    else:
        np.savetxt(path, array, delimiter="," if ".csv" in path.name else "\t")
    return path


NAMES = ["x.npy", "x.npz", "compressed.npz", "x.csv", "x.tsv", "x.txt"] + [
    *("x.csv.gz", "x.tsv.gz", "x.npy.gz", "x.safetensors", "x.parquet")
]


@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_file_gives_the_same_rows(tmp_path, name):
    path = save(tmp_path / name, ROWS)
    np.testing.assert_array_equal(rows_of(path), ROWS)
    np.testing.assert_array_equal(rows_of(path, axis=0), ROWS.T)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "compressed.npz", "x.npy.gz", "x.safetensors"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_rows_of_several_dimensions_are_flattened(tmp_path, name, axis):
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    logits = read_logits(str(save(tmp_path / name, array)), axis=axis)
    expected = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    assert logits.shape == expected.shape
    np.testing.assert_array_equal(logits.rows(1, 5), expected[1:5])


def test_a_block_of_strips_is_the_block(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.asfortranarray(ROWS))
    monkeypatch.setattr("jaxsoftjac.cli._logits._STRIP_BYTES", 30)
    np.testing.assert_array_equal(rows_of(tmp_path / "x.npy"), ROWS)


def test_bfloat16(tmp_path):
    brain = ROWS.astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", brain)
    np.savez(tmp_path / "x.npz", brain)
    header = {"x": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}
    head = json.dumps(header).encode()
    length = len(head).to_bytes(8, "little")
    (tmp_path / "x.safetensors").write_bytes(length + head + brain.tobytes())
    for name in ("x.npy", "x.npz", "x.safetensors"):
        np.testing.assert_array_equal(rows_of(tmp_path / name), brain.astype(np.float32))


@pytest.mark.parametrize(
    "text",
    ["1,2,3\n4,5,6", "1; 2;3\n4;5 ;6\n", "1\t2\t3\r\n\r\n4\t5\t6\r\n", "# a\n1  2 3\n4 5 6 #b"],
)
def test_separators_comments_and_blank_lines(tmp_path, text):
    (tmp_path / "x.csv").write_text(text, newline="")
    np.testing.assert_array_equal(rows_of(tmp_path / "x.csv"), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ('cat,"a, b",C#\n1,2,3\n4,5,6\n', ("cat", "a, b", "C#")),
        (",0,1,2\n0,1,2,3\n1,4,5,6\n", ("0", "1", "2")),  # as pandas writes it
        ("id;a;b;c\n7;1;2;3\n8;4;5;6\n", ("a", "b", "c")),
        ("name\ta\tb\tc\nx y\t1\t2\t3\nz\t4\t5\t6\n", ("a", "b", "c")),
        ("a b c\nx 1 2 3\ny 4 5 6\n", ("a", "b", "c")),  # as R writes it
        ("0,1,2\n1.0,2.0,3.0\n4.0,5.0,6.0\n", ("0", "1", "2")),  # pandas without its index
        ("x,1,2,3\ny,4,5,6\n", ()),
        ('\ufeffa,b,c\n"1",2,3\n4,5,6\n', ("a", "b", "c")),
    ],
)
def test_names_of_classes_and_of_rows(tmp_path, text, classes):
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    logits = read_logits(str(tmp_path / "x.csv"))
    np.testing.assert_array_equal(logits.rows(0, 2), [[1, 2, 3], [4, 5, 6]])
    assert logits.classes == classes
    assert read_logits(str(tmp_path / "x.csv"), axis=0).classes == ()


def test_whole_numbers_are_a_row_among_whole_numbers(tmp_path):
    (tmp_path / "x.csv").write_text("0,1,2\n1,2,3\n")
    np.testing.assert_array_equal(rows_of(tmp_path / "x.csv"), [[0, 1, 2], [1, 2, 3]])


def test_names_of_classes_are_reported(capsys, tmp_path):
    (tmp_path / "x.csv").write_text("setosa,versicolor\n1,2\n")
    assert report(capsys, "inspect", tmp_path / "x.csv")["classes"] == ["setosa", "versicolor"]


def test_one_dimension_is_one_row(tmp_path):
    np.save(tmp_path / "x.npy", np.array([3, 1, 2]))
    np.testing.assert_array_equal(rows_of(tmp_path / "x.npy"), [[3, 1, 2]])


def test_a_key_chooses_among_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.ones(2))
    np.testing.assert_array_equal(rows_of(tmp_path / "x.npz", key="b"), [[1, 1]])
    np.testing.assert_array_equal(rows_of(f"{tmp_path}/x.npz:b"), [[1, 1]])
    with pytest.raises(InputError, match="names a key, and so does --key"):
        read_logits(f"{tmp_path}/x.npz:b", key="a")


def test_columns_of_lists(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"text": ["a", "b"], "x": arrow.array([[1, 2], [3, 4]])})
    ragged = arrow.table({"x": arrow.array([[1, 2], [3]])})
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(table, tmp_path / "x.parquet")
    parquet.write_table(ragged, tmp_path / "ragged.parquet")
    np.testing.assert_array_equal(rows_of(f"{tmp_path}/x.parquet:x"), [[1, 2], [3, 4]])
    with pytest.raises(InputError, match="column 'text' is not numeric: string"):
        read_logits(f"{tmp_path}/x.parquet")
    beside = arrow.table({"id": [1, 2], "x": arrow.array([[1, 2], [3, 4]])})
    parquet.write_table(beside, tmp_path / "beside.parquet")
    with pytest.raises(InputError, match="column 'x' is not numeric: .*: choose it with --key"):
        read_logits(f"{tmp_path}/beside.parquet")
    with pytest.raises(InputError, match="ragged rows: lists of 1, 2 values"):
        read_logits(f"{tmp_path}/ragged.parquet")


@pytest.mark.parametrize("index", [None, "row_id", 7])
def test_the_index_of_a_frame_is_no_class(tmp_path, index):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(ROWS, columns=[*"abcd"])
    if index is not None:
        frame.index = pd.Index([10, 9, 8], name=index if isinstance(index, str) else None)
    frame.to_parquet(tmp_path / "x.parquet")
    np.testing.assert_array_equal(rows_of(tmp_path / "x.parquet"), ROWS)
    assert read_logits(f"{tmp_path}/x.parquet").classes == tuple("abcd")


@pytest.mark.parametrize("words", [["1,2.5,-3"], ["1, 2.5 -3"], ["1", "2.5", "-3"]])
def test_numbers_with_commas_or_blanks_between_them(capsys, words):
    assert report(capsys, "inspect", *words)["logits"] == [1, 2.5, -3]
    assert report(capsys, "inspect", "-3,1")["logits"] == [-3, 1]


@pytest.mark.parametrize("content", [b"1,2,3\n4,5,6\n", npy(np.array([[1, 2, 3], [4, 5, 6]]))])
def test_standard_input_is_text_or_npy(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    np.testing.assert_array_equal(rows_of("-"), [[1, 2, 3], [4, 5, 6]])
    assert not sys.stdin.buffer.closed


@pytest.mark.parametrize("library", ["safetensors", "pyarrow"])
def test_a_missing_library_is_named_with_its_extra(capsys, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    suffix = {"safetensors": ".safetensors", "pyarrow": ".parquet"}[library]
    line = error(capsys, "inspect", f"x{suffix}")
    assert f'x{suffix}: needs {library}, of the extra "files"' in line
    assert 'pip install "jaxsoftjac[files]"' in line

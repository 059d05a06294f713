"""`jaxsoftjac inspect`: the report on the properties of J, of one row and of many."""

import re

import jax
import numpy as np
import pytest
from command_runs import GOOD_ROW, error, numpy_jacobian, report

from jaxsoftjac.cli import _chunks, _inspect, _main

pytestmark = pytest.mark.once


def test_a_row_of_numbers(capsys):
    assert _main.main(["inspect", *GOOD_ROW]) == 0
    text = capsys.readouterr().out
    assert "All properties hold." in text
    assert re.search(r"J = Jᵀ +✓ +symmetry_error", text)
    assert max(map(len, text.splitlines())) <= 80


def test_json_of_one_row_is_what_numpy_computes(capsys):
    found = report(capsys, "inspect", *GOOD_ROW, "--temperature", 2, "--vjp", "-1", 2, "-3e-1", 4)
    x, v = np.array([2, 1, 0.5, -1]) / 2, np.array([-1, 2, -0.3, 4])
    sigma, jacobian = numpy_jacobian(x)
    np.testing.assert_allclose(found["logits"], x)
    np.testing.assert_allclose(found["sigma"], sigma, rtol=1e-6)
    np.testing.assert_allclose(found["jacobian"]["entries"], jacobian, atol=1e-7)
    for way in ("formula", "full_jacobian", "autodiff"):
        np.testing.assert_allclose(found["vjp"][way], jacobian @ v, atol=1e-6)
    assert found["properties"]["largest_eigenvalue_is_bounded"]["formula"] == "λ_max ≤ 1/2"
    assert found["measurements"]["rank"] == 3


def test_text_shows_every_measurement_and_property_of_the_json(capsys):
    found = report(capsys, "inspect", *GOOD_ROW)
    assert _main.main(["inspect", *GOOD_ROW]) == 0
    text = capsys.readouterr().out
    for name in found["measurements"]:
        assert name in text
    for judged in found["properties"].values():
        assert judged["formula"] in text


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_dtype_is_served(capsys, dtype):
    found = report(capsys, "inspect", *GOOD_ROW, "--dtype", dtype)
    assert found["all_hold"]
    assert found["dtype"] == dtype


def test_a_run_leaves_the_precision_of_this_process_alone(capsys):
    before = jax.numpy.zeros(()).dtype
    report(capsys, "inspect", "1", "2", "--dtype", "float64")
    report(capsys, "inspect", "1", "2", "--dtype", "float32")
    assert jax.numpy.zeros(()).dtype == before


@pytest.mark.parametrize(("width", "order"), [(5, "C"), (70, "F")])
def test_many_rows_are_summarised_over_chunks(capsys, tmp_path, monkeypatch, width, order):
    array = np.random.default_rng(0).normal(size=(23, width)).astype(np.float32)
    array[17] = 0
    array[17, :2] = 9  # σ ≈ (½, ½): λ_max ≈ ½
    np.save(tmp_path / "x.npy", np.asarray(array, order=order))
    whole = report(capsys, "inspect", tmp_path / "x.npy")
    monkeypatch.setattr(_chunks, "_CHUNK_ELEMENTS", 5 * width * (width if width < 65 else 1))
    monkeypatch.setattr("jaxsoftjac.cli._logits._STRIP_BYTES", 500)
    chunked = report(capsys, "inspect", tmp_path / "x.npy")
    assert (whole["rows"], whole["row"]) == (23, None)
    bound = "largest_eigenvalue" if width < 65 else "largest_eigenvalue_upper_bound"
    assert whole["properties"]["largest_eigenvalue_is_bounded"]["worst_row"] == 17
    np.testing.assert_allclose(whole["measurements"][bound]["max"], 0.5, atol=0.01)
    for name, statistics in whole["measurements"].items():
        assert list(statistics) == ["min", "median", "max"]
        np.testing.assert_allclose(
            list(chunked["measurements"][name].values()), list(statistics.values()), atol=1e-6
        )


def test_many_rows_in_text(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(3, 4))
    assert _main.main(["inspect", str(tmp_path / "x.npy")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"measurement +min +median +max\n", text)
    assert re.search(r"λ_max ≤ 1/2 +✓ +3 +\d +λ_max 0\.\d+\n", text)


def test_a_wide_row_forms_no_matrix(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(0, 9, 5000))
    found = report(capsys, "inspect", tmp_path / "x.npy")
    assert found["method"] == "matrix-free"
    assert found["jacobian"]["indices"] == [0, 1, 2, 4997, 4998, 4999]
    assert "full_jacobian" not in found["vjp"]


def test_a_property_that_fails_is_status_1_and_named_with_its_row(capsys, tmp_path, monkeypatch):
    verify = _inspect.verify_jacobian_properties

    def broken(x, alpha):
        found = verify(x, alpha=alpha)
        good = x[:, 0] != 7
        return found._replace(is_symmetric=good, all_hold=good)

    monkeypatch.setattr(_inspect, "verify_jacobian_properties", broken)
    np.save(tmp_path / "x.npy", [[1.0, 2], [7, 2], [3, 4]])
    assert _main.main(["inspect", str(tmp_path / "x.npy")]) == 1
    text = capsys.readouterr().out
    assert re.search(r"J = Jᵀ +✗ +2 +1 ", text)
    assert "Failed: J = Jᵀ" in text


def test_an_unreadable_value_in_a_late_chunk_is_found(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(_chunks, "_CHUNK_ELEMENTS", 2 * 9)
    array = np.zeros((7, 3))
    array[5, 2] = np.nan
    np.save(tmp_path / "x.npy", array)
    assert "row 5, column 2: nan" in error(capsys, "inspect", tmp_path / "x.npy")


def test_a_numerical_rank_below_k_minus_1_is_explained(capsys):
    assert _main.main(["inspect", "50", "20", "1", "-10"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "rank J, numerically ✓ rank 1 " in text
    assert "rank J = K − 1 = 3. Of these eigenvalues 2 lie below" in text
    assert _main.main(["inspect", *GOOD_ROW]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "rank J = K − 1 ✓ rank 3 " in text
    assert "numerical rank" not in text


def test_the_rank_of_a_row_with_an_excluded_class(capsys):
    found = report(capsys, "inspect", "2", "1", "-inf")
    assert found["properties"]["rank_is_expected"]["expected"] == 1
    assert _main.main(["inspect", "2", "1", "-inf"]) == 0
    assert "numerical rank" not in capsys.readouterr().out
    assert _main.main(["inspect", "60", "20", "1", "-inf"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "rank J = 2, one less than the classes that are not excluded. Of these" in text


def test_columns_of_long_numbers_stay_apart(capsys):
    assert _main.main(["inspect", "1e3", "-1e3", "-5000", "0"]) == 0
    assert re.search(r"\nx +1000\.000 −1000\.000 −5000\.000 +0\n", capsys.readouterr().out)


@pytest.mark.parametrize("text", ["−1,2,−∞\n", "-1,2,-inf\r3,4,5\r"])
def test_numbers_as_reports_write_them_and_any_ends_of_lines(capsys, tmp_path, text):
    (tmp_path / "x.csv").write_bytes(text.encode())
    found = report(capsys, "inspect", tmp_path / "x.csv", "--row", 0)
    typed = report(capsys, "inspect", "−1", "2", "−∞")
    assert found["properties"] == typed["properties"]
    assert found["rows"] == text.count("2") + text.count("4")


def test_excluded_classes_and_long_names_fit_the_terminal(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ("x" * 90 + ".csv")).write_text("Iris setosa,Iris virginica,c,d\n2,-inf,1,0\n")
    assert _main.main(["inspect", "x" * 90 + ".csv"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert re.match(r"…x+\.csv: row 0, K = 4\n", text)
    assert re.search(r"\n +Iris~tosa Iris~nica +c +d\nx +2\.0000 +−∞ +1\.0000 +0\n", text)
    assert report(capsys, "inspect", "x" * 90 + ".csv")["logits"] == [2, None, 1, 0]


def test_lines_fit_the_terminal_whatever_is_measured(capsys, tmp_path):
    for width in (4, 70):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(1200, width)) * 9)
        assert _main.main(["inspect", str(tmp_path / "x.npy")]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines[1:])) <= 80

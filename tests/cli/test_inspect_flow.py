"""`jaxsoftjac inspect --flow --spectrum --sweep --plot`: what they report and draw."""

import re
import sys

import jax
import numpy as np
import pytest
from command_runs import GOOD_ROW, error, numpy_jacobian, report

from jaxsoftjac.cli import _main
from jaxsoftjac.diagnostics import gradient_flow

pytestmark = pytest.mark.once


FLOW = jax.jit(gradient_flow)


def test_flow_spectrum_and_sweep_of_one_row(capsys):
    argv = ["--flow", "--spectrum", "--sweep", "--temperatures", 2]
    found = report(capsys, "inspect", *GOOD_ROW, *argv)
    x = np.array(GOOD_ROW, np.float32)
    expected = FLOW(x)._asdict()
    assert list(found["flow"]) == list(expected)
    np.testing.assert_allclose(list(found["flow"].values()), list(expected.values()), rtol=1e-5)
    sigma, jacobian = numpy_jacobian(x.astype(float))
    spectrum = found["spectrum"]
    assert (spectrum["row"], spectrum["reason"]) == (0, "the row inspected")
    np.testing.assert_allclose(spectrum["eigenvalues"], np.linalg.eigvalsh(jacobian), atol=1e-7)
    np.testing.assert_allclose(spectrum["probabilities"], np.sort(sigma), rtol=1e-5)
    (sweep,) = found["sweep"]
    assert sweep["temperature"] == 2
    np.testing.assert_allclose(sweep["entropy"], FLOW(x / 2).entropy, rtol=1e-5)


def test_flow_spectrum_and_sweep_of_many_rows(capsys, tmp_path):
    array = np.array([[9, 0, 0, 0], [2, 1, 0, 0], [60, 0, 1, 2]], np.float32)
    np.save(tmp_path / "x.npy", array)
    argv = [tmp_path / "x.npy", "--flow", "--spectrum", "--sweep", "--temperatures", 1, 20]
    found = report(capsys, "inspect", *argv)
    assert found["flow"]["collapsed_rows"] == 1
    entropy = np.sort(FLOW(array).entropy)
    np.testing.assert_allclose(list(found["flow"]["entropy"].values()), entropy, rtol=1e-5)
    assert (found["spectrum"]["row"], found["spectrum"]["reason"]) == (1, "the largest λ_max")
    assert [sweep["temperature"] for sweep in found["sweep"]] == [1, 20]
    assert found["sweep"][1]["collapsed_rows"] == 0
    assert _main.main(["inspect", *map(str, argv)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"gradient flow +formula +min +median +max\n", text)
    assert re.search(r"collapsed_rows +max σ = 1 in float32 +1\n", text)
    assert "Spectrum at row 1, the largest λ_max" in text
    assert re.search(r"\n20 +0\.\d{4} ", text)


def test_a_wide_spectrum_is_shortened(capsys):
    row = [str(i / 9) for i in range(30)]
    assert _main.main(["inspect", *row, "--spectrum"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("k  "))
    assert [line.split()[0] for line in lines[start + 6 : start + 9]] == ["6", "…", "24"]
    assert max(map(len, lines)) <= 80


def test_the_picture_is_of_the_steepest_row_or_of_the_chosen_one(capsys, tmp_path):
    np.save(tmp_path / "x.npy", [[9.0, 0, 0], [5, 5, 0], [0, 0, 0]])
    picture = tmp_path / "x.png"
    found = report(capsys, "inspect", tmp_path / "x.npy", "--plot", picture)
    assert found["picture"] == {"file": str(picture), "row": 1, "reason": "the largest λ_max"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = report(capsys, "inspect", tmp_path / "x.npy", "--plot", picture, "--row", "2")
    assert found["picture"]["row"] == 2


def test_without_matplotlib_the_error_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert "jaxsoftjac[plots]" in error(capsys, "inspect", "1", "2", "--plot", "x.png")

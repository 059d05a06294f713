"""`jaxsoftjac inspect --flow --spectrum --sweep --plot`: what they report and draw."""

import re
import sys

import jax
import numpy as np
import pytest
from command_runs import GOOD_ROW, error, numpy_jacobian, report

from jaxsoftjac.cli import _main, _pictures
from jaxsoftjac.diagnostics import gradient_flow, summarize
from jaxsoftjac.plots import plot_jacobian

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
    assert found["pictures"] == {"jacobian": str(picture)}
    found = report(capsys, "inspect", tmp_path / "x.npy", "--plot", picture, "--row", "2")
    assert found["picture"]["row"] == 2


def test_each_part_of_the_report_has_its_picture(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.diag([1.0, 2, 9]).reshape(1, 3, 3))
    argv = ["--flow", "--spectrum", "--sweep", "--temperatures", 4, 1]
    argv = ["inspect", tmp_path / "x.npy", *argv, "--plot", tmp_path / "p.svg"]
    assert _main.main([*map(str, argv)]) == 0
    text = capsys.readouterr().out
    for name, title in (
        ("", "row 0, the largest λ_max"),
        ("-flow", "the gradient flow"),
        ("-spectrum", "its spectrum"),
        ("-sweep", "the temperatures"),
    ):
        path = tmp_path / f"p{name}.svg"
        assert path.read_bytes().startswith(b"<?xml")
        assert f"Picture of {title}: {path}\n" in text


def test_pictures_show_what_was_measured():
    flow = FLOW(np.array([[9, 0, 0], [2, 1, 0], [60, 0, 1], [0, 0, 0]], np.float32))
    measured = {name: np.asarray(value) for name, value in flow._asdict().items()}
    flows = _pictures.flows_of(measured, (2, 2), 0)
    assert list(flows) == ["0", "1"]
    np.testing.assert_array_equal(flows["1"].entropy, flow.entropy[2:])
    assert list(_pictures.flows_of(measured, (4,), 0)) == ["4 rows"]
    sweep = _pictures.sweep_of([2.0, 1.0], [measured, {k: v + v for k, v in measured.items()}])
    np.testing.assert_array_equal(sweep.temperatures, [1, 2])
    np.testing.assert_array_equal(sweep.flow.entropy, [2 * flow.entropy, flow.entropy])


def test_without_matplotlib_the_error_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert "jaxsoftjac[plots]" in error(capsys, "inspect", "1", "2", "--plot", "x.png")


def test_the_median_is_that_of_the_picture(capsys, tmp_path):
    """That of a row, among those with two classes or more."""
    array = np.array([[3, 0, 0], [1, 0, 0], [0, 0, 0], [2, 0, 0], [1, -np.inf, -np.inf]])
    np.save(tmp_path / "x.npy", array.astype(np.float32))
    found = report(capsys, "inspect", tmp_path / "x.npy", "--flow")["flow"]
    flow = FLOW(array.astype(np.float32))
    quantiles = summarize(flow, levels=(0.0, 0.5, 1.0)).quantiles
    for name in ("classes", "entropy", "spectral_norm"):
        np.testing.assert_allclose(list(found[name].values()), getattr(quantiles, name), rtol=1e-5)


def test_the_picture_names_the_classes(capsys, tmp_path):
    (tmp_path / "x.csv").write_text("ant,bee,cat\n1,2,3\n")
    assert _main.main(["inspect", f"{tmp_path}/x.csv", "--plot", f"{tmp_path}/x.svg"]) == 0
    capsys.readouterr()
    figure = plot_jacobian(np.arange(3.0), classes=["ant", "bee", "a very long name"])
    for panel in figure.axes[:3]:
        names = [label.get_text() for label in panel.get_xticklabels()]
        assert names == ["ant", "bee", "a very long…"]

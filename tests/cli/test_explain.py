"""`jaxsoftjac explain`: the numbers are those of numpy, in text and in Markdown."""

import re
from pathlib import Path

import numpy as np
import pytest
from command_runs import minus, table
from helpers import long_softmax

from jaxsoftjac.cli import _main
from jaxsoftjac.cli._explain import explanation

pytestmark = pytest.mark.once

ROW, G = ["2.0", "1.0", "0.5", "-1e0"], ["0.1", "-0.3", "0.2", "0"]


def explain(capsys, *argv):
    assert _main.main(["explain", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    plain = re.sub(r"\$\$.*\$\$|[|]?( ---: [|])+|---:|cross-|\w-\w", "", out)
    assert "-" not in plain, "one kind of minus sign"
    return out


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_each_step_shows_the_numbers_of_the_row(capsys, style):
    text = explain(capsys, *ROW, "--vjp", *G, "--label", "2", "--format", style)
    z, g = np.array(ROW, float), np.array(G, float)
    sigma = np.exp(z) / np.exp(z).sum()
    J = np.diag(sigma) - np.outer(sigma, sigma)
    start, gap = ("| ", " | ") if style == "markdown" else ("   ", r"  ")
    i = np.arange(4)

    def shown(head):
        return table(text, head if style == "text" else head)

    def first(*heads):
        pattern = re.escape(start) + r"\s*" + (r"\s*\|?\s+".join(map(re.escape, heads)))
        return re.search(pattern, text)[0]

    np.testing.assert_allclose(
        shown(first("i", "zᵢ", "e^(zᵢ)", "σᵢ")), np.stack([i, z, np.exp(z), sigma], 1), atol=6e-5
    )
    np.testing.assert_allclose(shown(first("i \\ j", "0", "1", "2", "3")), np.c_[i, J], atol=6e-5)
    mean = g @ sigma
    expected = np.stack([i, g, g * sigma, g - mean, J @ g, J @ g, J @ g], 1)
    np.testing.assert_allclose(shown(first("i", "gᵢ", "gᵢ·σᵢ")), expected, atol=6e-5)
    y = np.eye(4)[2]
    expected = np.stack([i, y, sigma, sigma - y, sigma - y], 1)
    np.testing.assert_allclose(shown(first("j", "yⱼ", "σⱼ")), expected, atol=6e-5)
    d = (g - mean) ** 2
    np.testing.assert_allclose(
        shown(first("i", "(gᵢ − ⟨g, σ⟩)²")), np.stack([i, d, J @ d, J @ d], 1), atol=6e-5
    )
    assert f"S = {np.exp(z).sum():.4f}" in text
    assert f"λ_max = {np.linalg.eigvalsh(J)[-1]:.4f} ≤ 1/2" in text
    assert f"⟨g, σ⟩ = Σᵢ gᵢ·σᵢ = {mean:.4f}" in text
    assert f"L = {-np.log(sigma[2]):.4f}" in text
    assert f"i = 0, j = 1: −7.3891·2.7183 / {np.exp(z).sum():.4f}²" in text
    assert f"= −{sigma[0]:.4f}·{sigma[1]:.4f} = −{-J[0, 1]:.4f}" in text
    assert f"(σ₀(z + h·e₁) − σ₀(z − h·e₁)) / 2h = −{-J[0, 1]:.4f}" in text
    assert f"m = 2.0000,  Σⱼ e^(zⱼ − m) = {np.exp(z - 2).sum():.4f}" in text
    assert f"j = 0: (−{1 / sigma[2]:.4f})·(−{-J[2, 0]:.4f}) = {sigma[0]:.4f}" in text
    assert "y_c = 1, and yⱼ = 0 for every j ≠ c" in text
    assert ("$$" in text) == (style == "markdown")


def test_without_a_label_there_is_no_loss(capsys):
    text = explain(capsys, *ROW)
    assert "Cross-entropy" not in text
    assert "(J·g)ᵢ" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("row", [ROW, ["800", "-0.5e-9", "1e-8", "-3"]])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_lines_fit_the_terminal(row, encoding):
    text = explanation(np.array(row, float), label=1, encoding=encoding)
    assert max(map(len, text.splitlines())) <= 80
    assert encoding == "utf-8" or text.isascii()


def test_confident_logits_keep_their_digits(capsys):
    text = explain(capsys, "800", "760", "0", "1", "--label", "0")
    assert "e^(zᵢ − m)" in text
    sigma, log_sigma, _ = long_softmax(np.array([800, 760, 0, 1.0]))
    assert f"L = {float(-log_sigma[0]):.2e}" in minus(text)
    assert f"{float(-sigma[1]):.2e}" in minus(text)  # the gradient at the label
    assert text.count("too small for differences of σ₀") == 2
    assert "nan" not in text


def test_a_wide_row_is_shortened_around_its_label(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.linspace(0, 3, 400).reshape(2, 200))
    text = explain(capsys, "x.npy", "--row", "1", "--label", "50")
    assert "z = (1.50376, 1.51128, 1.5188, …, 2.98496, 2.99248, 3)" in " ".join(text.split())
    shown = re.findall(r"^ +(\d+|…) ", text.split("Cross-entropy")[1], flags=re.M)
    assert shown[:14] == [*"012345", "…", "50", "…", "194", "195", "196", "197", "198"]


def test_an_excluded_class_has_derivative_0(capsys):
    text = explain(capsys, "2", "-inf", "1", "--label", "0")
    assert "z = (2, −∞, 1)" in text
    assert "K counts the classes that are not excluded" in text
    np.testing.assert_array_equal(table(text, "i \\ j")[1], [1, 0, 0, 0])
    assert "nan" not in text


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["2.0"], ["explain", "at least two classes", "K = 1"]),
        (["1", "nan"], ["number 2", "nan is not finite"]),
        (["1", "2", "--label", "2"], ["--label 2", "2 classes"]),
        (["1", "2", "--label", "-1"], ["--label -1"]),
        (["1", "2", "--label", "one"], ["--label", "'one'"]),
        (["1", "-inf", "--label", "1"], ["--label 1", "excluded"]),
        (["1", "2", "--format", "html"], ["--format", "html"]),
        (["1", "2", "--vjp", "1"], ["--vjp", "K = 2", "got 1"]),
        (["1", "2", "--vjp", "inf", "1"], ["--vjp inf", "not finite"]),
        (["1", "2", "--temperature", "0"], ["--temperature", "positive"]),
        (["x.npy"], ["x.npy", "one row of 3", "--row"]),
        (["x.npy", "--row", "1"], ["x.npy", "row 1, column 0", "nan is not finite"]),
        (["empty.csv"], ["empty.csv", "empty"]),
        (["1", "2", "--bogus"], ["--bogus"]),
        ([], ["logits"]),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, argv, parts):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", [[1.0, 2], [np.nan, 1], [1, 2]])
    (tmp_path / "empty.csv").write_text("")
    assert _main.main(["explain", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"jaxsoftjac: error: [^\n]+\n", err)
    for part in parts:
        assert part in err


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_a_temperature_is_said(capsys, style):
    text = explain(capsys, "2", "1", "--temperature", "4", "--format", style)
    assert "at z = x / 4 = (0.5, 0.25)" in text
    assert "1/T of that by z" in " ".join(text.split())
    assert "temperature" not in explain(capsys, "2", "1", "--format", style)


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_the_row_of_a_file_and_its_classes_are_named(capsys, tmp_path, monkeypatch, style):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("cat,dog,pig\n1,2,3\n4,5,7\n")
    text = " ".join(explain(capsys, "x.csv", "--row", "1", "--format", style).split())
    assert "Row 1 of x.csv. The classes are 0 cat, 1 dog, 2 pig." in text
    assert "Row" not in explain(capsys, "1", "2", "--format", style)


def test_the_name_of_a_file_is_not_broken(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "-".join(["of_a_long_name"] * 9) + ".csv"
    Path(name).write_text("1,2,3\n")
    assert _main.main(["explain", name]) == 0
    assert f"{name}." in capsys.readouterr().out.split()

"""`inspect --alpha` and `explain --alpha`: the numbers are those of α-entmax in long double."""

import re

import numpy as np
import pytest
from command_runs import error, report, table
from plain_entmax import long_entmax, long_jacobian

from jaxsoftjac.cli import _main
from jaxsoftjac.cli._explain import explanation

pytestmark = pytest.mark.once

ROW, ALPHA, G = ["2.0", "1.5", "0.5", "-1e0"], 1.5, ["0.1", "-0.3", "0.2", "0"]
Z = np.array(ROW, float)
P = long_entmax(Z, ALPHA).astype(float)
S = np.sqrt(P)
J = long_jacobian(P, ALPHA).astype(float)


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_explain_shows_the_numbers_of_the_row(capsys, style):
    argv = ["--alpha", str(ALPHA), "--vjp", *G, "--label", "1", "--format", style]
    assert _main.main(["explain", *ROW, *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    g, y, i = np.array(G, float), np.eye(4)[1], np.arange(4)
    tau = 0.5 * Z[0] - S[0]

    def shown(*heads):
        gap = r" \| +" if style == "markdown" else " +"
        pattern = gap.join(map(re.escape, heads))
        return table(out, re.search(pattern, out)[0])

    def close(found, *columns):
        np.testing.assert_allclose(found, np.stack(columns, 1), atol=6e-5)

    close(shown("i", "zᵢ", "(α − 1)·zᵢ − τ", "pᵢ"), i, Z, Z / 2 - tau, P)
    close(shown("i", "pᵢ", "sᵢ", "sᵢ/Σs"), i, P, S, S / S.sum())
    close(shown("i \\ j", "0", "1", "2", "3"), i, *J)
    mean = g @ S / S.sum()
    close(shown("i", "gᵢ", "gᵢ − ⟨s, g⟩/Σs"), i, g, g - mean, J @ g, J @ g, J @ g)
    close(shown("j", "yⱼ", "pⱼ"), i, y, P, P - y, P - y)
    entropy = (P - P**ALPHA).sum() / (ALPHA * (ALPHA - 1))
    loss = (P - y) @ Z + entropy
    assert f"τ = {tau:.4f},  and with it Σᵢ pᵢ = 1.0000" in out
    assert "has 3 of 4 classes" in out
    assert f"⟨p, z⟩ = {P @ Z:.4f},  H(p) = {entropy:.4f}" in out
    assert f"Σs = Σᵢ sᵢ = {S.sum():.4f}" in out
    assert f"i = 0: {S[0]:.4f}·(1 − {S[0]:.4f}/{S.sum():.4f}) = {J[0, 0]:.4f}" in out
    assert f"(p_0(z + h·e_1) − p_0(z − h·e_1)) / 2h = −{-J[0, 1]:.4f}" in out
    assert "rank J = |S| − 1 = 2" in out
    assert f"λ_max = {np.linalg.eigvalsh(J)[-1]:.4f} ≤ Σs/2 = {S.sum() / 2:.4f}" in out
    assert f"{entropy:.4f} = {loss:.4f}" in out
    assert ("$$" in out) == (style == "markdown")


def test_alpha_1_is_the_lesson_on_softmax(capsys):
    for argv in ([], ["--alpha", "1"]):
        assert _main.main(["explain", *ROW, *argv]) == 0
    whole = capsys.readouterr().out
    assert whole[: len(whole) // 2] == whole[len(whole) // 2 :]


@pytest.mark.parametrize(
    ("row", "alpha", "said"),
    [
        ([1, 0, -np.inf], 2.0, "where p has a kink"),
        ([9, 0, 1.0], 1.5, "a single class: no other entry, and J = 0"),
    ],
)
def test_lines_fit_the_terminal(row, alpha, said):
    text = explanation(np.array(row, float), label=1, alpha=alpha)
    assert said in text
    assert max(map(len, text.splitlines())) <= 80
    assert "nan" not in text


def test_a_wide_row_shows_its_support_and_the_label():
    text = explanation(np.linspace(0, 9, 40), label=3, alpha=1.3, encoding="ascii")
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    shown = re.findall(r"^ +(\d+|\.\.\.) ", text.split("in place of cross-entropy")[-1], flags=re.M)
    assert shown[:3] == ["...", "3", "..."]
    assert shown[-1] == "39"


def test_the_json_is_of_the_family(capsys):
    parts = ["--flow", "--spectrum", "--vjp", *G]
    found = report(capsys, "inspect", *ROW, "--alpha", ALPHA, *parts)
    g = np.array(G, float)
    assert found["alpha"] == ALPHA
    np.testing.assert_allclose([found["probabilities"], found["weights"]], [P, S], atol=1e-6)
    np.testing.assert_allclose(found["jacobian"]["entries"], J, atol=1e-6)
    for way in ("formula", "full_jacobian", "autodiff"):
        np.testing.assert_allclose(found["vjp"][way], J @ g, atol=1e-6)
    formulas = {name: p["formula"] for name, p in found["properties"].items()}
    assert formulas["largest_eigenvalue_is_bounded"] == "λ_max ≤ Σs/2"
    assert formulas["rank_is_expected"] == "rank J = |S| − 1"
    assert found["measurements"]["rank"] == 2
    assert found["flow"]["support"] == 3
    np.testing.assert_allclose(found["flow"]["frobenius_norm"], np.linalg.norm(J), rtol=1e-5)
    np.testing.assert_allclose(found["spectrum"]["eigenvalues"], np.linalg.eigvalsh(J), atol=1e-6)
    np.testing.assert_allclose(found["spectrum"]["weights"], np.sort(S), atol=1e-6)


def test_the_text_and_the_pictures_of_many_rows(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.stack([Z, Z / 3, Z * 9]).astype(np.float32))
    argv = [tmp_path / "x.npy", "--flow", "--spectrum", "--sweep", "--temperatures", 1, 4]
    argv += ["--plot", tmp_path / "p.svg", "--alpha", 2]
    assert _main.main(["inspect", *map(str, argv)]) == 0
    out = capsys.readouterr().out
    assert "α-entmax with α = 2, float32" in out
    assert re.search(r"rank J = \|S\| − 1 +✓", out)
    assert re.search(r"support +\|S\|, S where p > 0 +1 +2 +3\n", out)
    assert re.search(r"collapsed_rows +max p = 1 in float32 +1\n", out)
    assert "s₍ₖ₎ ≤ λₖ₊₁ ≤ s₍ₖ₊₁₎ with s sorted, on the support" in out
    assert "σ" not in out
    assert re.search(r"\n4 +0\.\d{4} +0\.\d{4} ", out)
    assert max(len(line) for line in out.splitlines() if "Picture" not in line) <= 80
    for name in ("", "-flow", "-spectrum", "-sweep"):
        assert (tmp_path / f"p{name}.svg").read_bytes().startswith(b"<?xml")


def test_a_wide_row_is_probed(capsys):
    found = report(capsys, "inspect", *map(str, np.linspace(0, 9, 70)), "--alpha", "1.5")
    assert found["method"] == "matrix-free"
    assert found["all_hold"]
    bounded = found["properties"]["largest_eigenvalue_is_bounded"]
    assert bounded["formula"] == "⟨w, Jw⟩/⟨w, w⟩ ≤ Σs/2"


@pytest.mark.parametrize("command", ["inspect", "explain"])
@pytest.mark.parametrize("alpha", ["0.99", "4.01", "nan", "-inf"])
def test_alpha_out_of_range_is_one_line(capsys, command, alpha):
    assert f"--alpha must lie in [1, 4], got {alpha}\n" in error(
        capsys, command, "1", "2", "--alpha", alpha
    )


def test_accuracy_has_no_alpha(capsys):
    assert "--alpha" in error(capsys, "accuracy", "--alpha", "2")

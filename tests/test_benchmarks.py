"""The benchmarks run at their smallest sizes; what they time is not tested."""

import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmarks are not part of the installed package

from benchmarks import _harness, _hlo  # noqa: E402
from benchmarks.__main__ import SUBJECTS, main  # noqa: E402

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def standard_promotion():
    """Peers, jax.nn among them, promote dtypes implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_prints_and_stores_tables_and_claims(subject, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main([subject, "--quick", "--json", str(path)]) == 0
    (report,), out = json.loads(path.read_text()), capsys.readouterr().out
    assert set(report) == {"subject", "tables", "claims", "absent"}
    assert report["subject"] == subject
    assert report["tables"]
    assert report["claims"]
    for table in report["tables"]:
        assert set(table) == {"title", "header", "rows"}
        assert table["title"] in out
        assert table["rows"]
        assert all(len(row) == len(table["header"]) for row in table["rows"])
    for claim in report["claims"]:
        assert set(claim) == {"text", "target", "measured", "at_most", "met"}
        assert np.isfinite(claim["measured"])
        assert claim["text"] in out


# Of each experiment that can be resumed: its sizes, its arms but for two, what trains in it.
SMALL = {
    "distillation": {"QUICK": ((1.0, 8.0), 4, (5.0,), 4, 2, 1), "TEACHER_STEPS": 5},
    "softmax_collapse": {"QUICK": (5, 8, 4, 2, 1)},
}
ARMS = {"distillation": ("KL", "ENTROPY"), "softmax_collapse": ("ARMS",)}
RUNS = {"distillation": ("distil", "play", "teacher"), "softmax_collapse": ("run",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_experiment_is_resumed_where_it_was(name, tmp_path, monkeypatch):
    module = importlib.import_module(f"benchmarks.experiments.{name}")
    path = tmp_path / "rows.csv"
    for constant, value in SMALL[name].items():
        monkeypatch.setattr(module, constant, value)
    for arms in ARMS[name]:
        every = getattr(module, arms)
        kept = [arm for arm in every if arm in ("jaxsoftjac", "optax", "textbook, float64")][:2]
        monkeypatch.setattr(module, arms, {arm: every[arm] for arm in kept})
    with jax.numpy_rank_promotion("allow"):
        report, figure = module.experiment(True, path)
    assert report.tables
    assert all(claim.met for claim in report.claims)
    assert report.claims[0].measured > 1e-10  # an error of float32, not of float64 in its place
    figure.savefig(tmp_path / "picture.png")
    lines, whole = path.read_text().splitlines(), str(report)
    path.write_text("\n".join(lines[:-3]) + "\n")  # the last run has three marks, now none
    runs = []
    for function in RUNS[name]:
        original = getattr(module, function)

        def watched(*arguments, original=original):
            runs.append(arguments[0])
            return original(*arguments)

        monkeypatch.setattr(module, function, watched)
    with jax.numpy_rank_promotion("allow"):
        report, _ = module.experiment(True, path)
    assert str(report) == whole
    assert path.read_text().splitlines() == lines
    assert len(runs) == 1


def test_the_json_file_holds_every_subject_in_turn(tmp_path, monkeypatch, capsys):
    path, subjects = tmp_path / "figures.json", ["curvature", "dense"]
    for subject in subjects:
        module = importlib.import_module(f"benchmarks.{subject}")
        monkeypatch.setattr(module, "run", lambda quick, subject=subject: _harness.Report(subject))
    assert main([*subjects, "--json", str(path)]) == 0
    assert [report["subject"] for report in json.loads(path.read_text())] == subjects
    capsys.readouterr()


def test_an_unknown_subject_exits_with_2_and_one_line(capsys):
    assert main(["functions", "softmin"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(name in err for name in ("softmin", *SUBJECTS))


def test_a_json_file_in_no_folder_exits_with_2(tmp_path, capsys):
    assert main(["--json", str(tmp_path / "none" / "figures.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("actual", [[1.0, 2.1], [1.0, np.nan], [1.0]])
def test_a_failing_agreement_check_raises(actual):
    expected = np.array([1.0, 2.0])
    _harness.check_agreement("ours", [1.0, 2.0 + 1e-9], expected, 1e-6)
    with pytest.raises(_harness.Disagreement, match="ours"):
        _harness.check_agreement("ours", actual, expected, 1e-2)


def test_a_disagreement_exits_with_1(monkeypatch, capsys):
    def disagree(quick):
        raise _harness.Disagreement("ours: relative error 1")

    monkeypatch.setattr(importlib.import_module("benchmarks.dense"), "run", disagree)
    assert main(["dense", "--quick"]) == 1
    assert "dense: ours: relative error 1" in capsys.readouterr().err


def test_ratios_are_medians_of_pairs_not_ratios_of_medians():
    assert _harness.ratio([2, 4, 60], [1, 2, 20]) == (2, 2, 2.5)
    assert str(_harness.ratio([1, 3], [1, 1])) == "2.00 [1.50, 2.50]"


def test_callables_are_timed_in_turn_and_backwards_every_other_round():
    now, order = [0.0], []

    def taking(name, seconds):
        def thunk():
            order.append(name)
            now[0] += seconds

        return thunk

    callables = {"a": taking("a", 1.0), "b": taking("b", 0.25)}
    times = _harness.time_in_turn(callables, 3, shortest=0.5, clock=lambda: now[0])
    assert times == {"a": [1.0] * 3, "b": [0.25] * 3}
    assert "".join(order) == "aabb" + "abb" + "bba" + "abb"
    assert _harness.ratio(times["b"], times["a"]) == (0.25, 0.25, 0.25)


def test_claims_say_whether_they_are_met():
    assert _harness.Claim("time", 1.25, 1.25).met
    assert not _harness.Claim("time", 1.25, 1.3).met
    assert _harness.Claim("speedup", 3, 3.5, at_most=False).met
    assert not _harness.Claim("speedup", 3, float("nan"), at_most=False).met


def test_a_peer_that_is_not_installed_is_named():
    report = _harness.Report("functions")
    assert _harness.optional_peer("no_such_peer", report) is None
    assert "no_such_peer: not installed" in str(report)


def test_products_of_matrices_are_counted_in_every_round_of_a_loop():
    def repeated(a, b):
        return jax.lax.scan(lambda c, _: (c @ b, None), a @ b, None, length=5)[0] @ b.T

    shapes = [jax.ShapeDtypeStruct(shape, jax.numpy.float32) for shape in ((4, 8), (8, 8))]
    text = jax.jit(repeated).lower(*shapes).compile().as_text()
    assert _hlo.multiplications(text) == 7 * 4 * 8 * 8


def test_the_limit_moves_the_bytes_it_is_given():
    result = _harness.same_bytes_add(1200)()
    assert result.dtype == np.float32
    assert 3 * result.nbytes == 1200


def test_digits_logits_are_those_of_a_good_classifier():
    data = ROOT / "benchmarks" / "data"
    logits, labels = (np.load(data / f"digits_{name}.npy") for name in ("logits", "labels"))
    assert logits.dtype == np.float32
    assert logits.shape == (*labels.shape, 10)
    assert np.mean(logits.argmax(-1) == labels) > 0.95

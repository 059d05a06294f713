"""`jaxsoftjac accuracy`: what it measures, what it promises, and what it says when that fails."""

import json
import sys

import jax
import numpy as np
import pytest
from helpers import U, long_product, long_softmax

from jaxsoftjac.cli import _accuracy, _main
from jaxsoftjac.diagnostics import _rounding

pytestmark = pytest.mark.once

NUMPY = np.random.default_rng(0)


def test_the_table_of_this_machine(capsys):
    pytest.importorskip("torch")
    assert _main.main(["accuracy", "--rows", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert set(report["cases"][0]["errors"]) == {"jaxsoftjac", "jax.nn", "torch"}
    errors = {(c["quantity"], c["gap"], c["offset"]): c["errors"] for c in report["cases"]}
    assert errors["log σ", 40, 0]["jax.nn"] == 1  # it is 0 at the label
    assert errors["σ − y", 20, 0]["torch"] == 1
    assert errors["J·v", 0, 1e5]["torch"] > 1e-3
    for case in report["cases"]:
        assert case["holds"]
        assert 0 < case["errors"]["jaxsoftjac"] <= case["promise"] < 3e-5
    text = _accuracy.accuracy_text(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "All promises hold." in text
    assert "2 rows" not in text
    assert _accuracy.accuracy_text(report, encoding="ascii").isascii()


def test_a_broken_promise_is_status_1_without_torch(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    quantities = {"J·v": _accuracy.QUANTITIES["J·v"]._replace(cases=((20, 0),))}
    monkeypatch.setattr(_accuracy, "QUANTITIES", quantities)
    monkeypatch.setattr(_accuracy, "softmax", jax.nn.softmax)
    assert _main.main(["accuracy", "--rows", "2"]) == 1
    text = capsys.readouterr().out
    assert "torch" not in text
    assert "A promise of jaxsoftjac is not kept." in text
    assert text.count("*") >= 2


def test_references_agree_with_those_of_the_tests():
    x, v = NUMPY.normal(size=(2, 5, 7)).astype(np.float32)
    x[:, 2] += 20
    sigma, log_sigma, complement = _rounding.exact_softmax(x)
    expected, expected_log, _ = long_softmax(x)
    np.testing.assert_allclose((sigma / expected - 1).astype(float), 0, atol=1e-17)
    np.testing.assert_allclose((log_sigma / expected_log - 1).astype(float), 0, atol=1e-17)
    others = [sigma[:, [j for j in range(7) if j != i]].sum(1) for i in range(7)]
    np.testing.assert_allclose((complement / np.stack(others, 1) - 1).astype(float), 0, atol=1e-16)
    product = _rounding.exact_product(x, v)
    assert _rounding.worst_error(product, long_product(x, v)) < 1e-17


def test_only_the_pivoted_product_keeps_its_digits():
    found = _rounding.product_errors(gaps=(0, 12), offsets=(0, 1e6), rows=16)
    assert found.errors["jaxsoftjac"].max() < 64 * U
    assert found.errors["centred"][1].min() < 64 * U
    assert found.errors["centred"].max() > 1e-4
    assert found.errors["textbook"][1, 0] > 1e-3
    assert found.errors["textbook"][1, 1] > 1


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--rows", "0"], "--rows must be positive, got 0"),
        (["--rows", "many"], "invalid int value: 'many'"),
        (["--plot", "x.xyz"], "unknown picture format"),
        (["2.0"], "unrecognized arguments: 2.0"),
    ],
)
def test_bad_arguments(capsys, argv, part):
    assert _main.main(["accuracy", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert part in err

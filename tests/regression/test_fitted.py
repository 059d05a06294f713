"""What a fit knows of itself: where it may start, its penalty and weights, classes it lacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE

from jaxsoftjac.regression import (
    SoftmaxRegression,
    fit_softmax_regression,
    softmax_regression_intervals,
    softmax_regression_path,
    summarise_softmax_regression,
)

pytestmark = pytest.mark.once

random = np.random.default_rng(5)
X = jnp.asarray(random.normal(size=(40, 3)), WIDE)
LABELS = np.arange(40) % 3
WEIGHTS = random.uniform(0.5, 2, size=40)
EXACT = WIDE == jnp.float64
FIT = fit_softmax_regression(X, LABELS, l2=0.3, weights=WEIGHTS)
PATH = softmax_regression_path(X, LABELS, l2=[0.3, 0.1], weights=WEIGHTS)


@pytest.mark.skipif(not EXACT, reason="differences need float64")
@pytest.mark.parametrize("solver", ["newton-cg", "newton-cholesky"])
def test_the_derivative_by_a_constant_feature(solver):
    """The penalty holds its coefficient at 0, which moves where the feature does."""
    x = jnp.append(X, jnp.full((40, 1), 2.0), 1)
    v = jnp.zeros_like(x).at[5, 3].set(1).at[9, 3].set(-0.5)

    def kernel(x):
        return fit_softmax_regression(
            x, LABELS, l2=0.1, tol=1e-13, num_classes=3, solver=solver
        ).kernel

    value, pushed = jax.jvp(kernel, (x,), (v,))
    assert not np.any(value[3])
    h = 1e-5
    expected = (kernel(x + h * v) - kernel(x - h * v)) / (2 * h)
    np.testing.assert_allclose(pushed, expected, atol=1e-8)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (3, TypeError, "`start` must be what `fit_softmax_regression` returns, got int"),
        (
            fit_softmax_regression(X, LABELS % 2, l2=0.3),
            ValueError,
            r"`start` must be one fit of 3 features and 3 classes, with a kernel \(3, 3\), got",
        ),
        (PATH, ValueError, "`start` must be one fit"),
    ],
)
def test_a_start_is_a_fit_of_the_same_shape(start, error, message):
    with pytest.raises(error, match=message):
        fit_softmax_regression(X, LABELS, l2=0.1, start=start)
    with pytest.raises(error, match=message):
        softmax_regression_path(X, LABELS, l2=[0.1], start=start)


def test_summaries_use_the_penalty_of_the_fit():
    own = summarise_softmax_regression(FIT, X, LABELS, weights=WEIGHTS)
    given = summarise_softmax_regression(FIT, X, LABELS, weights=WEIGHTS, l2=0.3)
    other = summarise_softmax_regression(FIT, X, LABELS, weights=WEIGHTS, l2=0.0)
    np.testing.assert_allclose(own.standard_errors, given.standard_errors, rtol=1e-6)
    assert np.all(other.standard_errors[:-1] > 1.1 * own.standard_errors[:-1])
    likely = [
        softmax_regression_intervals(FIT, X, LABELS, X[:2], weights=WEIGHTS, **option).lower
        for option in ({}, {"l2": 0.3}, {"l2": 0.0})
    ]
    np.testing.assert_allclose(likely[0], likely[1], rtol=1e-6)
    assert np.all(likely[2] < likely[0])


@pytest.mark.parametrize("of", [summarise_softmax_regression, softmax_regression_intervals])
def test_summaries_are_of_one_fit_and_its_weights(of):
    more = () if of is summarise_softmax_regression else (X,)
    with pytest.raises(ValueError, match=r"`weights` and examples must be those of the `fit`"):
        of(FIT, X, LABELS, *more)
    with pytest.raises(ValueError, match=r"`weights` and examples must be those of the `fit`"):
        of(FIT, X[:30], LABELS[:30], *more, weights=WEIGHTS[:30])
    with pytest.raises(ValueError, match=r"`fit` must be one fit, with a kernel \[D, K\], got"):
        of(PATH, X, LABELS, *more, weights=WEIGHTS)
    one = of(jax.tree.map(lambda a: a[0], PATH), X, LABELS, *more, weights=WEIGHTS)
    for a, b in zip(one[:4], of(FIT, X, LABELS, *more, weights=WEIGHTS)[:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4 if EXACT else 1e-2, atol=1e-3)


@pytest.mark.parametrize("solver", ["newton-cg", "newton-cholesky", "lbfgs"])
def test_a_class_without_examples_is_as_unlikely_as_the_tolerance_asks(solver):
    fit = fit_softmax_regression(X, LABELS % 2, l2=0.1, num_classes=3, solver=solver, tol=1e-6)
    of_two = fit_softmax_regression(X, LABELS % 2, l2=0.1)
    np.testing.assert_allclose(fit.loss, of_two.loss, rtol=1e-5)
    likely = np.exp(fit.predict_log_proba(X))
    assert np.all(likely[:, 2] < 1e-5)
    np.testing.assert_allclose(likely[:, :2], np.exp(of_two.predict_log_proba(X)), atol=1e-4)


@pytest.mark.parametrize("solver", ["newton-cg", "newton-cholesky"])
def test_labels_of_any_mass_are_weights(solver):
    mass = jnp.asarray(random.uniform(1, 4, size=40), WIDE)
    shares = jnp.asarray(random.dirichlet(np.ones(3), size=40), WIDE)
    options = {"l2": 0.01, "solver": solver}
    # The same problem has the masses as weights, and the penalty over their mean.
    fit = fit_softmax_regression(X, mass[:, None] * shares, standard_errors=True, **options)
    options["l2"] = 0.01 / float(mass.mean())
    same = fit_softmax_regression(X, shares, weights=mass, **options)
    assert fit.converged
    assert fit.iterations < 15
    np.testing.assert_allclose(fit.kernel, same.kernel, rtol=1e-5, atol=1e-5)


def test_the_estimator_keeps_its_fit():
    names = np.array(["a", "b", "c"])[LABELS]
    model = SoftmaxRegression(C=0.5).fit(X, names)
    table = summarise_softmax_regression(model.fit_, X, LABELS)
    fit = fit_softmax_regression(X, LABELS, l2=1 / (0.5 * 40))
    expected = summarise_softmax_regression(fit, X, LABELS)
    np.testing.assert_allclose(table.z, expected.z, rtol=1e-3, atol=1e-3)


def test_predictions_of_nearly_as_many_rows_compile_once(caplog):
    model, x = SoftmaxRegression().fit(X, LABELS), np.asarray(X)
    model.predict_proba(x[:1])
    with jax.log_compiles():
        sizes = [model.predict_proba(x[:n]).shape for n in (2, 5, 40)]
    assert sizes == [(2, 3), (5, 3), (40, 3)]
    assert [r.message for r in caplog.records if "Compiling" in r.message] == []


@pytest.mark.parametrize(
    ("options", "weight", "error", "message"),
    [
        ({"C": None}, 1, TypeError, "`C` must be a real number, got NoneType"),
        ({"max_iter": 1.5}, 1, TypeError, "`max_iter` must be an int, got float"),
        ({}, -1, ValueError, "`sample_weight` must be ≥ 0, got -1"),
    ],
)
def test_errors_name_what_the_estimator_calls_it(options, weight, error, message):
    with pytest.raises(error, match=message):
        SoftmaxRegression(**options).fit(X, LABELS, sample_weight=np.full(40, weight))


def test_predictions_are_of_the_features():
    with pytest.raises(ValueError, match=r"`features` must have shape \[..., 3\], got \(2, 4\)"):
        FIT.predict_log_proba(np.ones((2, 4)))

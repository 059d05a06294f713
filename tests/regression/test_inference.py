"""What follows from a fit: its derivatives, folds, paths of penalties, and the table of figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import WIDE, quick_jit

from jaxsoftjac.regression import (
    fit_softmax_regression,
    softmax_regression_intervals,
    softmax_regression_path,
    summarise_softmax_regression,
)

pytestmark = pytest.mark.once

N, D, K = 60, 3, 3
random = np.random.default_rng(1)
X = jnp.asarray(random.normal(size=(N, D)), WIDE)
LABELS = (X @ random.normal(size=(D, K)) + random.gumbel(size=(N, K))).argmax(1)
LABELS = np.asarray(LABELS)
WEIGHTS = jnp.asarray(random.uniform(0.5, 1.5, size=N), WIDE)
OTHER_X = jnp.asarray(random.normal(size=(20, D)), WIDE)
OTHER_LABELS = random.integers(0, K, size=20)
EXACT = WIDE == jnp.float64


def validation_loss(l2, weights, x):
    """Of a fit, on other data."""
    tol = 1e-12 if EXACT else 1e-6
    fit = fit_softmax_regression(x, LABELS, l2=l2, weights=weights, num_classes=K, tol=tol)
    return -jnp.mean(fit.predict_log_proba(OTHER_X)[jnp.arange(20), OTHER_LABELS])


value = quick_jit(validation_loss)
gradient = quick_jit(jax.grad(validation_loss, (0, 1, 2)))


@pytest.mark.parametrize("l2", [0.03, 0.5])
def test_hypergradients_are_difference_quotients(l2):
    """By the penalty, the weights (of an example left out too) and the features."""
    weights = WEIGHTS.at[5].set(0)
    arguments = jnp.asarray(l2, WIDE), weights, X
    step = 1e-5 if EXACT else 3e-2 * l2
    tolerance = {"rtol": 1e-5, "atol": 1e-9} if EXACT else {"rtol": 5e-2, "atol": 1e-3}
    by_l2, by_weights, by_x = gradient(*arguments)

    def quotient(i, move):
        ahead, behind = (
            value(*(a + s * move if i == j else a for j, a in enumerate(arguments)))
            for s in (1, -1)
        )
        return (ahead - behind) / (2 * jnp.max(move))

    np.testing.assert_allclose(by_l2, quotient(0, jnp.asarray(step, WIDE)), **tolerance)
    np.testing.assert_allclose(
        by_weights[3], quotient(1, jnp.zeros(N, WIDE).at[3].set(step)), **tolerance
    )
    np.testing.assert_allclose(
        by_x[4, 1], quotient(2, jnp.zeros((N, D), WIDE).at[4, 1].set(step)), **tolerance
    )
    if EXACT:  # at a weight of 0, where the other side is no weight
        move = jnp.zeros(N, WIDE).at[5].set(1e-6)
        ahead = (value(arguments[0], weights + move, X) - value(*arguments)) / 1e-6
        np.testing.assert_allclose(by_weights[5], ahead, rtol=1e-4)


def test_every_mode_and_the_second_order():
    weights = WEIGHTS

    @quick_jit
    def all_of(l2):
        def f(l2):
            return validation_loss(l2, weights, X)

        nested = jax.grad(jax.grad(f)), jax.jacfwd(jax.grad(f)), jax.jacfwd(jax.jacfwd(f))
        return jax.grad(f)(l2), jax.jacfwd(f)(l2), [g(l2) for g in nested]

    l2 = jnp.asarray(0.03, WIDE)
    reverse, forward, second = all_of(l2)
    np.testing.assert_allclose(reverse, forward, rtol=1e-6)
    quotient = (gradient(l2 + 1e-4, weights, X)[0] - gradient(l2 - 1e-4, weights, X)[0]) / 2e-4
    np.testing.assert_allclose(second, np.full(3, quotient), rtol=1e-4)


def test_folds_by_vmap():
    """One program fits all folds, and the gradient of their mean loss is that of each."""
    held_out = jnp.arange(N)[None] % 3 == jnp.arange(3)[:, None]
    weights = jnp.where(held_out, 0, WEIGHTS[None])
    l2 = jnp.asarray(0.1, WIDE)
    of_fold = jax.value_and_grad(lambda l2, w: validation_loss(l2, w, X))
    values, gradients = quick_jit(jax.vmap(of_fold, in_axes=(None, 0)))(l2, weights)
    for i in range(3):
        np.testing.assert_allclose(values[i], value(l2, weights[i], X), rtol=1e-4)
        expected = gradient(l2, weights[i], X)[0]
        np.testing.assert_allclose(gradients[i], expected, rtol=1e-6 if EXACT else 1e-2)


def test_a_path_of_penalties():
    penalties = jnp.asarray([1.0, 0.1, 0.01, 0.001], WIDE)
    path = quick_jit(lambda l2: softmax_regression_path(X, LABELS, l2=l2, num_classes=K))(penalties)
    assert np.all(path.converged)
    for i, l2 in enumerate(penalties):
        alone = fit_softmax_regression(X, LABELS, l2=l2, num_classes=K)
        np.testing.assert_allclose(path.kernel[i], alone.kernel, atol=1e-4)
        np.testing.assert_allclose(path.loss[i], alone.loss, rtol=1e-5)
        assert path.iterations[i] <= alone.iterations + 1
    again = fit_softmax_regression(
        X, LABELS, l2=penalties[-1], num_classes=K, start=jax.tree.map(lambda a: a[-1], path)
    )
    assert again.iterations <= 1
    with pytest.raises(ValueError, match=r"`l2` must have shape \(L,\), got \(\)"):
        softmax_regression_path(X, LABELS, l2=0.1)


def test_the_table_in_both_gauges():
    """Differences to a reference are those of maximum likelihood in the reduced coordinates."""
    fit = fit_softmax_regression(X, LABELS, l2=0.0, num_classes=K, standard_errors=True)
    whole = summarise_softmax_regression(fit, X, LABELS, reference=None)
    errors = np.concatenate([fit.standard_errors[0], fit.standard_errors[1][None]])
    np.testing.assert_allclose(whole.standard_errors, errors, rtol=1e-4)
    for reference in range(K):
        table = summarise_softmax_regression(fit, X, LABELS, reference=reference, confidence=0.9)
        design = np.concatenate([X, np.ones((N, 1))], axis=1)
        others = np.delete(np.arange(K), reference)
        sigma = np.exp(np.float64(fit.predict_log_proba(X)))[:, others]
        spread = sigma[:, :, None] * (np.eye(K - 1) - sigma[:, None, :])
        information = np.einsum("nab,nd,ne->adbe", spread, design, design)
        size = (K - 1) * (D + 1)
        covariance = np.linalg.inv(information.reshape(size, size))
        expected = np.sqrt(np.diag(covariance)).reshape(K - 1, D + 1).T
        np.testing.assert_allclose(table.standard_errors, expected, rtol=1e-3)
        estimates = np.concatenate([fit.kernel, fit.bias[None]])
        estimates = estimates[:, others] - estimates[:, [reference]]
        np.testing.assert_allclose(table.estimates, estimates, atol=1e-5)
        np.testing.assert_allclose(table.z, table.estimates / table.standard_errors, rtol=1e-5)
        half = 1.6448536269514722 * table.standard_errors
        np.testing.assert_allclose(table.upper - table.estimates, half, rtol=1e-3)
        np.testing.assert_allclose(table.estimates - table.lower, half, rtol=1e-3)
    lines = whole.table(["a", "b", "c"], ["u", "v", "w"]).splitlines()
    assert len(lines) == 1 + K * (D + 1)
    assert lines[-1].split()[:2] == ["w", "bias"]


@pytest.mark.parametrize("reference", range(K))
def test_the_table_names_each_class_as_it_is(reference):
    """Names as pandas and NumPy hold them, of any length; the reference has no line."""
    fit = fit_softmax_regression(X, LABELS, l2=0.1, num_classes=K)
    table = summarise_softmax_regression(fit, X, LABELS, l2=0.1, reference=reference)
    features = pd.Index(["a", "the length (cm)", "c"])
    classes = np.array(["setosa", "versicolor", "virginica"])
    *lines, last = table.table(features, classes).splitlines()
    assert last.split()[-1] == classes[reference]
    assert len({len(line) for line in lines}) == 1
    others = np.delete(np.arange(K), reference)
    for m, k in enumerate(others):
        of_class = lines[1 + m * (D + 1) : 1 + (m + 1) * (D + 1)]
        assert all(line.split()[0] == classes[k] for line in of_class)
        difference = float(fit.kernel[0, k] - fit.kernel[0, reference])
        assert abs(float(of_class[0].split()[2]) - difference) < 1e-3 * abs(difference) + 1e-6
    unnamed = [line.split()[0] for line in table.table().splitlines()[1:-1]]
    assert unnamed == [str(k) for k in np.repeat(others, D + 1)]
    assert jax.jit(lambda: table)().table() == table.table()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"features": ["a"]}, "`features` must be 3 names, got 1"),
        ({"features": [*"abcd"]}, "`features` must be 3 names, got 4"),
        ({"classes": ["u", "v"]}, "`classes` must be 3 names, got 2"),
    ],
)
def test_the_table_wants_all_names(names, message):
    fit = fit_softmax_regression(X, LABELS, l2=0.1, num_classes=K)
    with pytest.raises(ValueError, match=message):
        summarise_softmax_regression(fit, X, LABELS, l2=0.1).table(**names)


def test_nothing_is_known_of_a_separated_fit():
    x = jnp.asarray([[0.0], [1.0], [3.0], [4.0]], WIDE)
    fit = fit_softmax_regression(x, [0, 0, 1, 1], l2=0.0)
    assert fit.separated
    summary = summarise_softmax_regression(fit, x, [0, 0, 1, 1])
    assert np.all(np.isinf(summary.standard_errors))
    assert np.all(summary.p_values == 1)
    likely = softmax_regression_intervals(fit, x, [0, 0, 1, 1], x)
    np.testing.assert_array_equal(likely.lower, 0)
    np.testing.assert_array_equal(likely.upper, 1)


@pytest.mark.parametrize("of", [summarise_softmax_regression, softmax_regression_intervals])
def test_what_follows_from_a_fit_is_of_its_features(of):
    fit = fit_softmax_regression(X, LABELS, l2=0.1, num_classes=K)
    more = () if of is summarise_softmax_regression else (X,)
    with pytest.raises(ValueError, match=r"`features` must have shape \(N, 3\) for this `fit`"):
        of(fit, X[:, :2], LABELS, *more)
    with pytest.raises(TypeError, match="`fit` must be what `fit_softmax_regression` returns"):
        of(fit.kernel, X, LABELS, *more)


def test_a_path_goes_on_from_a_fit():
    first = fit_softmax_regression(X, LABELS, l2=0.1, num_classes=K, standard_errors=True)
    path = softmax_regression_path(X, LABELS, l2=[0.1, 0.05], num_classes=K, start=first)
    assert path.iterations[0] <= 1
    with pytest.raises(ValueError, match="`tol` must be ≥ 0"):
        softmax_regression_path(X, LABELS, l2=[0.1], tol=-1.0)


@pytest.mark.skipif(not EXACT, reason="six digits")
def test_the_figures_of_statsmodels():
    from statsmodels.discrete.discrete_model import MNLogit  # slow to import

    design = np.concatenate([X, np.ones((N, 1))], axis=1)
    theirs = MNLogit(LABELS, design).fit(disp=0, method="newton", tol=1e-14)
    fit = fit_softmax_regression(X, LABELS, l2=0.0, num_classes=K)
    ours = summarise_softmax_regression(fit, X, LABELS)
    pairs = (
        (ours.estimates, theirs.params),
        (ours.standard_errors, theirs.bse),
        (ours.z, theirs.tvalues),
        (ours.p_values, theirs.pvalues),
    )
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)
    intervals = np.stack([np.transpose(ours.lower), np.transpose(ours.upper)], axis=-1)
    np.testing.assert_allclose(intervals, theirs.conf_int(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": K}, r"`reference` must lie in \[0, 3\) or be None, got 3"),
        ({"confidence": 95}, r"`confidence` must lie in \(0, 1\), got 95"),
    ],
)
def test_bad_options_of_the_table(options, message):
    fit = fit_softmax_regression(X, LABELS, l2=0.1, num_classes=K)
    with pytest.raises(ValueError, match=message):
        summarise_softmax_regression(fit, X, LABELS, l2=0.1, **options)

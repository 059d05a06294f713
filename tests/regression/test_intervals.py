"""softmax_regression_intervals against the delta method in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE
from scipy.special import expit, logsumexp
from scipy.stats import norm

from jaxsoftjac.regression import FittedRegression, softmax_regression_intervals

pytestmark = pytest.mark.once

N, D, K = 40, 2, 3
random = np.random.default_rng(0)
X = random.normal(size=(N, D)) * [1, 30] + [0, 200]
LABELS = np.arange(N) % K
WEIGHTS = random.uniform(0.5, 1.5, size=N)
NEW = np.array([[0.0, 200.0], [2.0, 150.0], [-40.0, 900.0]])
EXACT = WIDE == jnp.float64


def fit_of(*kernel, bias=(0, 0, 0)):
    """A fit with these coefficients. The formula holds at any, of a minimiser or not."""
    nothing = jnp.zeros([], WIDE)
    return FittedRegression(jnp.asarray(kernel, WIDE), jnp.asarray(bias, WIDE), *(nothing,) * 6)


FIT = [0.5, 0.3, -0.8], [0.02, -0.03, 0.01]
BIAS = [-4.0, 6.0, -2.0]


def by_numpy(fit, x, rows, l2, weights):
    """Log-odds and their deviations, from the Hessian of all K(D + 1) coefficients."""
    kernel, bias = np.asarray(fit.kernel, float), np.asarray(fit.bias, float)
    z = x @ kernel + bias
    sigma = np.exp(z - logsumexp(z, axis=1, keepdims=True))
    J = sigma[:, :, None] * (np.eye(K) - sigma[:, None])
    ones = np.append(x, np.ones((len(x), 1)), axis=1)
    hessian = np.einsum("n,njk,nc,nd->jckd", weights, J, ones, ones)
    penalty = np.append(np.full(x.shape[1], l2 * weights.sum()), 0)
    hessian = hessian.reshape(2 * (K * ones.shape[1],)) + np.diag(np.tile(penalty, K))
    # The shift of all classes alike is open. What is asked for does not contain it.
    shifts = np.kron(np.ones((K, 1)), np.eye(ones.shape[1]))
    covariance = np.linalg.inv(hessian + shifts @ shifts.T)
    z, deviations = rows @ kernel + bias, np.empty((len(rows), K))
    log_odds = np.empty_like(deviations)
    for m, row in enumerate(np.append(rows, np.ones((len(rows), 1)), axis=1)):
        for k in range(K):
            others = np.delete(np.arange(K), k)
            log_odds[m, k] = z[m, k] - logsumexp(z[m, others])
            g = np.eye(K)[k]
            g[others] -= np.exp(z[m, others] - logsumexp(z[m, others]))
            along = np.kron(g, row)
            deviations[m, k] = np.sqrt(along @ covariance @ along)
    return log_odds, deviations


@pytest.mark.parametrize(("l2", "confidence"), [(0.0, 0.95), (0.2, 0.5)])
def test_against_numpy(l2, confidence):
    options = {"l2": l2, "weights": WEIGHTS.astype(WIDE)}
    x, new = X.astype(WIDE), NEW.astype(WIDE)
    fit = fit_of(*FIT, bias=BIAS)
    found = softmax_regression_intervals(fit, x, LABELS, new, **options, confidence=confidence)
    log_odds, deviations = by_numpy(fit, X, NEW, l2, WEIGHTS)
    half = norm.ppf((1 + confidence) / 2) * deviations
    expected = expit(log_odds), deviations, expit(log_odds - half), expit(log_odds + half)
    for actual, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-8 if EXACT else 5e-3, atol=1e-30)


@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_a_feature_that_was_constant_is_open_unless_a_penalty_holds_it(l2):
    x = np.append(X, np.full((N, 1), 7.0), axis=1).astype(WIDE)
    fit = fit_of(*FIT, [0, 0, 0], bias=BIAS)
    rows = np.array([[0.0, 200.0, 7.0], [0.0, 200.0, 8.0]], WIDE)
    found = softmax_regression_intervals(fit, x, LABELS, rows, l2=l2)
    assert np.all(np.isfinite(found.standard_errors[0]))
    if l2 == 0:
        assert np.all(np.isinf(found.standard_errors[1]))
        np.testing.assert_array_equal(found.lower[1], 0)
        np.testing.assert_array_equal(found.upper[1], 1)
    else:
        alone = by_numpy(fit, x.astype(float), rows, l2, np.ones(N))[1]
        np.testing.assert_allclose(found.standard_errors, alone, rtol=1e-7 if EXACT else 5e-3)


def test_a_class_that_is_certain_keeps_its_digits():
    """Where 1 − p is less than the rounding of 1, the others tell."""
    fit = fit_of([3, 0, -3])
    x = np.linspace(-1, 1, 12)[:, None].astype(WIDE)
    rows = np.array([[15.0]], WIDE)
    found = softmax_regression_intervals(fit, x, np.arange(12) % 3, rows)
    log_odds, deviations = by_numpy(fit, x.astype(float), rows, 0.0, np.ones(12))
    assert found.probabilities[0, 0] == 1
    np.testing.assert_allclose(found.standard_errors, deviations, rtol=1e-8 if EXACT else 5e-3)
    np.testing.assert_allclose(found.probabilities[0, 1], expit(log_odds[0, 1]), rtol=1e-3)

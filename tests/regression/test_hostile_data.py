"""Regression on data that have no, or many, minimisers, or none at all: finite, or said plainly."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, quick_jit

from jaxsoftjac.regression import fit_softmax_regression

pytestmark = pytest.mark.once

SOLVERS = ["newton-cg", "newton-cholesky", "lbfgs"]
N, D, K = 60, 3, 3
random = np.random.default_rng(1)
X = random.normal(size=(N, D))
NOISY = (X @ random.normal(size=(D, K)) + random.gumbel(size=(N, K))).argmax(1)
SEPARABLE = (X @ random.normal(size=(D, K))).argmax(1)


@cache
def compiled(solver):
    return quick_jit(
        partial(fit_softmax_regression, solver=solver, num_classes=K, standard_errors=True)
    )


def fit(x, labels, l2=0.0, weights=None, solver="newton-cg", dtype=WIDE):
    weights = np.ones(len(labels)) if weights is None else weights
    numbers = jnp.asarray(l2, dtype), jnp.asarray(weights, dtype)
    return compiled(solver)(jnp.asarray(x, dtype), labels, l2=numbers[0], weights=numbers[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-19, 1e-10, 1e10, 1e18])
def test_the_scale_of_a_column_does_not_matter(solver, scale, dtype):
    """Without a penalty: steps, coefficients and standard errors are those of the unscaled one."""
    if dtype == "float64" and not jax.config.jax_enable_x64:
        return
    scales = np.array([1, scale, 1])  # in float32, squares of the smallest vanish
    plain, moved = (fit(x, NOISY, solver=solver, dtype=dtype) for x in (X, X * scales))
    assert moved.converged
    assert abs(moved.iterations - plain.iterations) <= 1
    tolerance = {"rtol": 2e-4, "atol": 2e-4}
    np.testing.assert_allclose(
        np.asarray(moved.kernel) * scales[:, None], plain.kernel, **tolerance
    )
    np.testing.assert_allclose(moved.loss, plain.loss, rtol=1e-5)
    errors = np.asarray(moved.standard_errors[0]) * scales[:, None]
    np.testing.assert_allclose(errors, plain.standard_errors[0], rtol=1e-3)


CONSTANTS = [0.0, 0.1, -1 / 3, 1e6 + 0.1, 1e-20, 1e30]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("constant", CONSTANTS)
def test_a_constant_column_is_left_out(solver, constant):
    """Its coefficient is 0, the others are those without it; what it shares with the bias is ∞."""
    x = np.insert(X, 1, constant, axis=1)
    plain, result = fit(X, NOISY, solver=solver), fit(x, NOISY, solver=solver)
    assert result.converged
    assert not np.any(result.kernel[1])
    np.testing.assert_allclose(np.delete(result.kernel, 1, 0), plain.kernel, atol=2e-4)
    errors, of_bias = result.standard_errors
    assert np.all(np.isinf(errors[1]))
    assert np.all(np.isinf(of_bias)) == (constant != 0)
    np.testing.assert_allclose(np.delete(errors, 1, 0), plain.standard_errors[0], rtol=1e-3)
    held = fit(x, NOISY, l2=0.01, solver=solver)
    expected = np.sqrt((1 - 1 / K) / (0.01 * N))  # the penalty alone holds it
    np.testing.assert_allclose(held.standard_errors[0][1], expected, rtol=1e-5)


def test_a_column_that_varies_only_where_the_weight_is_0():
    weights = np.arange(N) % 2
    x = np.insert(X, 1, np.where(weights > 0, 0.3, 1e9 * np.arange(N)), axis=1)
    plain, result = fit(X, NOISY, weights=weights), fit(x, NOISY, weights=weights)
    assert result.converged
    assert not np.any(result.kernel[1])
    np.testing.assert_allclose(np.delete(result.kernel, 1, 0), plain.kernel, atol=2e-4)


@pytest.mark.parametrize("mixing", [[1.0, 0, 0], [2.0, -1.0, 0], [1e3, 0, 1e-3]])
@pytest.mark.parametrize("solver", SOLVERS[:2])
def test_collinear_columns_have_no_standard_errors(mixing, solver):
    """∞ of the columns that take part, and those of the others as without the last."""
    mixing = np.array(mixing)
    x = np.c_[X, X @ mixing]
    plain, result = fit(X, NOISY, solver=solver), fit(x, NOISY, solver=solver)
    assert result.converged
    np.testing.assert_allclose(result.loss, plain.loss, rtol=1e-5)
    errors = result.standard_errors[0]
    involved = np.append(np.abs(mixing) * X.std(0) > 1e-2, True)
    assert np.all(np.isinf(errors[involved]))
    if np.all((mixing == 0) | (np.abs(mixing) >= 1)):
        np.testing.assert_allclose(
            errors[~involved], plain.standard_errors[0][~involved[:-1]], rtol=1e-3
        )
        np.testing.assert_allclose(result.standard_errors[1], plain.standard_errors[1], rtol=1e-3)


SEPARATED = {
    "separable": (X, SEPARABLE),
    "one class has no examples": (X, NOISY % 2),
    "one example": (X[:1], NOISY[:1]),
    "one class of examples": (X, 0 * NOISY + 2),
    "one class apart": (X + 100 * (NOISY == 0)[:, None], NOISY),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", SEPARATED)
def test_separated_classes_are_no_convergence(solver, name):
    x, labels = SEPARATED[name]
    result = fit(x, labels, solver=solver)
    assert result.separated
    assert not result.converged
    assert np.all(np.isfinite(result.kernel))
    assert np.all(np.isinf(result.standard_errors[0]))
    if solver == "lbfgs" and not jax.config.jax_enable_x64:
        return  # with a penalty it stalls short of its tolerance in float32, and says so
    held = fit(x, labels, l2=1e-3, solver=solver)
    if (
        jax.config.jax_enable_x64 or solver != "lbfgs"
    ):  # in float32 it stalls short of its tolerance
        assert held.converged
    assert not held.separated
    assert np.all(np.isfinite(held.standard_errors[0]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("solver", SOLVERS)
def test_ordinary_data_are_not_called_separated(solver, seed):
    """Few examples, features of all sizes, nearly collinear columns, rare classes."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, D)) * 10.0 ** random.integers(-3, 4, size=D)
    x[:, 1] = x[:, 0] * (1 + 1e-2 * random.normal(size=N)) if seed % 2 else x[:, 1]
    labels = random.integers(0, 2, size=N)
    labels[: 3 + seed] = 2  # a class with few examples, at random places
    result = fit(x, labels, solver=solver)
    assert result.converged
    assert not result.separated


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [0, 1])
def test_a_search_cut_short_does_not_tell(solver, steps):
    result = fit_softmax_regression(X, NOISY, l2=0.0, solver=solver, max_iterations=steps)
    assert not result.converged
    assert not result.separated


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_features(solver):
    """The bias alone: the logarithms of the classes' shares."""
    result = fit(X[:, :0], NOISY, solver=solver)
    assert result.converged
    assert result.kernel.shape == (0, K)
    shares = np.log(np.bincount(NOISY, minlength=K) / N)
    np.testing.assert_allclose(result.bias, shares - shares.mean(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, NOISY), {"weights": NOISY - 1.0}, ValueError, "`weights` must be ≥ 0, got -1.0"),
        ((X, NOISY), {"weights": 0 * NOISY}, ValueError, "`weights` must not all be zero"),
        ((X, NOISY), {"weights": np.full(N, np.inf)}, ValueError, "`weights` must be finite"),
        ((X / [1, 1, 0 * 1 + np.nan], NOISY), {}, ValueError, "`features` must be finite"),
        ((X * [1, np.inf, 1], NOISY), {}, ValueError, "`features` must be finite"),
        ((X, NOISY), {"l2": np.float64(-1)}, ValueError, "`l2` must be ≥ 0 and finite, got -1.0"),
        ((X, NOISY), {"l2": np.array(-1)}, ValueError, "`l2` must be ≥ 0 and finite, got -1"),
        ((X, NOISY), {"l2": jnp.array(-1.0)}, ValueError, "`l2` must be ≥ 0 and finite, got -1.0"),
        ((X, NOISY), {"l2": np.ones(2)}, ValueError, r"`l2` must be a number, got shape \(2,\)"),
        ((X, NOISY), {"l2": None}, TypeError, "`l2` must be an array of numbers, got NoneType"),
        ((X, NOISY), {"tol": np.float32(-1)}, ValueError, "`tol` must be ≥ 0 and finite"),
        ((X, NOISY.astype(str)), {}, TypeError, "`labels` must be integers, or probabilities, got"),
        ((X, NOISY.astype(object)), {}, TypeError, "`labels` must be integers, or probabilities"),
        ((X, list("ab" * 30)), {}, TypeError, "numpy.unique"),
        ((X, NOISY == 0), {}, TypeError, "`labels` must be integers, or probabilities, got bool"),
        ((X, np.full((N, K), np.nan)), {}, ValueError, "`labels` must be finite"),
        ((X, np.full((N, K), -0.5)), {}, ValueError, "`labels` must be ≥ 0"),
    ],
)
def test_bad_data_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        fit_softmax_regression(*arguments, **{"l2": 0.0, **options})

"""Softmax regression: the gradient at the answer, in float64, on good data and on bad."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, quick_jit
from jax.flatten_util import ravel_pytree
from sklearn.linear_model import LogisticRegression

import jaxsoftjac as jsj
from jaxsoftjac.regression import fit_softmax_regression

SOLVERS = ["newton-cg", "newton-cholesky", "lbfgs"]
N, D, K = 60, 4, 3
random = np.random.default_rng(0)
X = random.normal(size=(N, D))
NOISY = (X @ random.normal(size=(D, K)) + random.gumbel(size=(N, K))).argmax(1)
SEPARABLE = (X @ random.normal(size=(D, K))).argmax(1)
COLLINEAR = X @ np.array([[1, 0, 0, 3], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
SCALES, OFFSETS = np.array([1e-6, 1, 1e3, 1e6]), np.array([0, 1, 1e3, 0])


@cache
def compiled(solver, **options):
    f = partial(fit_softmax_regression, solver=solver, **options)
    return quick_jit(f)


def fit(x, labels, *, l2, weights=None, solver="newton-cg", **options):
    f = compiled(solver, **{"num_classes": K} | options)
    weights = np.ones(len(labels)) if weights is None else weights
    return f(as_wide(x), labels, l2=as_wide(l2), weights=as_wide(weights))


def as_wide(x):
    return jnp.asarray(x, WIDE)


def gradient(kernel, bias, x, labels, l2, weights=None):
    """Of the objective by (kernel, bias), and the norm of its parts, in NumPy's float64."""
    kernel, bias, x = (np.asarray(a, np.float64) for a in (kernel, bias, x))
    weights = np.full(len(x), 1 / len(x)) if weights is None else weights / np.sum(weights)
    z = x @ kernel + bias
    sigma = np.exp(z - z.max(1, keepdims=True))
    sigma /= sigma.sum(1, keepdims=True)
    residual = weights[:, None] * (sigma - np.eye(len(bias))[labels])
    return np.concatenate([x.T @ residual + l2 * kernel, residual.sum(0, keepdims=True)])


def relative_gradient(result, x, labels, l2, weights=None):
    """Relative to that at 0, in coordinates in which the Hessian there has a diagonal of 1."""
    x = np.asarray(x, np.float64)
    size = np.hypot(x.std(0), np.sqrt(l2 * K**2 / (K - 1)))
    size = np.where(x.std(0) > 0, size, np.inf)[:, None]

    def scaled(kernel, bias):
        g = gradient(kernel, bias, x, labels, l2, weights)
        return np.concatenate([(g[:-1] - x.mean(0)[:, None] * g[-1:]) / size, g[-1:]])

    zero = np.zeros(result.kernel.shape), np.zeros(result.bias.shape)
    return np.linalg.norm(scaled(result.kernel, result.bias)) / np.linalg.norm(scaled(*zero))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("name", "x", "labels"),
    [
        ("noisy", X, NOISY),
        ("separable", X, SEPARABLE),
        ("collinear", COLLINEAR, NOISY),
        ("scales", X * SCALES + OFFSETS, NOISY),
        ("constant", X * [1, 1, 0, 0] + [0, 0, 1, 1e6], NOISY),  # two constant features
        ("empty", X, NOISY % 2),  # a class without examples
        ("one", X, 0 * NOISY + 1),  # one class with examples
    ],
)
def test_the_gradient_vanishes(solver, name, x, labels):
    for l2 in (0.0, 1e-3):
        result = fit(x, labels, l2=l2, solver=solver)
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(result))
        has_minimiser = l2 > 0 or name in ("noisy", "collinear", "scales", "constant")
        assert result.separated == (not has_minimiser)
        assert result.converged == has_minimiser
        assert relative_gradient(result, as_wide(x), labels, l2) < 1e-5


@pytest.mark.parametrize("solver", SOLVERS[:2])
def test_nothing_to_learn(solver):
    one_class = fit(X, 0 * NOISY, l2=0.0, solver=solver, num_classes=1)
    assert one_class.converged
    assert one_class.kernel.shape == (D, 1)
    assert not np.any(one_class.kernel)
    one_example = fit(X[:1], NOISY[:1], l2=0.0, solver=solver)
    assert one_example.separated
    assert one_example.predict_log_proba(X[0])[NOISY[0]] > -1e-3
    no_weight = fit(X, NOISY, l2=0.0, weights=np.zeros(N), solver=solver)  # known to no tracer
    assert not np.any(no_weight.bias)


def test_the_fit_of_another_library():
    l2 = 1e-2
    theirs = LogisticRegression(C=1 / (l2 * N), solver="newton-cg", tol=1e-10).fit(X, NOISY)
    fits = [fit(X, NOISY, l2=l2, solver=solver) for solver in SOLVERS]
    for ours in [*fits, fit_softmax_regression(as_wide(X), NOISY, l2=l2)]:
        np.testing.assert_allclose(ours.kernel, theirs.coef_.T, atol=2e-5)
        np.testing.assert_allclose(ours.bias, theirs.intercept_, atol=2e-5)
        np.testing.assert_allclose(
            np.exp(ours.predict_log_proba(as_wide(X))), theirs.predict_proba(X), atol=1e-5
        )


def objective(kernel, bias, x, labels, l2):
    losses = jsj.cross_entropy(x @ kernel + bias[None], labels)
    return jnp.mean(losses) + l2 / 2 * jnp.sum(kernel**2)


@pytest.mark.parametrize("max_iterations", [1, None])
def test_the_reported_loss_and_gradient_are_those_of_the_answer(max_iterations):
    x = as_wide(np.append(3 * X + 1, np.full((N, 1), 2.0), axis=1))  # the last is constant
    result = fit(x, NOISY, l2=0.1, max_iterations=max_iterations)
    arguments = result.kernel, result.bias, x, NOISY, 0.1
    np.testing.assert_allclose(result.loss, objective(*arguments), rtol=1e-6)
    norm = jnp.linalg.norm(ravel_pytree(jax.grad(objective, (0, 1))(*arguments))[0])
    np.testing.assert_allclose(result.gradient_norm, norm, rtol=1e-4, atol=1e-6)
    assert (norm > 1e-3) == (max_iterations == 1)
    assert 0 < result.iterations < 20
    np.testing.assert_allclose(np.sum(result.kernel, 1), 0, atol=1e-6)


def test_the_reported_loss_has_a_derivative():
    """At the minimum that of the penalty alone, ‖kernel‖²/2."""
    result = fit(as_wide(X), NOISY, l2=0.1)
    again = partial(fit_softmax_regression, as_wide(X), NOISY, num_classes=K)
    slope = quick_jit(jax.grad(lambda l2: again(l2=l2).loss))(0.1)
    np.testing.assert_allclose(slope, jnp.sum(result.kernel**2) / 2, rtol=1e-4)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_standard_errors_are_those_of_the_dense_hessian(l2):
    x = as_wide(X * [1, 10, 1, 0.1] + [0, 0, 3, 0])
    result = fit(x, NOISY, l2=l2, standard_errors=True)
    flat, unravel = ravel_pytree((result.kernel, result.bias))
    hessian = quick_jit(jax.hessian(lambda flat: objective(*unravel(flat), x, NOISY, l2)))(flat)
    shifts = np.kron(np.eye(D + 1), np.ones((1, K)))
    free = np.linalg.svd(shifts)[2][D + 1 :]  # the sums over the classes are held at 0
    covariance = free.T @ np.linalg.inv(free @ np.asarray(hessian, np.float64) @ free.T) @ free / N
    expected = unravel(np.sqrt(np.diag(covariance)).astype(WIDE))
    for actual, e in zip(result.standard_errors, expected, strict=True):
        np.testing.assert_allclose(actual, e, rtol=2e-3 if WIDE == jnp.float32 else 1e-6)


def test_weights_are_repetitions():
    weights = np.arange(N) % 3
    x, labels = np.repeat(X, weights, 0), np.repeat(NOISY, weights)
    weighted = fit(as_wide(X), NOISY, l2=1e-2, weights=weights)
    repeated = fit(as_wide(x), labels, l2=1e-2)
    np.testing.assert_allclose(weighted.kernel, repeated.kernel, atol=1e-5)
    np.testing.assert_allclose(weighted.loss, repeated.loss, rtol=1e-5)


def test_probabilities_as_labels():
    target = np.eye(K)[NOISY]
    result = fit(X, as_wide(target), l2=1e-2)
    np.testing.assert_allclose(result.kernel, fit(as_wide(X), NOISY, l2=1e-2).kernel, atol=1e-5)


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_rows_over_devices(axis_type):
    mesh = jax.make_mesh((4,), ("n",), axis_types=(getattr(jax.sharding.AxisType, axis_type),))

    def place(a):
        return jax.device_put(a, jax.NamedSharding(mesh, jax.P("n")))

    expected = fit(X, NOISY, l2=1e-2)
    with jax.set_mesh(mesh):
        split = compiled("newton-cg", num_classes=K)(place(as_wide(X)), place(NOISY), l2=1e-2)
    np.testing.assert_allclose(split.kernel, expected.kernel, atol=1e-5)


def test_under_vmap():
    def one(l2):
        return fit_softmax_regression(as_wide(X), NOISY, l2=l2, num_classes=K)

    several = quick_jit(jax.vmap(one))
    kernels = several(as_wide([1e-2, 1.0])).kernel
    np.testing.assert_allclose(kernels[0], fit(X, NOISY, l2=1e-2).kernel, atol=1e-5)
    assert np.linalg.norm(kernels[1]) < np.linalg.norm(kernels[0])


def test_too_few_iterations_are_no_convergence():
    result = fit(as_wide(X), NOISY, l2=0.0, max_iterations=1)
    assert result.iterations == 1
    assert not result.converged


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0], NOISY), {}, ValueError, r"`features` must have shape \(examples, features\)"),
        ((X > 0, NOISY), {}, TypeError, "`features` must be real, got dtype bool"),
        ((X, NOISY[1:]), {}, ValueError, r"`labels` must have shape \(60,\), not empty, got \(59"),
        ((X[:0], NOISY[:0]), {}, ValueError, "not empty"),
        ((X, NOISY + 1), {"num_classes": 3}, ValueError, r"`labels` must lie in \[0, 3\)"),
        ((X, NOISY - 1), {}, ValueError, r"`labels` must lie in \[0, 2\), got values from -1 to 1"),
        ((X, NOISY + 0.5), {}, TypeError, "`labels` must be integers, or probabilities"),
        ((X, NOISY), {"weights": np.ones(3)}, ValueError, r"`weights` must have shape \(60,\)"),
        ((X, NOISY), {"l2": -1.0}, ValueError, "`l2` must be ≥ 0 and finite, got -1.0"),
        ((X, NOISY), {"tol": float("nan")}, ValueError, "`tol` must be ≥ 0 and finite, got nan"),
        ((X, NOISY), {"solver": "sag"}, ValueError, "`solver` must be one of newton-cg, newton-c"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=message):
        fit_softmax_regression(*arguments, **{"l2": 0.0, **options})


def test_the_number_of_classes_is_needed_under_jit():
    with pytest.raises(ValueError, match="`num_classes` must be given under jit"):
        jax.jit(lambda labels: fit_softmax_regression(X, labels, l2=0.0))(NOISY)

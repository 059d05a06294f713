"""Entropy and KL: exact near one-hot and near equality, finite at what is excluded."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import U, f32, quick_jit

import jaxsoftjac as jsj

HOWS = [lambda f: f, jax.jit]
entropy_and_gradient = jax.value_and_grad(jsj.entropy)


@pytest.mark.once
@pytest.mark.parametrize("gap", [16, 40, 80])
def test_entropy_near_one_hot(gap):
    x = np.array([gap, 0, 1, -1], np.float32)
    with mpmath.workdps(80):
        e = [mpmath.exp(mpmath.mpf(float(a))) for a in x]
        s = [a / mpmath.fsum(e) for a in e]
        log_s = [mpmath.log(a) for a in s]
        H = -mpmath.fsum(a * b for a, b in zip(s, log_s, strict=True))
        gradient = [float(-a * (b + H)) for a, b in zip(s, log_s, strict=True)]
    for how in HOWS:
        v, g = how(entropy_and_gradient)(x)
        np.testing.assert_allclose(v, float(H), rtol=(gap + 32) * U)
        np.testing.assert_allclose(g, gradient, rtol=(2 * gap + 128) * U)


def kl_and_gradient(x, y):
    return jsj.kl_divergence(x, y), jax.grad(lambda x: jnp.sum(jsj.kl_divergence(x, y)))(x)


@pytest.mark.once
@pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-2, 0.3, 3, 40])
def test_kl_near_equality_and_far_from_it(distance):
    random = np.random.default_rng(1)
    x = random.normal(size=(8, 20)).astype(np.float32)
    y = (x + distance * random.normal(size=x.shape)).astype(np.float32)
    with mpmath.workdps(60):
        expected, gradients = [], []
        for a, b in zip(x, y, strict=True):
            q, p = ([mpmath.exp(mpmath.mpf(float(v))) for v in row] for row in (a, b))
            q, p = ([v / mpmath.fsum(row) for v in row] for row in (q, p))
            expected.append(
                float(mpmath.fsum(s * mpmath.log(s / t) for s, t in zip(p, q, strict=True)))
            )
            gradients.append([float(t - s) for s, t in zip(p, q, strict=True)])
    for how in HOWS:
        values, g = how(kl_and_gradient)(x, y)
        assert np.all(values >= 0)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        size = np.abs(gradients).sum(-1, keepdims=True)
        np.testing.assert_allclose(
            np.asarray(g, np.float64) / size, np.array(gradients) / size, atol=1e-5
        )
    assert not np.any(jsj.kl_divergence(x, x))


@pytest.mark.once
def test_the_tangent_of_an_excluded_class_counts_for_nothing():
    x, y = f32(1, 0, 2), f32(0, 1, -np.inf)

    @quick_jit
    def products(t):
        gradients = [jax.grad(jsj.kl_divergence, i) for i in (0, 1)]
        return jnp.stack([jax.jvp(lambda y, g=g: g(x, y), (y,), (t,))[1] for g in gradients])

    expected = products(f32(1, 2, 7))
    for value in (np.inf, np.nan):
        np.testing.assert_allclose(products(f32(1, 2, value)), expected, atol=4 * U)


@pytest.mark.once
def test_masked_and_infinite_logits_have_finite_derivatives():
    x, y = f32(0, -np.inf, 1, np.nan), f32(1, -np.inf, 0, 2)
    where = np.array([True, True, True, False])
    functions = (
        lambda x: jsj.entropy(x, where=where),
        lambda x: jsj.kl_divergence(x, y, where=where),
        lambda x: jsj.kl_divergence(y, x, where=where),
    )
    every = jax.grad, jax.jacfwd, jax.hessian
    for of_f in quick_jit(lambda x: [[d(f)(x) for d in every] for f in functions])(x):
        assert all(np.all(np.isfinite(d)) for d in of_f)
        assert np.all(np.asarray(of_f[0])[[1, 3]] == 0)
    assert jsj.kl_divergence(f32(0, -np.inf), f32(0, 0)) == np.inf


def test_no_classes_left():
    for f in (jsj.entropy, lambda x, where: jsj.kl_divergence(x, 2 * x, where=where)):
        value, gradient = jax.value_and_grad(f)(f32(0, 1, 2), where=np.zeros(3, bool))
        assert value == 0
        assert not np.any(gradient)


def test_bad_input():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="`target_logits` must have the shape of `logits`"):
        jsj.kl_divergence(x, x[:1])
    with pytest.raises(TypeError, match="`target_logits` must be real, got dtype bool"):
        jsj.kl_divergence(x, x > 0)
    with pytest.raises(TypeError, match="`axis` must be an int, got tuple"):
        jsj.entropy(x, axis=(0, 1))


HUGE = [
    ((3e38, -3e38, 0), (-3e38, 3e38, 0), np.inf),
    ((1e38, -1e38, 0), (-1e38, 1e38, 0), 2e38),
    ((0, 0, 3e38), (0, 0, 0), 2e38),
    ((0, -2e38, 0), (0, 0, -1e38), 1e38),
    ((3e38, -3e38, 0), (3e38, -3e38, 0), 0),
]


@pytest.mark.once
@pytest.mark.parametrize(("x", "y", "expected"), HUGE)
def test_rows_as_far_apart_as_floats_can_be(x, y, expected):
    """The divergence itself to the largest number, and ∞ beyond; derivatives finite."""
    x, y = f32(*x), f32(*y)
    value, gradients = jax.value_and_grad(jsj.kl_divergence, argnums=(0, 1))(x, y)
    np.testing.assert_allclose(value, expected, rtol=4 * U)
    np.testing.assert_allclose(gradients[0], jsj.softmax(x) - jsj.softmax(y), atol=2 * U)
    assert np.all(np.isfinite(gradients[1]))


@pytest.mark.once
@pytest.mark.parametrize("target", [(0, 1, 2), (5, 0, -3), (0, -20, 1)])
def test_a_class_of_the_target_that_the_model_excludes(target):
    """Costs ∞; the logits that are left have the gradient q − p, the excluded one 0."""
    x, y = f32(0, -np.inf, 1), f32(*target)
    value, gradient = jax.value_and_grad(jsj.kl_divergence)(x, y)
    assert value == np.inf
    expected = np.float64(jsj.softmax(x)) - np.float64(jsj.softmax(y))
    np.testing.assert_allclose(gradient, np.where(np.isinf(x), 0, expected), atol=4 * U)
    pushed = jax.jvp(lambda x: jsj.kl_divergence(x, y), (x,), (f32(0, np.nan, 0),))[1]
    assert pushed == 0

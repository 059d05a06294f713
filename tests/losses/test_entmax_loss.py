"""entmax_loss: values near and at 0, gradients, convexity, options, the members with a name."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from plain_entmax import long_entmax

import jaxsoftjac as jsj

pytestmark = pytest.mark.once

ALPHAS = (1.0, 1.3, 1.5, 2.0, 3.0)
LABELS = np.array([0, 2, 1, 4, 3, 0])


def logits(scale=1.0):
    return jnp.asarray(np.random.default_rng(3).normal(size=(6, 5)) * scale, WIDE)


def target():
    y = np.random.default_rng(4).exponential(size=(6, 5))
    y[1, 2] = y[2, 0] = 0
    return jnp.asarray(y / y.sum(-1, keepdims=True), WIDE)


def long_loss(x, y, alpha):
    """⟨p − y, x⟩ + H(p) − H(y) of rows in long double."""
    x, y, alpha = np.asarray(x, np.longdouble), np.asarray(y, np.longdouble), np.longdouble(alpha)
    p = long_entmax(x, alpha)

    def entropy(p):
        if alpha == 1:
            return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
        return (p - p**alpha).sum(-1) / (alpha * (alpha - 1))

    return ((p - y) * x).sum(-1) + entropy(p) - entropy(y)


@quick_jit
def losses(x, labels):
    """Of every α as a number, with the gradients; and of all as one array."""

    def f(x, a):
        return jsj.entmax_loss(x, labels, a)

    numbers = [(f(x, a), jax.grad(lambda x, a=a: jnp.sum(f(x, a)))(x)) for a in ALPHAS]
    return numbers, jax.vmap(f, (None, 0))(x, jnp.asarray(ALPHAS, x.dtype))


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_values_and_gradients(kind, scale):
    x = logits(scale)
    labels, y = (
        (LABELS, np.eye(5)[LABELS]) if kind == "labels" else (target(), np.asarray(target()))
    )
    numbers, learned = losses(x, labels)
    for alpha, (loss, gradient), other in zip(ALPHAS, numbers, learned, strict=True):
        close(loss, long_loss(x, y, alpha).astype(float))
        close(other, loss)
        close(gradient, (long_entmax(x, alpha) - y).astype(float))
        assert np.all(np.asarray(loss) >= 0)


def test_alpha_1_is_cross_entropy_and_alpha_2_the_sparsemax_loss():
    x = logits(9.0)
    close(jsj.entmax_loss(x, LABELS, 1), jsj.cross_entropy(x, LABELS))
    y = jnp.eye(5, dtype=WIDE)[LABELS]
    p = jsj.sparsemax(x)
    close(jsj.entmax_loss(x, LABELS, 2), jnp.sum((p - y) * x, -1) + jnp.sum(p - p**2, -1) / 2)


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0, 2.5])
def test_small_losses_keep_their_digits(alpha):
    """The margin is 1/(α − 1); what is left to it goes from 1e-1 to 1e-3 of it."""
    gap = 40.0 if alpha == 1 else 1 / (alpha - 1) * (1 - 10.0 ** -np.arange(1, 4))
    x = jnp.stack([jnp.broadcast_to(jnp.asarray(gap), (3,)), jnp.zeros(3), -jnp.ones(3)], -1)
    x = x.astype(jnp.float32)
    exact = long_loss(x, np.array([1.0, 0, 0]), alpha)
    if alpha == 1:
        exact = np.log1p(np.exp(-np.longdouble(40)) * (1 + np.exp(-np.longdouble(1)))) + 0 * exact
    np.testing.assert_allclose(jsj.entmax_loss(x, 0, alpha), exact.astype(float), rtol=2e-3)
    assert np.all(exact < 1e-2)


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0, 3.0])
def test_the_loss_is_exact_near_the_target(alpha):
    """y = p·(1 + e) with small e: the loss is ½Σp^α e² to first order."""
    x = logits(0.2).astype(jnp.float32)
    p = jsj.entmax(x, alpha)
    e = 1e-3 * jnp.asarray(np.random.default_rng(0).normal(size=p.shape), jnp.float32)
    y = p + (p * e - p * jnp.sum(p * e, -1, keepdims=True))
    e = jnp.where(p > 0, (y - p) / jnp.where(p > 0, p, 1), 0)
    expected = jnp.sum(jnp.where(p > 0, p, 0) ** alpha * e**2, -1) / 2
    np.testing.assert_allclose(jsj.entmax_loss(x, y, alpha), expected, rtol=5e-3)


@pytest.mark.parametrize(("alpha", "gap"), [(1.0, 20.0), (1.0, 40.0), (1.2, 4.9), (1.5, 1.99)])
def test_the_gradient_of_a_certain_target_is_that_of_its_label(alpha, gap):
    x = jnp.asarray([gap, 0, -0.5], jnp.float32)
    target = jnp.asarray([1, 0, 0], jnp.float32)

    def derivatives(labels):
        gradient = jax.grad(lambda x: jsj.entmax_loss(x, labels, alpha))
        return gradient(x), jax.jvp(gradient, (x,), (jnp.cos(x),))[1]

    for found, expected in zip(derivatives(target), derivatives(0), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert expected[0] != 0


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_beyond_the_margin_loss_and_gradient_are_0(alpha):
    x = jnp.asarray([[1.01 / (alpha - 1), 0, -3], [90, 0, 1]], jnp.float32)
    loss, gradient = jax.value_and_grad(lambda x: jnp.sum(jsj.entmax_loss(x, 0, alpha)))(x)
    assert loss == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("alpha", [1.3, 2.0])
def test_the_hessian_is_the_operator_and_the_loss_convex(alpha):
    x = logits(0.3)
    hessian = jax.vmap(jax.hessian(lambda x: jsj.entmax_loss(x, 1, alpha)))
    J = quick_jit(lambda x: (hessian(x), jsj.EntmaxJacobian.from_logits(x, alpha).as_matrix()))
    close(*J(x))
    ends = logits(1.0), jnp.flip(logits(2.0), 0)
    middle = jsj.entmax_loss((ends[0] + ends[1]) / 2, LABELS, alpha)
    mean = sum(jsj.entmax_loss(x, LABELS, alpha) for x in ends) / 2
    assert np.all(middle <= mean + 1e-6)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.2])
def test_examples_without_a_loss(alpha):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    x = x.at[3].set(jnp.nan).at[4, 1].set(-jnp.inf)
    labels = np.array([0, 3, -1, -100, 1])
    f = functools.partial(jsj.entmax_loss, labels=labels, alpha=alpha, ignore_index=-100)
    loss = f(x)
    gradient = jax.grad(lambda x: jnp.sum(f(x)))(x)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True, False, False])
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), [False, True, True, False, False])
    assert loss[3] == 0
    assert loss[4] == jnp.inf
    assert not np.any(gradient[3])
    chex.assert_tree_all_finite(gradient[4])
    where = np.array([True, False, True])
    kept = jsj.entmax_loss(x[:1, ::2], 1, alpha)
    close(jsj.entmax_loss(x[:1], 2, alpha, where=where), kept)
    assert np.isnan(jsj.entmax_loss(x[3:4], 0, alpha)).all()


def test_huge_logits_make_no_nan():
    x = jnp.asarray([[1e30, -1e30, 0], [3e38, -3e38, 3e38], [0, 0, 0], [-1e30] * 3], jnp.float32)

    @jax.jit
    def both(x):
        f = functools.partial(jsj.entmax_loss, labels=0)
        gradients = [jax.grad(lambda x, a=a: jnp.sum(f(x, alpha=a)))(x) for a in (1.5, 2.0)]
        return [f(x, alpha=a) for a in (1.5, 2.0)], gradients

    with jax.debug_nans(True):
        chex.assert_tree_all_finite(both(x))


def test_half_precision_is_rounded_once():
    x = logits().astype(jnp.bfloat16)
    loss = jsj.entmax_loss(x, LABELS)
    np.testing.assert_array_equal(
        loss, jsj.entmax_loss(x.astype(jnp.float32), LABELS).astype(jnp.bfloat16)
    )


def test_errors():
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(2,\), got \(3,\)"):
        jsj.entmax_loss(x, np.zeros(3, int))
    with pytest.raises(ValueError, match="`alpha` must lie in"):
        jsj.entmax_loss(x, 0, 0.9)
    with pytest.raises(ValueError, match="`axis` must lie in"):
        jsj.entmax_loss(x, 0, axis=2)
    with pytest.raises(ValueError, match="`ignore_index` must be None"):
        jsj.entmax_loss(x, x, ignore_index=0)
    with pytest.raises(TypeError, match="`labels` must be real"):
        jsj.entmax_loss(x, x > 0)


@pytest.mark.parametrize(("alpha", "gap"), [(1.05, 12.0), (1.05, 18.0), (1.1, 8.0), (1.0, 30.0)])
def test_the_derivative_by_alpha_of_confident_rows(alpha, gap):
    """∂H/∂α at p, whose term of the top class is not seen in a p that is rounded to 1."""
    x = np.array([gap, 0, -1, 0.5])
    a = np.longdouble(alpha)
    p = long_entmax(np.asarray(x, np.longdouble), a)
    p[0] = 0
    log_p = np.log(np.where(p > 0, p, 1))
    log_p[0] = np.log1p(-p.sum())
    p[0] = np.exp(log_p[0])
    if alpha == 1:
        expected = -(p * log_p**2).sum() / 2 + (p * log_p).sum()
    else:
        beta, power = a - 1, np.expm1((a - 1) * log_p)
        logs = power / beta
        slope = ((power + 1) * log_p - logs) / beta
        expected = (p * (logs / a - slope)).sum() / a
    for labels in (0, jnp.asarray([1, 0, 0, 0], jnp.float32)):
        found = jax.grad(lambda a, y=labels: jsj.entmax_loss(jnp.asarray(x, jnp.float32), y, a))(
            jnp.float32(alpha)
        )
        np.testing.assert_allclose(found, float(expected), rtol=2e-4)


def test_the_mixed_derivative_by_alpha_and_a_target_of_0():
    x, y = jnp.asarray([1, 0.2, 0.5], WIDE), jnp.asarray([0.6, 0, 0.4], WIDE)

    def along(y):
        return jax.jvp(lambda a: jsj.entmax_loss(x, y, a), (1.5,), (1.0,))[1]

    reverse = jax.grad(along)(y)
    forward = jax.jacfwd(jax.grad(lambda y, a: jsj.entmax_loss(x, y, a)), 1)(y, 1.5)
    close(reverse - reverse[0], forward - forward[0])  # what they are along Σẏ = 0
    assert abs(reverse[1] - reverse[0]) > 3

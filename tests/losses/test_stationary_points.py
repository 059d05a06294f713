"""Where the gradient of a loss is exactly 0, its Hessian is not: a difference of probabilities that
is 0 still moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, quick_jit

import jaxsoftjac as jsj

X = np.array([[0.0, 0.0, 0.0, 0.0], [np.log(2), 0.0, 0.0, -np.inf], [1.0, 1.0, -np.inf, 1.0]])
SIGMA = np.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0], [1 / 3, 1 / 3, 0, 1 / 3]])
J = SIGMA[:, :, None] * (np.eye(4) - SIGMA[:, None, :])
WEIGHTS = np.array([1.0, 2.0, 1.0, 0.5])


def of_model(x, t):
    return jsj.kl_divergence(x, jnp.asarray(X, x.dtype))


def of_target(x, t):
    return jsj.kl_divergence(jnp.asarray(X, x.dtype), x)


def of_products(x, t):
    """The rows as hidden @ kernel + bias, smoothed to the uniform target alone."""
    bias = jnp.asarray([0.0, 0, 0, 0], x.dtype)
    return jsj.linear_cross_entropy(
        x, jnp.eye(4, dtype=x.dtype), np.zeros(3, int), bias=bias, label_smoothing=1.0, block_size=2
    )


# A loss of (x, t) whose gradient by x is 0 at the rows, and how often its Hessian is J.
LOSSES = {
    "cross_entropy": (lambda x, t: jsj.cross_entropy(x, t), [1, 1, 1]),
    "cross_entropy, class weights": (
        lambda x, t: jsj.cross_entropy(
            x, t / WEIGHTS[None].astype(x.dtype), class_weights=jnp.asarray(WEIGHTS, x.dtype)
        ),
        [1, 1, 1],
    ),
    "cross_entropy, smoothing": (
        lambda x, t: jsj.cross_entropy(x, np.zeros(3, int), label_smoothing=1.0),
        [1, None, 1],
    ),
    "linear_cross_entropy, smoothing": (of_products, [1, None, None]),
    "kl_divergence, model": (of_model, [1, 1, 1]),
    "kl_divergence, target": (of_target, [1, 1, 1]),
    "entmax_loss": (lambda x, t: jsj.entmax_loss(x, t, 1.0), [1, 1, 1]),
    "entmax_loss, 1.5": (lambda x, t: jsj.entmax_loss(x, t), [2, None, 3**0.5]),
    "entmax_loss, 2": (lambda x, t: jsj.entmax_loss(x, t, 2.0), [4, None, 3]),
}


@pytest.mark.once
@pytest.mark.parametrize("name", LOSSES)
def test_the_hessian_at_an_optimum(name):
    loss, times = LOSSES[name]

    @quick_jit
    def hessians(x, t):
        def total(x):
            return jnp.sum(loss(x, t))

        eye = jnp.broadcast_to(jnp.eye(4, dtype=x.dtype)[:, None, :], (4, 3, 4))
        push = jax.vmap(lambda v: jax.jvp(jax.grad(total), (x,), (v,))[1])(eye)
        pull = jax.vmap(jax.vjp(jax.grad(total), x)[1])(eye)[0]
        twice = jax.vmap(
            jax.vmap(
                lambda u, v: jax.jvp(
                    lambda x: jax.jvp(lambda x: loss(x, t), (x,), (u,))[1], (x,), (v,)
                )[1],
                (None, 0),
            ),
            (0, None),
        )(eye, eye)
        return jax.grad(total)(x), push, pull, twice

    gradient, push, pull, twice = hessians(jnp.asarray(X, WIDE), jnp.asarray(SIGMA, WIDE))
    for row, factor in enumerate(times):
        if factor is None:  # not an optimum of this loss
            continue
        np.testing.assert_allclose(gradient[row], 0, atol=1e-7)
        for hessian in (push[:, row], pull[:, row], twice[:, :, row]):
            np.testing.assert_allclose(hessian, factor * J[row], rtol=1e-6, atol=1e-7)

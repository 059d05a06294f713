"""The Gauss–Newton matrix from the factor of the softmax Jacobian: samples of it, and its diagonal.

J = FFᵀ with F = diag(√σ) − σ√σᵀ, a product with which is O(K).

>>> import jax.numpy as jnp
>>> diagonal = gauss_newton_diagonal(lambda kernel, inputs: inputs @ kernel)
>>> print(jnp.round(diagonal(jnp.zeros((1, 2)), jnp.ones((1, 1))), 3))
[[0.25 0.25]]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac.curvature._linearization import (
    Linearization,
    Model,
    add_scaled,
    check_damping,
    linearize,
    number_of_rows,
)
from jaxsoftjac.functions import softmax
from jaxsoftjac.transforms import tangents_like


def sampled_fisher_product(
    model: Model, *, samples: int = 1, damping: float | jax.Array = 0.0
) -> Callable[..., Any]:
    """Product with a Monte Carlo Fisher matrix of rank ≤ samples·N, unbiased.

    J = FFᵀ with F = diag(√σ) − σ√σᵀ, so that E[(Fε)(Fε)ᵀ] = J for random signs ε: each example's H
    is replaced by the mean of the samples' (Fε)(Fε)ᵀ.

    Cost: as `gauss_newton_product` and `samples` arrays of the logits' size: what is cheaper is
    the matrix, not the product.

    Args:
        model: function (params, inputs) → logits [..., K].
        samples: vectors ε per example.
        damping: number ≥ 0.

    Returns:
        Function (params, inputs, key, tangents) → product; the same key gives the same matrix.

    Raises:
        ValueError: `samples` is not positive, `damping` is negative, or the tangents do not fit.
    """
    if samples < 1:
        raise ValueError(f"`samples` must be ≥ 1, got {samples}")
    check_damping(damping)

    def product(params, inputs, key, tangents):
        v = tangents_like(params, tangents)
        line = linearize(lambda p: model(p, inputs), params)
        hessian = sampled_hessian(line.outputs, key, samples)
        return add_scaled(line.pull(hessian(line.push(v))), damping, v)

    return product


def gauss_newton_diagonal(model: Model, *, samples: int | None = None) -> Callable[..., Any]:
    """Diagonal of the Gauss–Newton matrix of mean cross-entropy, exact or sampled.

    Exact: Σ (JₙᵀF eⱼ)² over examples n and outputs j. Sampled: the mean of (Σₙ JₙᵀFεₙ)² over
    random signs ε, unbiased, because the signs of different examples are independent.

    Cost: exact, a backward pass for every output of an example, K for one row of logits, each with
    a gradient per example in memory unless the compiler fuses it away; sampled, one ordinary
    gradient per sample.

    Args:
        model: function (params, inputs) → logits [N, ..., K]; for the exact diagonal, examples
            are the leading axis of every array of `inputs`, and do not influence each other.
        samples: number of samples; None for the exact diagonal.

    Returns:
        Function (params, inputs) → diagonal, in the structure of `params`; with `samples`,
        (params, inputs, key).

    Raises:
        ValueError: `samples` is not positive.
    """
    if samples is None:
        return partial(_exact_diagonal, model)
    if samples < 1:
        raise ValueError(f"`samples` must be ≥ 1 or None, got {samples}")

    def diagonal(params, inputs, key):
        line = linearize(lambda p: model(p, inputs), params)
        return sampled_diagonal(line, key, samples)

    return diagonal


def sampled_hessian(
    logits: jax.Array, key: jax.Array, samples: int
) -> Callable[[jax.Array], jax.Array]:
    """A Monte Carlo estimate of `mean_softmax_hessian`."""
    signs = jax.random.rademacher(key, (samples, *logits.shape), logits.dtype)
    vectors = _factor_product(signs, softmax(logits)[None])

    def product(v):
        along = jnp.sum(vectors * v[None], axis=-1, keepdims=True)
        return jnp.sum(vectors * along, axis=0) / (samples * number_of_rows(logits))

    return product


def sampled_diagonal(line: Linearization, key: jax.Array, samples: int) -> Any:
    """The mean over random signs ε of (JᵀFε)²/N."""
    sigma = softmax(line.outputs)

    def squares(key):
        signs = jax.random.rademacher(key, sigma.shape, sigma.dtype)
        return jax.tree.map(jnp.square, line.pull(_factor_product(signs, sigma)))

    estimates = lax.map(squares, jax.random.split(key, samples))
    return jax.tree.map(lambda a: jnp.mean(a, axis=0) / number_of_rows(sigma), estimates)


def _exact_diagonal(model: Model, params: Any, inputs: Any) -> Any:
    def logits_of(params, x):
        return model(params, jax.tree.map(lambda a: a[None], x))[0]

    logits, pullbacks = jax.vmap(lambda x: jax.vjp(lambda p: logits_of(p, x), params))(inputs)
    sigma = softmax(logits)

    def add_squares(total, j):
        def of_example(pullback, sigma):
            unit = jnp.zeros(sigma.size, sigma.dtype).at[j].set(1).reshape(sigma.shape)
            return jax.tree.map(jnp.square, pullback(_factor_product(unit, sigma))[0])

        squares = jax.vmap(of_example)(pullbacks, sigma)
        return jax.tree.map(lambda t, s: t + jnp.sum(s, axis=0), total, squares), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, _ = lax.scan(add_squares, zeros, jnp.arange(sigma[0].size))
    return jax.tree.map(lambda t: t / number_of_rows(sigma), total)


def _factor_product(e: jax.Array, sigma: jax.Array) -> jax.Array:
    """Fe with F = diag(√σ) − σ√σᵀ, FFᵀ = J."""
    root = jnp.sqrt(sigma)
    return root * e - sigma * jnp.sum(root * e, axis=-1, keepdims=True)

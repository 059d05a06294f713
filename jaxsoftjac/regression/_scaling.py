"""Coordinates of the coefficients in which the units and the means of the features do not matter.

Where the data leave a constant feature open, its coefficient is 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac.regression._steps import Problem


class Scaling(NamedTuple):
    """Of features, to x̃ = (x − mean)·factor, and a bias column of `bias_factor`."""

    mean: jax.Array  # [D]
    factor: jax.Array  # [D], 0 for constant features if no penalty holds them
    varies: jax.Array  # [D], whether a feature is not constant, to rounding
    bias_factor: jax.Array

    def coefficients(self, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias of θ, in the gauge where both have sum 0 over the classes."""
        theta = theta - jnp.mean(theta, axis=0, keepdims=True)
        kernel = theta[:, :-1].T * self.factor[:, None]
        shift = (self.mean * self.factor) @ theta[:, :-1].T
        return kernel, theta[:, -1] * self.bias_factor - shift

    def theta(self, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        """θ of kernel and bias, that of features without a factor 0."""
        has_factor = self.factor > 0
        inverse = jnp.where(has_factor, 1 / jnp.where(has_factor, self.factor, 1), 0)
        scaled = inverse[:, None] * kernel
        return jnp.append(scaled, (bias + self.mean @ kernel)[None] / self.bias_factor, axis=0).T


def scaled(
    x: jax.Array, labels: jax.Array, weights: jax.Array, l2: jax.Array, K: int
) -> tuple[Problem, Scaling]:
    """The problem in coordinates in which its Hessian at 0 has a diagonal of 1.

    The coordinates are constants of differentiation: the minimum does not depend on them.
    """
    scaling = _scaling(*lax.stop_gradient((x, weights, l2)), K)
    factor = scaling.factor
    ones = jnp.full((x.shape[0], 1), scaling.bias_factor, x.dtype)
    penalty = jnp.append(jnp.where(factor > 0, l2 * factor * factor, 1), 0)
    x = jnp.concatenate([(x - scaling.mean[None]) * factor[None], ones], axis=1)
    return Problem(x, labels, weights, penalty, K), scaling


def _scaling(x: jax.Array, weights: jax.Array, l2: jax.Array, K: int) -> Scaling:
    counted = (weights > 0)[:, None]
    first = x[jnp.argmax(weights > 0)]  # a constant feature less this is exactly 0
    x = jnp.where(counted, x - first[None], 0)
    mean = weights @ x
    x = jnp.where(counted, x - mean[None], 0)
    largest = jnp.max(jnp.abs(x), axis=0)
    unit = jnp.where(largest > 0, largest, 1)
    deviation = largest * jnp.sqrt(weights @ (x / unit[None]) ** 2)
    mean = first + mean
    varies = deviation > 8 * jnp.finfo(x.dtype).eps * (jnp.abs(mean) + largest)
    curvature = jnp.asarray((K - 1) / K**2 if K > 1 else 1, x.dtype)  # σ(1 − σ) averaged, at 0
    size = jnp.hypot(jnp.sqrt(curvature) * deviation, jnp.sqrt(l2))
    # A constant feature that a penalty holds has the coefficient 0, but not the derivative 0.
    has_factor = varies | ((largest == 0) & (l2 > 0))
    factor = jnp.where(has_factor, 1 / jnp.where(has_factor, size, 1), 0)
    return Scaling(mean, factor, varies, 1 / jnp.sqrt(curvature))

"""Standard errors of coefficients, from the inverse of the Hessian times Σw: ∞ if it has none."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftjac.regression._scaling import Scaling
from jaxsoftjac.regression._steps import Problem, class_differences, dense_hessian


class Covariance(NamedTuple):
    """That of θ in `class_differences`, by the eigenvectors of the Hessian."""

    vectors: jax.Array  # [K − 1, D, (K − 1)·D], D with the bias
    variances: jax.Array  # along each of them, 0 where it is open
    is_open: jax.Array  # the null space of the Hessian, to rounding

    def deviations(self, functionals: jax.Array, lengths: jax.Array) -> jax.Array:
        """Standard deviations of linear functionals, [F, …] along the vectors, of `lengths` [F].

        One that reaches into the null space has the deviation ∞.
        """
        along = jnp.sum(jnp.where(self.is_open[None], functionals**2, 0), axis=-1)
        slack = jnp.finfo(functionals.dtype).eps ** 0.5 * lengths**2
        variance = jnp.sum(functionals**2 * self.variances[None], axis=-1)
        return jnp.where(along > slack, jnp.inf, jnp.sqrt(variance))


def covariance_of(problem: Problem, theta: jax.Array, total: jax.Array) -> Covariance:
    """The inverse of Σw times the Hessian at θ. `total` is Σw."""
    n, D = theta.shape[0] - 1, theta.shape[1]
    values, vectors = jnp.linalg.eigh(dense_hessian(problem, theta))
    open_below = n * D * jnp.finfo(theta.dtype).eps * jnp.max(values, initial=0)
    is_open = values <= open_below
    variances = jnp.where(is_open, 0, 1 / jnp.where(is_open, 1, values * total))
    return Covariance(vectors.reshape(n, D, n * D), variances, is_open)


def standard_errors(
    problem: Problem,
    scaling: Scaling,
    theta: jax.Array,
    total: jax.Array,
    l2: jax.Array,
    contrasts: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Standard errors of kernel and bias, or of their products with contrasts [K, M] of classes.

    A coefficient on which the loss does not depend along with some others, as with collinear
    features and no penalty, has the standard error ∞. That is read from the null space of the
    Hessian in scaled coordinates, to rounding. `total` is Σw.
    """
    basis, D = class_differences(theta), theta.shape[1]
    classes = basis if contrasts is None else basis @ contrasts
    covariance = covariance_of(problem, theta, total)
    varies = scaling.varies
    factor = jnp.where(varies, scaling.factor, 0)
    to_bias = jnp.append(-scaling.mean * factor, scaling.bias_factor)

    def deviation(of_class: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Standard deviations of θ, [D], and of the bias, of one class."""
        rows = jnp.einsum("a,adm->dm", of_class, covariance.vectors, precision="highest")
        functionals = jnp.append(rows, (to_bias @ rows)[None], axis=0)
        size = jnp.linalg.norm(of_class)
        lengths = size * jnp.append(jnp.ones(D, theta.dtype), jnp.linalg.norm(to_bias))
        result = covariance.deviations(functionals, lengths)
        return result[:-1], result[-1]

    of_theta, of_bias = jax.vmap(deviation, in_axes=1, out_axes=-1)(classes)
    alone = jnp.sqrt(jnp.sum(classes**2, axis=0) / jnp.where(l2 > 0, total * l2, 1))
    alone = jnp.where(l2 > 0, alone, jnp.inf)[None]  # of constant features, held by l2 only
    of_kernel = jnp.where(varies[:, None], of_theta[:-1] * factor[:, None], alone)
    offsets = jnp.where(varies, 0, jnp.abs(scaling.mean))[:, None]
    shifts = jnp.where(offsets > 0, jnp.where(offsets > 0, alone, 0) * offsets, 0)
    of_bias = jnp.sqrt(of_bias**2 + jnp.sum(shifts**2, axis=0))
    return of_kernel, of_bias

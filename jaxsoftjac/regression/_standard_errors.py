"""Standard errors of coefficients, from the inverse of the Hessian times Σw: ∞ if it has none."""

import jax
import jax.numpy as jnp

from jaxsoftjac.regression._scaling import Scaling
from jaxsoftjac.regression._steps import Problem, class_differences, dense_hessian


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
    n = basis.shape[0]
    values, vectors = jnp.linalg.eigh(dense_hessian(problem, theta))
    open_below = n * D * jnp.finfo(theta.dtype).eps * jnp.max(values, initial=0)
    is_open = values <= open_below
    inverse = jnp.where(is_open, 0, 1 / jnp.where(is_open, 1, values * total))
    vectors = vectors.reshape(n, D, n * D)
    to_bias = jnp.append(-scaling.mean * scaling.factor, scaling.bias_factor)
    varies = scaling.factor > 0

    def deviation(of_class: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Standard deviations of θ, [D], and of the bias, of one class."""
        rows = jnp.einsum("a,adm->dm", of_class, vectors, precision="highest")
        functionals = jnp.append(rows, (to_bias @ rows)[None], axis=0)
        size = jnp.linalg.norm(of_class)
        lengths = size * jnp.append(jnp.ones(D, theta.dtype), jnp.linalg.norm(to_bias))
        along = jnp.sum(jnp.where(is_open[None], functionals**2, 0), axis=1)
        slack = jnp.finfo(theta.dtype).eps ** 0.5 * lengths**2
        variance = jnp.sum(functionals**2 * inverse[None], axis=1)
        result = jnp.where(along > slack, jnp.inf, jnp.sqrt(variance))
        return result[:-1], result[-1]

    of_theta, of_bias = jax.vmap(deviation, in_axes=1, out_axes=-1)(classes)
    alone = jnp.sqrt(jnp.sum(classes**2, axis=0) / jnp.where(l2 > 0, total * l2, 1))
    alone = jnp.where(l2 > 0, alone, jnp.inf)[None]  # of constant features, held by l2 only
    of_kernel = jnp.where(varies[:, None], of_theta[:-1] * scaling.factor[:, None], alone)
    offsets = jnp.where(varies, 0, jnp.abs(scaling.mean))[:, None]
    shifts = jnp.where(offsets > 0, jnp.where(offsets > 0, alone, 0) * offsets, 0)
    of_bias = jnp.sqrt(of_bias**2 + jnp.sum(shifts**2, axis=0))
    return of_kernel, of_bias

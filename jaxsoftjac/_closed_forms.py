"""What J = diag(σ) − σσᵀ is worth, from σ by sums over the classes, which are last.

Nothing here cancels on a confident row: 1 − σ of the top class is the sum of the others.

>>> import jax.numpy as jnp
>>> print(dense_jacobian(jnp.array([0.5, 0.25, 0.25])))
[[ 0.25   -0.125  -0.125 ]
 [-0.125   0.1875 -0.0625]
 [-0.125  -0.0625  0.1875]]
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._rows import LAST
from jaxsoftjac._sharding import whole


def complement(sigma: jax.Array) -> jax.Array:
    """1 − σ, its derivative −σ̇ whichever way it is summed."""
    value = others(sigma, jnp.ones((), sigma.dtype))
    return lax.stop_gradient(value) + (lax.stop_gradient(sigma) - sigma)


def others(a: jax.Array, total: jax.Array) -> jax.Array:
    """Σ_{j≠i} aⱼ for a ≥ 0: total − aᵢ, or for an aᵢ above half of it, the sum of the others."""
    is_large = a > total / 2
    return jnp.where(is_large, LAST.sum(jnp.where(is_large, 0, a)), total - a)


def diagonal(sigma: jax.Array) -> jax.Array:
    """Jᵢᵢ = σᵢ(1 − σᵢ) ≤ 1/4, [..., K]."""
    return sigma * complement(sigma)


def dense_jacobian(sigma: jax.Array, axis_name: str | None = None) -> jax.Array:
    """J [..., K, K], symmetric to the bit.

    With the classes split over a mapped axis, `sigma` is that of all of them, and the result the
    rows of this device's own. Split over an Explicit mesh axis, the result is so along its rows.
    """
    own, on_diagonal = (own_slice(a, axis_name)[..., :, None] for a in (sigma, diagonal(sigma)))
    index = jnp.arange(sigma.shape[-1])
    is_diagonal = own_slice(index, axis_name)[:, None] == index[None, :]
    return jnp.where(is_diagonal, on_diagonal, -(own * whole(sigma, sigma.ndim - 1)[..., None, :]))


def own_slice(a: jax.Array, axis_name: str | None) -> jax.Array:
    """This device's slice of the last axis."""
    if axis_name is None:
        return a
    width = a.shape[-1] // lax.axis_size(axis_name)
    return lax.dynamic_slice_in_dim(a, lax.axis_index(axis_name) * width, width, -1)


def frobenius_norm(sigma: jax.Array) -> jax.Array:
    """‖J‖_F of each row: ‖J‖_F² = Σᵢ σᵢ²(1 − σᵢ)² + Σᵢ σᵢ² Σ_{j≠i} σⱼ².

    In units of the largest entry, for squares may underflow; the pairs with a top class that stands
    alone are counted apart.
    """
    entries = diagonal(sigma)
    size = jnp.maximum(LAST.max(entries), jnp.finfo(sigma.dtype).tiny)
    is_top = sigma == LAST.max(sigma)
    is_alone = is_top & (LAST.sum(is_top.astype(sigma.dtype)) == 1)
    top, rest = LAST.sum(jnp.where(is_alone, sigma, 0)), jnp.where(is_alone, 0, sigma)
    squares = rest * rest
    pairs = 2 * (rest * (top / size)) ** 2 + (rest / size) ** 2 * others(squares, LAST.sum(squares))
    total = LAST.sum((entries / size) ** 2 + pairs)
    is_zero = total == 0
    norm = size * jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, total)))
    return lax.squeeze(norm, (norm.ndim - 1,))


def largest_eigenvalue_bounds(sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lower and upper bound of λ_max, [...].

    max(K/(K−1)·max σ(1−σ), σ₍₂₎) ≤ λ_max ≤ min(2 max σ(1−σ), σ₍₁₎, 1 − ‖σ‖²), with K the number of
    classes that are not 0.
    """
    entries = diagonal(sigma)
    largest = jnp.max(entries, axis=-1, initial=0)
    count = jnp.sum(sigma > 0, axis=-1).astype(sigma.dtype)
    top, second = two_largest(sigma)
    lower = jnp.maximum(count / jnp.maximum(count - 1, 1) * largest, second)
    return lower, jnp.minimum(jnp.minimum(2 * largest, top), jnp.sum(entries, axis=-1))


def two_largest(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest entry of each row and the next, equal to it where it is tied."""
    top = jnp.max(a, axis=-1, keepdims=True, initial=0)
    is_top = a == top
    is_tied = jnp.sum(is_top, axis=-1, keepdims=True) > 1
    second = jnp.max(jnp.where(is_top & ~is_tied, 0, a), axis=-1, initial=0)
    return lax.squeeze(top, (a.ndim - 1,)), second

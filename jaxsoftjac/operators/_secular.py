"""The spectrum of J = diag(σ) − σσᵀ from the secular equation, without forming J.

The eigenvalues that are not 0 are the roots of Σⱼ σⱼ/(σⱼ − λ) = 0, one between each two
neighbouring entries of the sorted σ. Each is kept as its nearest entry and the offset from it, so
that σⱼ − λ has all its digits however close the entries are. Because the weights of the equation
are its poles, no eigenvalue is ill-conditioned: all are found to a few units in their last place,
and the eigenvectors σⱼ/(σⱼ − λ) are orthonormal as they stand.

>>> import jax.numpy as jnp
>>> print(eigenvalues(jnp.array([0.5, 0.25, 0.25])))
[0.    0.25  0.375]
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._closed_forms import two_largest
from jaxsoftjac._rules import recomputed
from jaxsoftjac._sharding import over_batch
from jaxsoftjac.operators._gragg import Root, simple_root

_BLOCK = 2**20  # root-pole pairs at a time: what stays in a core's cache

_Interval = tuple[jax.Array, jax.Array, jax.Array]  # σ, and the entries on either side of a root
_Result = TypeVar("_Result")


class Eigh(NamedTuple):
    """Eigenvalues [..., K], ascending, and eigenvectors, the columns of [..., K, K].

    >>> print(jax.jit(eigensystem)(jnp.array([0.5, 0.25, 0.25])).eigenvalues)
    [0.    0.25  0.375]
    """

    eigenvalues: jax.Array
    eigenvectors: jax.Array


def eigenvalues(sigma: jax.Array, on_simplex: bool = True) -> jax.Array:
    """All eigenvalues of J, ascending: one 0, and one root between neighbouring entries of σ.

    Entries of σ that are 0 have eigenvalue 0; a root between two equal entries is that entry.

    Cost: O(K²) time per row, 2 to 7 passes of K roots × K entries; memory for 2²⁰ pairs.

    Args:
        sigma: probabilities [..., K], float32 or wider.
        on_simplex: whether every tangent of σ has Σσ̇ = 0, see `root`.

    Returns:
        Array [..., K].
    """

    def of_rows(sigma: jax.Array) -> jax.Array:
        near, offset = _roots(_scaled(sigma), on_simplex)
        return (near + offset) / _scale(sigma)

    return over_batch(of_rows, sigma)


def largest_eigenvalue(sigma: jax.Array, on_simplex: bool = True) -> jax.Array:
    """λ_max, the root between the two largest entries: array [...]. Cost: O(K) per row and pass."""

    def of_rows(sigma: jax.Array) -> jax.Array:
        scaled = _scaled(sigma)
        top, second = two_largest(scaled)
        solve = _batched(partial(root, on_simplex), sigma.ndim - 1)
        near, offset = solve(scaled, second, top)
        return (near + offset) / _scale(sigma)

    return over_batch(of_rows, sigma)


def eigensystem(sigma: jax.Array, on_simplex: bool = True) -> Eigh:
    """Eigenvalues and orthonormal eigenvectors.

    The vector of a simple root is xⱼ = σⱼ/(σⱼ − λ), and so is its derivative. Tied entries have the
    Helmert basis of their contrasts, entries equal to 0 their unit vectors: constants of
    differentiation. Eigenvalue 0 has the constant vector on the classes with σ > 0.

    Cost: O(K²). Arguments as for `eigenvalues`.
    """

    def of_rows(sigma: jax.Array) -> Eigh:
        scaled = _scaled(sigma)
        near, offset = _roots(scaled, on_simplex)
        vectors = _batched(_eigenvectors, sigma.ndim - 1)(scaled, near, offset)
        return Eigh((near + offset) / _scale(sigma), vectors)

    return over_batch(of_rows, sigma)


def count_above(sigma: jax.Array, threshold: jax.Array) -> jax.Array:
    """Number of eigenvalues above a threshold ≥ 0 [..., 1]: by the sign of the secular equation.

    Between two entries it rises from −∞ to ∞, so that it is negative where the root is above.
    """
    is_above = sigma > threshold
    tiny = jnp.finfo(sigma.dtype).tiny
    gap = jnp.where(is_above, sigma - threshold, jnp.minimum(sigma - threshold, -tiny))
    count, value = jnp.sum(is_above, axis=-1), jnp.sum(sigma / gap, axis=-1)
    return jnp.maximum(count - jnp.where(value < 0, 0, 1), 0)


def _scale(sigma: jax.Array) -> float:
    """A power of two that takes the smallest normal numbers to where offsets cannot underflow."""
    return 2.0 ** (jnp.finfo(sigma.dtype).maxexp // 4)


def _scaled(sigma: jax.Array) -> jax.Array:
    """σ in that unit; subnormal entries, which some kernels flush and some do not, are 0."""
    return jnp.where(sigma < jnp.finfo(sigma.dtype).tiny, 0, sigma) * _scale(sigma)


def _roots(sigma: jax.Array, on_simplex: bool) -> Root:
    """Nearest entry of σ and offset from it, of all eigenvalues."""
    upper = jnp.sort(sigma, axis=-1)
    lower = jnp.concatenate([jnp.zeros_like(upper[..., :1]), upper[..., :-1]], axis=-1)
    near, offset = _over_rows(partial(root, on_simplex), sigma, lower, upper)
    nan_or_0 = 0 * jnp.sum(sigma, axis=-1, keepdims=True)  # a NaN makes the row NaN
    return Root(near + nan_or_0, offset)


def _eigenvectors(sigma: jax.Array, near: jax.Array, offset: jax.Array) -> jax.Array:
    """The columns of one row's [K, K]: classes down, eigenvalues across."""
    rank = jnp.argsort(jnp.argsort(sigma))[:, None]
    sigma, near, offset = sigma[:, None], near[None, :], offset[None, :]
    column = jnp.arange(sigma.size)[None, :]
    is_null = column == jnp.sum(sigma <= 0)
    earlier = column - lax.cummax(jnp.where((near > 0) & (offset == 0), 0, column), axis=1)
    contrast = jnp.where((rank < column) & (rank >= column - earlier), 1, 0)
    contrast = jnp.where(rank == column, jnp.where(earlier > 0, -earlier, 1), contrast)
    length = jnp.sqrt(jnp.maximum(earlier * (earlier + 1), 1).astype(sigma.dtype))
    contrast = contrast.astype(sigma.dtype) / length
    is_special = (offset == 0) & ~is_null
    return jnp.where(is_special, contrast, _secular_vectors(sigma, near, offset))


def _secular_vectors(sigma: jax.Array, near: jax.Array, offset: jax.Array) -> jax.Array:
    """σⱼ/(σⱼ − λ) to unit length; sums run along rows, where compilers sum most accurately."""
    value, is_simple = near + offset, offset != 0
    scale = jnp.where(is_simple, offset / jnp.where(is_simple, value, 1), 1)

    def entries(
        sigma: jax.Array, near: jax.Array, offset: jax.Array, scale: jax.Array
    ) -> jax.Array:
        gap = (sigma - near) - offset
        return sigma * (scale / jnp.where(gap == 0, 1, gap))

    squares = entries(sigma.T, near.T, offset.T, scale.T) ** 2
    length = jnp.maximum(jnp.sum(squares, axis=1), jnp.finfo(sigma.dtype).tiny)[None, :]
    return entries(sigma, near, offset, scale * lax.rsqrt(length))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def root(on_simplex: bool, sigma: jax.Array, lower: jax.Array, upper: jax.Array) -> Root:
    """The root of Σⱼ σⱼ/(σⱼ − λ) = 0 between two neighbouring entries of one row.

    Its derivative is Hellmann and Feynman's, λ̇ = uᵀJ̇u with u the eigenvector; a tied group moves
    by its mean. On the simplex, terms that vanish with Σσ̇ are left out, else the derivative is
    that of the matrix diag(σ) − σσᵀ.

    Args:
        on_simplex: whether Σσ̇ = 0.
        sigma: probabilities [K].
        lower: entry of σ, or 0 below the smallest; shape [].
        upper: next entry of σ; shape [].

    Returns:
        Its place; (0, 0) below the smallest entry.
    """
    is_simple = (lower > 0) & (upper - lower >= jnp.finfo(sigma.dtype).tiny)
    # Elsewhere some interval without a pole, so that nothing is divided by 0.
    near, offset = simple_root(
        sigma, jnp.where(is_simple, lower, -2), jnp.where(is_simple, upper, -1), is_simple
    )
    unless_null = jnp.where(lower > 0, upper, lower)
    return Root(jnp.where(is_simple, near, unless_null), jnp.where(is_simple, offset, 0))


@root.defjvp
def _root_jvp(on_simplex: bool, primals: _Interval, tangents: _Interval) -> tuple[Root, Root]:
    return root(on_simplex, *primals), _pushforward(tangents, primals, on_simplex)


@recomputed(static_argnums=(2,))
def _pushforward(tangents: _Interval, primals: _Interval, on_simplex: bool) -> Root:
    # The root is found again: JAX 0.10 drops the rules of what is kept inside `lax.scan`, and
    # reverse mode cannot differentiate the iteration itself.
    place = root(on_simplex, *primals)
    (sigma, lower, upper), (tangent, lower_tangent, upper_tangent) = primals, tangents
    moved = _eigenvalue_tangent(tangent, sigma, place, upper, on_simplex)
    near_tangent = jnp.where(place.near == lower, lower_tangent, upper_tangent)
    return Root(near_tangent, moved - near_tangent)


def _eigenvalue_tangent(
    tangent: jax.Array, sigma: jax.Array, place: Root, upper: jax.Array, on_simplex: bool
) -> jax.Array:
    """λ̇ = Σ (λ²w − offset²)σ̇ / Σ wσ² with w = (offset/(σ − λ))², 1 on a tied group and else 0.

    The null vector's is (Σ(λ/(σ − λ))²σ̇ − Σσ̇)/Σ(σ/(σ − λ))² at λ = 0.
    """
    near, offset = place
    gap = (sigma - near) - offset
    is_zero = gap == 0
    gap = jnp.where(is_zero, 1, gap)
    is_null = near <= 0
    value = jnp.where(is_null, 1, near + offset)
    weight = jnp.where(is_zero, 1, offset / gap) ** 2
    size = jnp.where(is_null, 1, jnp.sum(weight * sigma * (sigma / value)))
    moved = jnp.where(is_null, 0, value / size * jnp.sum(weight * tangent))
    if on_simplex:
        return moved
    share = jnp.where(is_null, sigma / gap, 0)
    length = jnp.where(is_null, jnp.maximum(jnp.sum(share**2), 1), 1)
    off_simplex = jnp.where(upper > 0, 1 / length, 0)
    off_simplex = jnp.where(is_null, off_simplex, offset / value * (offset / size))
    ratio = jnp.where(is_null & ~is_zero, (near + offset) / gap, 0)  # 0, but with derivatives
    return moved + jnp.sum(ratio**2 * tangent) / length - off_simplex * jnp.sum(tangent)


def _over_rows(
    solve: Callable[[jax.Array, jax.Array, jax.Array], Root],
    sigma: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
) -> Root:
    """`solve(σ [K], lower [], upper [])` for all intervals of all rows, in blocks."""
    K = sigma.shape[-1]
    if sigma.size == 0:
        return Root(jnp.zeros_like(sigma), jnp.zeros_like(sigma))

    def row(operands: _Interval) -> Root:
        sigma, lower, upper = operands
        return _in_batches(lambda ends: solve(sigma, *ends), (lower, upper), max(1, _BLOCK // K))

    flat = tuple(a.reshape(-1, K) for a in (sigma, lower, upper))
    results = _in_batches(row, flat, max(1, _BLOCK // K**2))
    return Root(*(a.reshape(sigma.shape) for a in results))


def _in_batches(f: Callable[[Any], Root], operands: tuple[jax.Array, ...], size: int) -> Root:
    """`lax.map`, `size` at a time; a plain vmap where that is all."""
    if size >= len(operands[0]):
        return jax.vmap(f)(operands)
    return lax.map(f, operands, batch_size=size)


def _batched(f: Callable[..., _Result], ndim: int) -> Callable[..., _Result]:
    """`f` of one row, over the leading axes."""
    for _ in range(ndim):
        f = jax.vmap(f)
    return f

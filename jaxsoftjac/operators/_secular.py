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

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._closed_forms import two_largest
from jaxsoftjac._rules import recomputed
from jaxsoftjac._sharding import over_batch

_BLOCK = 2**20  # root-pole pairs at a time: what stays in a core's cache
_MOST_STEPS = 40  # 2 to 7 are taken


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

    def of_rows(sigma):
        near, offset = _roots(_scaled(sigma), on_simplex)
        return (near + offset) / _scale(sigma)

    return over_batch(of_rows, sigma)


def largest_eigenvalue(sigma: jax.Array, on_simplex: bool = True) -> jax.Array:
    """λ_max, the root between the two largest entries: array [...]. Cost: O(K) per row and pass."""

    def of_rows(sigma):
        scaled = _scaled(sigma)
        top, second = two_largest(scaled)
        solve = _batched(partial(root, on_simplex), sigma.ndim - 1)
        near, offset = solve(scaled, second, top)
        return (near + offset) / _scale(sigma)

    return over_batch(of_rows, sigma)


def eigensystem(sigma: jax.Array, on_simplex: bool = True) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [..., K] and orthonormal eigenvectors, the columns of [..., K, K].

    The vector of a simple root is xⱼ = σⱼ/(σⱼ − λ), and so is its derivative. Tied entries have the
    Helmert basis of their contrasts, entries equal to 0 their unit vectors: constants of
    differentiation. Eigenvalue 0 has the constant vector on the classes with σ > 0.

    Cost: O(K²). Arguments as for `eigenvalues`.
    """

    def of_rows(sigma):
        scaled = _scaled(sigma)
        near, offset = _roots(scaled, on_simplex)
        vectors = _batched(_eigenvectors, sigma.ndim - 1)(scaled, near, offset)
        return (near + offset) / _scale(sigma), vectors

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


def _scale(sigma):
    """A power of two that takes the smallest normal numbers to where offsets cannot underflow."""
    return 2.0 ** (jnp.finfo(sigma.dtype).maxexp // 4)


def _scaled(sigma):
    """σ in that unit; subnormal entries, which some kernels flush and some do not, are 0."""
    return jnp.where(sigma < jnp.finfo(sigma.dtype).tiny, 0, sigma) * _scale(sigma)


def _roots(sigma, on_simplex):
    """Nearest entry of σ and offset from it, of all eigenvalues."""
    upper = jnp.sort(sigma, axis=-1)
    lower = jnp.concatenate([jnp.zeros_like(upper[..., :1]), upper[..., :-1]], axis=-1)
    near, offset = _over_rows(partial(root, on_simplex), sigma, lower, upper)
    return near + 0 * jnp.sum(sigma, axis=-1, keepdims=True), offset  # a NaN makes the row NaN


def _eigenvectors(sigma, near, offset):
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


def _secular_vectors(sigma, near, offset):
    """σⱼ/(σⱼ − λ), normalised; sums run along rows, where compilers sum most accurately."""
    value, is_simple = near + offset, offset != 0
    scale = jnp.where(is_simple, offset / jnp.where(is_simple, value, 1), 1)

    def entries(sigma, near, offset, scale):
        gap = (sigma - near) - offset
        return sigma * (scale / jnp.where(gap == 0, 1, gap))

    squares = entries(sigma.T, near.T, offset.T, scale.T) ** 2
    length = jnp.maximum(jnp.sum(squares, axis=1), jnp.finfo(sigma.dtype).tiny)[None, :]
    return entries(sigma, near, offset, scale * lax.rsqrt(length))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def root(
    on_simplex: bool, sigma: jax.Array, lower: jax.Array, upper: jax.Array
) -> tuple[jax.Array, jax.Array]:
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
        The nearest entry and the offset from it, shape []; (0, 0) below the smallest entry.
    """
    is_simple = (lower > 0) & (upper - lower >= jnp.finfo(sigma.dtype).tiny)
    # Elsewhere some interval without a pole, so that nothing is divided by 0.
    near, offset = _simple_root(
        sigma, jnp.where(is_simple, lower, -2), jnp.where(is_simple, upper, -1), is_simple
    )
    unless_null = jnp.where(lower > 0, upper, lower)
    return jnp.where(is_simple, near, unless_null), jnp.where(is_simple, offset, 0)


@root.defjvp
def _(on_simplex, primals, tangents):
    return root(on_simplex, *primals), _pushforward(tangents, primals, on_simplex)


@recomputed(static_argnums=(2,))
def _pushforward(tangents, primals, on_simplex):
    # The root is found again: JAX 0.10 drops the rules of what is kept inside `lax.scan`, and
    # reverse mode cannot differentiate the iteration itself.
    near, offset = root(on_simplex, *primals)
    (sigma, lower, upper), (tangent, lower_tangent, upper_tangent) = primals, tangents
    moved = _eigenvalue_tangent(tangent, (sigma, near, offset, upper), on_simplex)
    near_tangent = jnp.where(near == lower, lower_tangent, upper_tangent)
    return near_tangent, moved - near_tangent


def _eigenvalue_tangent(tangent, primals, on_simplex):
    """λ̇ = Σ (λ²w − offset²)σ̇ / Σ wσ² with w = (offset/(σ − λ))², 1 on a tied group and else 0.

    The null vector's is −Σσ̇/Σ(σ/(σ − λ))² at λ = 0.
    """
    sigma, near, offset, upper = primals
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
    return moved - off_simplex * jnp.sum(tangent)


def _simple_root(sigma, lower, upper, is_wanted):
    """Gragg's iteration: monotone and of third order, from a two-pole guess at the midpoint."""
    width = upper - lower
    at_middle = jnp.sum(sigma / ((sigma - lower) - width / 2))
    near = jnp.where(at_middle >= 0, lower, upper)
    a, b = lower - near, upper - near
    # Poles at a and b with their weights, and the rest as it is at the middle, in units of width.
    ratio, left, right = lower / upper, a / width, b / width
    rest = at_middle * (width / upper) - 2 * (1 - ratio)
    guess = _small_root(
        rest, rest * (left + right) + ratio + 1, rest * left * right + ratio * right + left
    )
    guess = _inside(guess, left, right, 0.0)

    def refine(state):
        steps, offset, _ = state
        step, unit = _gragg_step(sigma, near, offset, a - offset, b - offset)
        return steps + 1, offset + step * unit, jnp.where(is_wanted, jnp.abs(step), 0)

    def unfinished(state):
        steps, _, step = state
        return (steps < _MOST_STEPS) & (step > jnp.finfo(sigma.dtype).eps ** 0.4)

    start = (0, guess * width, jnp.full_like(width, jnp.inf))
    return near, lax.while_loop(unfinished, refine, start)[1]


def _gragg_step(sigma, near, offset, a, b):
    """The step to the zero of c + s/(a − t) + S/(b − t) that fits three derivatives at t = 0.

    Distances are in units of the one to the nearest pole, which is returned too, and the equation
    in units of its derivative.
    """
    unit = jnp.minimum(-a, b)
    inverse = 1 / ((sigma - near) - offset)
    terms, ratio = sigma * inverse, unit * inverse
    powers = jnp.stack([terms, terms * ratio, terms * ratio * ratio])
    value, slope, curve = jnp.sum(powers, axis=-1)  # one reduction: one pass
    value, curve, a, b = value / slope, curve / slope, a / unit, b / unit
    share_a, share_b = a / (b - a), b / (b - a)
    weight_a, weight_b = share_a * (curve * b - 1), share_b * (1 - curve * a)
    step = _small_root(
        value / (b - a) - weight_a * share_a - weight_b * share_b,
        value * (share_a + share_b) - share_a * b,
        value * share_a * b,
    )
    return _inside(step, a, b, 1e-4), unit


def _small_root(c, p, q):
    """The root of ct² − pt + q = 0 that stays finite as c → 0, without cancellation."""
    d = jnp.sqrt(jnp.maximum(p * p - 4 * q * c, 0))
    is_positive = p > 0
    return jnp.where(is_positive, 2 * q, p - d) / jnp.where(is_positive, p + d, 2 * c)


def _inside(t, a, b, margin):
    """`t`, or where rounding took it out of (a, b), a point inside."""
    return jnp.clip(t, a * (1 - margin), b * (1 - margin))


def _over_rows(solve: Callable, sigma, lower, upper):
    """`solve(σ [K], lower [], upper [])` for all intervals of all rows, in blocks."""
    K = sigma.shape[-1]
    if sigma.size == 0:
        return jnp.zeros_like(sigma), jnp.zeros_like(sigma)

    def row(operands):
        sigma, lower, upper = operands
        return _in_batches(lambda ends: solve(sigma, *ends), (lower, upper), max(1, _BLOCK // K))

    flat = tuple(a.reshape(-1, K) for a in (sigma, lower, upper))
    results = _in_batches(row, flat, max(1, _BLOCK // K**2))
    return tuple(a.reshape(sigma.shape) for a in results)


def _in_batches(f, operands, size):
    """`lax.map`, `size` at a time; a plain vmap where that is all."""
    if size >= len(operands[0]):
        return jax.vmap(f)(operands)
    return lax.map(f, operands, batch_size=size)


def _batched(f, ndim):
    for _ in range(ndim):
        f = jax.vmap(f)
    return f

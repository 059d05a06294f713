"""One root of the secular equation Σⱼ σⱼ/(σⱼ − λ) = 0, by Gragg's iteration.

>>> sigma = jnp.array([0.5, 0.25, 0.125, 0.125])
>>> near, offset = simple_root(sigma, sigma[1], sigma[0], jnp.array(True))
>>> print(near, f"{near + offset:.4f}")
0.25 0.3554
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_MOST_STEPS = 40  # 2 to 7 are taken

_State = tuple[jax.Array, jax.Array, jax.Array]  # how many steps, the offset, the last step


class Root(NamedTuple):
    """Where a root lies: its nearest entry of σ, and how far from it."""

    near: jax.Array
    offset: jax.Array


def simple_root(sigma: jax.Array, lower: jax.Array, upper: jax.Array, is_wanted: jax.Array) -> Root:
    """The root between two entries of σ [K]: the iteration is monotone and of third order.

    It starts from the root of a two-pole equation that agrees at the midpoint.
    """
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

    def refine(state: _State) -> _State:
        steps, offset, _ = state
        step, unit = _gragg_step(sigma, near, offset, a - offset, b - offset)
        return steps + 1, offset + step * unit, jnp.where(is_wanted, jnp.abs(step), 0)

    def unfinished(state: _State) -> jax.Array:
        steps, _, step = state
        return (steps < _MOST_STEPS) & (step > jnp.finfo(sigma.dtype).eps ** 0.4)

    start = jnp.int32(0), guess * width, jnp.full_like(width, jnp.inf)
    return Root(near, lax.while_loop(unfinished, refine, start)[1])


def _gragg_step(
    sigma: jax.Array, near: jax.Array, offset: jax.Array, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, jax.Array]:
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


def _small_root(c: jax.Array, p: jax.Array, q: jax.Array) -> jax.Array:
    """The root of ct² − pt + q = 0 that stays finite as c → 0, without cancellation."""
    d = jnp.sqrt(jnp.maximum(p * p - 4 * q * c, 0))
    is_positive = p > 0
    return jnp.where(is_positive, 2 * q, p - d) / jnp.where(is_positive, p + d, 2 * c)


def _inside(t: jax.Array, a: jax.Array, b: jax.Array, margin: float) -> jax.Array:
    """`t`, or where rounding took it out of (a, b), a point inside."""
    return jnp.clip(t, a * (1 - margin), b * (1 - margin))

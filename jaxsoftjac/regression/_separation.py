"""Whether the classes are separated, so that without a penalty there is no minimiser."""

import jax
import jax.numpy as jnp

from jaxsoftjac.functions import softmax
from jaxsoftjac.regression._loop import Minimum
from jaxsoftjac.regression._steps import Problem

_CERTAIN = 1e-12  # variance of a class, on average, below which no example can speak against it


def way_to_go(problem: Problem, end: Minimum) -> jax.Array:
    """By how many nats the logits would move to the minimum on the line of the next direction.

    It is 0 where the search was cut short, which tells nothing. At a minimiser they would hardly
    move. Where classes are separated, each step moves them as far as the one before, while the
    gradient vanishes with the curvature. Lines along which one class moves are tried as well: what
    is left in others would hide it.
    """
    if problem.classes == 1:
        return jnp.zeros([], problem.x.dtype)
    sigma = softmax(problem.logits(end.theta), axis=0)
    step = _unit(end.next_step - jnp.mean(end.next_step, axis=0, keepdims=True))
    along = jnp.where(problem.weights > 0, problem.logits(step), 0)
    sizes = jnp.max(jnp.abs(along), axis=1)
    slopes = -jnp.sum(end.gradient * step, axis=1)
    along = _unit(along)
    centred = along - jnp.sum(sigma * along, axis=0, keepdims=True)
    weighted = problem.masses[None] * sigma
    together = _way(jnp.sum(slopes), jnp.max(sizes), jnp.sum(weighted * centred**2))
    variance = jnp.sum(weighted * (1 - sigma), axis=1)
    alone = _way(slopes, sizes, jnp.sum(weighted * (1 - sigma) * _unit(along, 1) ** 2, axis=1))
    alone = jnp.where(variance < _CERTAIN, jnp.inf, alone)
    return jnp.where(end.is_cut_short, 0, jnp.maximum(together, jnp.max(alone)))


def _way(slope: jax.Array, size: jax.Array, curvature: jax.Array) -> jax.Array:
    """The way to the minimum of a parabola; `curvature` is that along a line of unit size."""
    is_curved, moves = curvature > 0, (size > 0) & (slope > 0)
    steepness = jnp.where(moves, slope, 0) / jnp.where(moves, size, 1)
    bounded = steepness / jnp.where(is_curved, curvature, 1)
    return jnp.where(is_curved, bounded, jnp.where(moves, jnp.inf, 0))


def _unit(a: jax.Array, axis: int | None = None) -> jax.Array:
    """`a` over its largest entry, or over that of each row."""
    largest = jnp.max(jnp.abs(a), axis=axis, keepdims=True)
    return a / jnp.where(largest > 0, largest, 1)

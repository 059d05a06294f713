"""The two numbers of a row of logits, found a block of classes at a time.

The top and the rest of `_rows.statistics`, merged over blocks and over slices of the vocabulary;
and from them σ of a block, exact where one class has most of the row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._row_functions import log1p_rest, of_top
from jaxsoftjac._rows import LAST, exp_depth, nan_unless, statistics

_HAS_TAIL = 2 / 3  # below this rest the top class has more than 0.6 of its row


class Running(NamedTuple):
    """The statistics of the classes seen so far, [..., 1]."""

    top: jax.Array  # the largest logit
    rest: jax.Array  # Σ exp(z − top) over all classes but the top one; −1 without classes
    peak: jax.Array  # the top again, not a constant of differentiation


class Shares(NamedTuple):
    """What each class of a block has of its row, [..., block]."""

    unnormalized: jax.Array  # exp(z − top)
    sigma: jax.Array
    less_one: jax.Array  # σ − 1 of a class that is hot
    is_hot: jax.Array  # whether it has more than 0.6 of its row


def running(z: jax.Array) -> Running:
    """The statistics of one block; NaN where a logit is +∞."""
    highest = jnp.max(z, -1, keepdims=True)
    top, rest = statistics(z, LAST)
    rest = rest * nan_unless(highest != jnp.inf, z.dtype)
    return Running(top, rest, jnp.maximum(highest, float(jnp.finfo(z.dtype).min)))


def merged(a: Running, b: Running) -> Running:
    """The statistics of both."""
    top = jnp.maximum(a.top, b.top)
    a_sum, b_sum = (1 + a.rest) * jnp.exp(a.top - top), (1 + b.rest) * jnp.exp(b.top - top)
    rest = jnp.where(a.top >= b.top, a.rest + b_sum, b.rest + a_sum)
    return Running(top, rest, jnp.where(a.top >= b.top, a.peak, b.peak))


def across(row: Running, axis_name: str) -> tuple[Running, jax.Array]:
    """The statistics of all slices, and whether this one is the first that has the top class.

    That slice alone keeps its rest.
    """
    index = lax.axis_index(axis_name)
    top = lax.pmax(lax.stop_gradient(row.top), axis_name)
    holders = jnp.where(row.top == top, index, lax.axis_size(axis_name))
    is_holder = lax.pmin(lax.stop_gradient(holders), axis_name) == index
    own = (1 + row.rest) * jnp.exp(row.top - top)
    rest = jnp.where(is_holder, row.rest, own)
    peak = jnp.where(is_holder, row.peak, 0)
    return Running(top, *lax.psum((rest, peak), axis_name)), is_holder


def tail_of(row: Running) -> jax.Array:
    """−log σ of the top class where that has more than 0.6 of its row, else 0."""
    moved = lax.stop_gradient(row.peak) - row.peak
    return jnp.where(has_tail(row.rest), log1p_rest(row.rest) + moved, 0)


def peak_of(row: Running) -> jax.Array:
    """The largest logit, a constant of differentiation where there is no tail."""
    return row.top + jnp.where(has_tail(row.rest), row.peak - lax.stop_gradient(row.peak), 0)


def log_sum(rest: jax.Array, tail: jax.Array) -> jax.Array:
    """The logsumexp less the peak, with the derivatives of the tail where there is one."""
    return jnp.where(has_tail(rest), tail, log1p_rest(rest))


def has_tail(rest: jax.Array) -> jax.Array:
    """Whether the top class has more than 0.6 of its row."""
    return rest < _HAS_TAIL


def shares_of(z: jax.Array, top: jax.Array, rest: jax.Array, tail: jax.Array) -> Shares:
    """σ of a block. That of a hot class and its σ − 1 come from `tail`.

    The derivatives of `tail` are sums over the other classes, which do not cancel.
    """
    unnormalized = exp_depth(z, top)
    sigma = unnormalized * of_top(rest)
    is_hot = lax.stop_gradient((sigma > 0.55) & has_tail(rest))
    return Shares(unnormalized, jnp.where(is_hot, jnp.exp(-tail), sigma), jnp.expm1(-tail), is_hot)


def tail_slope(shares: Shares, rest: jax.Array) -> jax.Array:
    """The derivative of the tail by the logits of a block."""
    slope = jnp.where(shares.is_hot, shares.less_one, shares.sigma)
    return jnp.where(has_tail(rest), slope, 0)

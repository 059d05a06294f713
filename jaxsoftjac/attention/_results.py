"""What is done with each query's row after all blocks: slices of keys, origins, the sink.

A row is its output, its greatest score and the sum of the exponentials relative to that; the two
are put together at the very end only, because the sum of a large top and a small logarithm rounds.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac.attention._blocks import Rows
from jaxsoftjac.attention._layout import AxisName


def over_slices(rows: Rows, axis_name: AxisName) -> Rows:
    """The rows of all keys, from those of each device's slice of the keys."""
    top = lax.pmax(lax.stop_gradient(rows.top), axis_name)
    weight = rows.total * jnp.exp(rows.top - top)
    total = lax.psum(weight, axis_name)
    share = weight / _nonzero(total)
    return Rows(lax.psum(rows.output * share[..., None], axis_name), total, top)


def from_origin(rows: Rows, value_origin: jax.Array) -> Rows:
    """The rows of values that are not measured from an origin, [B, 1, N, D]."""
    output = jnp.where(rows.total[..., None] == 0, 0, rows.output + value_origin)
    return rows._replace(output=output)


def with_sink(rows: Rows, sink: jax.Array, shift: jax.Array) -> Rows:
    """The rows with one more score per head, `sink` [N], whose value is 0; the others lack `shift`.

    A row without keys has a `top` that means nothing.
    """
    sink, is_empty = sink[None, None] - shift, rows.total == 0
    top = jnp.where(is_empty, sink, jnp.maximum(rows.top, sink))
    top = lax.stop_gradient(jnp.maximum(top, jnp.finfo(top.dtype).min))  # if the sink is −∞
    kept = rows.total * jnp.exp(jnp.where(is_empty, 0, rows.top - top))
    total = kept + jnp.exp(sink - top)
    return Rows(rows.output * (kept / _nonzero(total))[..., None], total, top)


def shift_of(rows: Rows, query: jax.Array, key_origin: jax.Array, scale: float) -> jax.Array:
    """What measuring keys from their origin, [B, 1, N, H], took from the scores; 0 without keys."""
    shift = scale * jnp.sum(query * key_origin, -1)
    return jnp.where(rows.total == 0, 0, shift)


def logsumexp(rows: Rows, shift: jax.Array) -> jax.Array:
    """Logsumexp of the scores, −∞ where there are none."""
    return jnp.where(rows.total == 0, -jnp.inf, rows.top + shift + jnp.log(_nonzero(rows.total)))


def _nonzero(total: jax.Array) -> jax.Array:
    return jnp.where(total == 0, 1, total)


def mean_over_keys(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Mean over the sequence, [B, 1, K, D], without what is not finite; a constant."""
    x = lax.stop_gradient(x)
    x = jnp.where(jnp.isfinite(x), x, 0)
    mean = jnp.sum(x / max(x.shape[1], 1), 1, keepdims=True)  # the sum could overflow
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def per_head(x: jax.Array, heads: int) -> jax.Array:
    """[B, 1, K, D] → [B, 1, N, D]."""
    B, one, K, D = x.shape
    return jnp.broadcast_to(x[:, :, :, None], (B, one, K, heads // K, D)).reshape(B, one, heads, D)

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


def origin_of(
    x: jax.Array, span: tuple[jax.Array, jax.Array] | None, axis_name: AxisName | None
) -> jax.Array:
    """From where keys or values [B, S, K, D] are measured, [B, 1, K, D]; a constant.

    The middle between the least and the greatest number within the queries' spans, where those are
    within three quarters of it, so that it costs none of them more than two bits; else 0. A number
    far off, which no query may see or none may weigh, then costs the others nothing.
    """
    x = lax.stop_gradient(x)
    lowest = float(jnp.finfo(x.dtype).min)
    highest = jnp.asarray(jnp.inf, x.dtype)
    if span is not None:
        start, stop = span
        last = x.shape[1]
        first = jnp.min(jnp.where(start < stop, start, last), 1, initial=last)
        place = jnp.arange(last, dtype=start.dtype)[None]
        spanned = (place >= first[:, None]) & (place < jnp.max(stop, 1, initial=0)[:, None])
        highest = jnp.where(spanned, highest, lowest)[..., None, None]
    bounded = (jnp.minimum(y, highest) for y in (x, -x))
    high, low = (jnp.max(y, 1, keepdims=True, initial=lowest) for y in bounded)
    if axis_name is not None:
        high, low = lax.pmax((high, low), axis_name)
    middle, reach = high / 2 - low / 2, high / 2 + low / 2  # `low` is minus the least
    return jnp.where(4 * reach < 3 * jnp.abs(middle), middle, 0)


def per_head(x: jax.Array, heads: int) -> jax.Array:
    """[B, 1, K, D] → [B, 1, N, D]."""
    B, one, K, D = x.shape
    return jnp.broadcast_to(x[:, :, :, None], (B, one, K, heads // K, D)).reshape(B, one, heads, D)

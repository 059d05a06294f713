"""Which weights of attention dropout keeps: a hash of a query's random bits and a key's place.

No map of [T, S] is kept. The bits are O(T), and what a block of weights keeps is computed from them
again wherever it is needed: the same in every mode, for every size of the blocks, and for keys that
are split over devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

_STEPS = 2**24  # rates are multiples of 1 / this, which float32 holds exactly


class Dropout(NamedTuple):
    """What decides which weights are dropped, and by what the others are multiplied."""

    bits: jax.Array  # uint32, [B or 1, T, N or 1, 2]
    threshold: jax.Array  # of 24 random bits: uint32, from 0 to 2²⁴
    factor: jax.Array  # 1 / (1 − rate)
    first_key: jax.Array  # int32, the place of this slice's first key among all


def dropout_of(
    key: jax.Array,
    rate: ArrayLike,
    shape: tuple[int, int, int],
    first_key: jax.Array,
    dtype: jnp.dtype,
) -> Dropout:
    """Dropout of weights [B, N, T, S] at `rate`, with random bits of a `shape` like [B, T, N]."""
    rate = lax.stop_gradient(jnp.asarray(rate, dtype))
    bits = jax.random.bits(key, (*shape, 2), jnp.uint32)
    threshold = jnp.round(rate * _STEPS).astype(jnp.uint32)
    return Dropout(bits, threshold, 1 / (1 - rate), first_key)


def dropped(
    weights: jax.Array, dropout: Dropout | None, bits: jax.Array | None, position: int | jax.Array
) -> jax.Array:
    """Weights [B, K, G, T, S] of keys from `position` on: 0, or multiplied by the factor."""
    if dropout is None or bits is None:
        return weights
    places = lax.broadcasted_iota(jnp.int32, (1, 1, 1, 1, weights.shape[-1]), 4)
    place = (places + (position + dropout.first_key)).astype(jnp.uint32)
    noise = _mixed(bits[..., 1:] + _mixed(bits[..., :1] ^ place))
    is_kept = (noise >> jnp.uint32(8)) >= dropout.threshold
    return weights * jnp.where(is_kept, dropout.factor, jnp.zeros_like(dropout.factor))


def _mixed(x: jax.Array) -> jax.Array:
    """A one-to-one map of 32-bit words in which each bit of the argument moves every other one."""
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> jnp.uint32(15))

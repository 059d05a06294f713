"""How arrays of attention are cut into blocks of queries and of keys, and put together again.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, G = N / K, H and D features.
"""

import math
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsoftjac._checks import AxisName
from jaxsoftjac.attention._dropout import Dropout

Tree = TypeVar("Tree")
Index = int | jax.Array  # the number of a block


class Operands(NamedTuple):
    """What attention is differentiated by."""

    query: jax.Array  # [B, T, N, H]
    key: jax.Array  # [B, S, K, H]
    value: jax.Array  # [B, S, K, D]
    bias: jax.Array | None  # broadcast to [B, N, T, S]
    softcap: jax.Array | None  # a scalar, where it is not static


class Fixed(NamedTuple):
    """What it is not differentiated by; origins are subtracted from keys and values first."""

    mask: jax.Array | None  # boolean, broadcast to [B, N, T, S]
    span: tuple[jax.Array, jax.Array] | None  # the first key and the one past the last, [B|1, T]
    key_origin: jax.Array  # [B, 1, K, H]
    value_origin: jax.Array  # [B, 1, K, D]
    dropout: Dropout | None


class Plan(NamedTuple):
    """What is static: the sizes, the options, and how both sequences are cut into blocks."""

    queries: int
    keys: int
    key_heads: int
    scale: float
    softcap: float | None
    query_block: int
    key_blocks: tuple[int, int]  # of the primal, and of the tangent program
    band: tuple[int, int] | None  # how many keys before and after its own place a query can see
    has_lengths: bool  # so that some blocks that a band lets a query see are empty
    axis_name: AxisName | None  # over which the keys are split, with places of their own
    precision: lax.PrecisionLike  # of the products of matrices


# Arrays by query are [B, K, G, T, …], with an axis for blocks of queries beside T, arrays by key
# [B, K, S, …]. A tile is a block of queries with one of keys, read from them in place.


class Blocks(NamedTuple):
    """What attention is differentiated by, where tiles are read from."""

    query: jax.Array  # [B, K, G, T, H]
    key: jax.Array  # [B, K, S, H]
    value: jax.Array  # [B, K, S, D]
    bias: jax.Array | None  # [key blocks, b, k, g, t, S]
    softcap: jax.Array | None


class Sight(NamedTuple):
    """Which keys a query sees and drops, and the origins of keys and values."""

    mask: jax.Array | None  # [key blocks, b, k, g, t, S]
    span: tuple[jax.Array, jax.Array] | None  # [B|1, 1, 1, T, 1]
    bits: jax.Array | None  # [b, k, g, T, 2], by which keys are dropped
    dropout: Dropout | None
    key_origin: jax.Array  # [B, K, 1, H]
    value_origin: jax.Array  # [B, K, 1, D]


def operand_blocks(operands: Operands, plan: Plan, size: int) -> Blocks:
    """What attention is differentiated by, for blocks of `size` keys."""
    q, k, v, bias, softcap = operands
    k, v = (_padded(jnp.swapaxes(x, 1, 2), 2, size) for x in (k, v))
    bias = None if bias is None else _tiles(bias, plan, size)
    return Blocks(by_query(by_head(q, plan), plan), k, v, bias, softcap)


def sight_of(fixed: Fixed, plan: Plan, size: int) -> Sight:
    """What attention is not differentiated by, for the same blocks."""
    mask = None if fixed.mask is None else _tiles(fixed.mask, plan, size)
    dropout, span = fixed.dropout, None
    if fixed.span is not None:
        start, stop = (by_query(x[:, None, None, :, None], plan) for x in fixed.span)
        span = start, stop
    bits = None if dropout is None else by_query(by_head(dropout.bits, plan), plan)
    origins = (jnp.swapaxes(x, 1, 2) for x in (fixed.key_origin, fixed.value_origin))
    return Sight(mask, span, bits, dropout, *origins)


def tile_of(x: Blocks, i: Index, j: Index, plan: Plan, size: int) -> Blocks:
    """The tile of a block of queries and one of keys."""
    k, v = (lax.dynamic_slice_in_dim(a, j * size, size, 2) for a in (x.key, x.value))
    return Blocks(rows_at(x.query, i, plan), k, v, map_at(x.bias, i, j, plan), x.softcap)


def map_at(x: jax.Array | None, i: Index, j: Index, plan: Plan) -> jax.Array | None:
    """What a tile has of a map by query and key."""
    if x is None:
        return None
    return rows_at(lax.dynamic_index_in_dim(x, j, 0, keepdims=False), i, plan)


def _tiles(x: jax.Array, plan: Plan, size: int) -> jax.Array:
    """[b, n, t, s], lengths 1 for all → [key blocks, b, k, g, t, block], in blocks of queries."""
    b, n, t, s = x.shape
    x = x.reshape(b, *_heads(n, plan), t, s)
    count = max(1, -(-plan.keys // size))
    if s != plan.keys:
        return by_query(jnp.broadcast_to(x, (count, *x.shape)), plan)
    x = _padded(x, 4, size)
    return by_query(jnp.moveaxis(x.reshape(*x.shape[:-1], count, size), 4, 0), plan)


def _heads(n: int, plan: Plan) -> tuple[int, int]:
    return (1, 1) if n == 1 else (plan.key_heads, n // plan.key_heads)


def by_head(x: jax.Array, plan: Plan) -> jax.Array:
    """[B, T, N, …] → [B, K, G, T, …]."""
    B, T, N, D = x.shape
    return jnp.transpose(x.reshape(B, T, *_heads(N, plan), D), (0, 2, 3, 1, 4))


def by_query(x: jax.Array, plan: Plan, fill: float = 0) -> jax.Array:
    """[…, T, D], length 1 for all → blocks of queries on an axis before or after T.

    They are neighbours under a band, else every n-th, which keeps a sharding. The last may be
    filled up.
    """
    *lead, T, D = x.shape
    count, size = max(1, -(-plan.queries // plan.query_block)), 1
    if T == plan.queries:
        x, size = _padded(x, x.ndim - 2, plan.query_block, fill), plan.query_block
    else:
        x = jnp.broadcast_to(x, (*lead, count, D))
    return x.reshape(*lead, *((size, count) if plan.band is None else (count, size)), D)


def _axis(plan: Plan) -> int:
    return -2 if plan.band is None else -3


def rows_at(x: Tree, i: Index, plan: Plan) -> Tree:
    """What belongs to the block of queries with number `i`."""
    read = partial(lax.dynamic_index_in_dim, index=i, axis=_axis(plan), keepdims=False)
    return jax.tree.map(read, x)


def put(x: jax.Array, part: jax.Array, i: Index, plan: Plan) -> jax.Array:
    """`x` with that block replaced."""
    return lax.dynamic_update_index_in_dim(x, part, i, _axis(plan))


def added(x: jax.Array, part: jax.Array, i: Index, plan: Plan) -> jax.Array:
    """`x` with `part` added to that block: in place, and so is its transpose, which only reads."""
    return x + put(jnp.zeros_like(x), part, i, plan)


def _padded(x: jax.Array, axis: int, size: int, fill: float = 0) -> jax.Array:
    """With zeros, or `fill`, after it, to whole blocks of an axis, and at least one."""
    length = x.shape[axis]
    if length == size:
        return x
    pad = [(0, 0)] * x.ndim
    pad[axis] = 0, -length % size if length else size
    return jnp.pad(x, pad, constant_values=fill)


def joined(x: jax.Array, plan: Plan) -> jax.Array:
    """[B, K, G, T in blocks, D] → [B, T, N, D]."""
    B, K, G, *blocks, D = x.shape
    x = x.reshape(B, K, G, math.prod(blocks), D)[:, :, :, : plan.queries]
    return jnp.transpose(x, (0, 3, 1, 2, 4)).reshape(B, plan.queries, K * G, D)


def tiles_of(plan: Plan, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of blocks of queries and of keys, [tiles, 2].

    First those where all queries see all keys but for a mask, then others where some may see some.
    """
    begin = np.arange(0, max(plan.queries, 1), plan.query_block)[:, None]
    end = np.maximum(np.minimum(begin + plan.query_block, plan.queries), begin + 1)
    first = np.arange(0, plan.keys, size)
    last = first + size - 1
    is_seen = first < np.full_like(begin, plan.keys)
    is_whole = is_seen & (last < plan.keys)
    if plan.band is not None and plan.axis_name is None:
        before, after = plan.band
        is_seen = is_seen & (first < end + after) & (last >= begin - before)
        is_whole = is_whole & (last <= begin + after) & (first >= end - 1 - before)
    elif plan.band is not None:
        is_whole = False  # the places of the keys are not known here
    is_whole = is_seen & is_whole & (not plan.has_lengths)
    return np.argwhere(is_whole), np.argwhere(is_seen & ~is_whole)

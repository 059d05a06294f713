"""How arrays of attention are cut into blocks of queries and of keys, and put together again.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, G = N / K, H and D features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Operands(NamedTuple):
    """What attention is differentiated by."""

    query: jax.Array  # [B, T, N, H]
    key: jax.Array  # [B, S, K, H]
    value: jax.Array  # [B, S, K, D]
    bias: jax.Array | None  # broadcast to [B, N, T, S]


class Fixed(NamedTuple):
    """What it is not differentiated by; origins are subtracted from keys and values first."""

    mask: jax.Array | None  # boolean, broadcast to [B, N, T, S]
    span: tuple[jax.Array, jax.Array] | None  # the first key and the one past the last, [B|1, T]
    key_origin: jax.Array  # [B, 1, K, H]
    value_origin: jax.Array  # [B, 1, K, D]


class Plan(NamedTuple):
    """What is static."""

    queries: int
    keys: int
    key_heads: int
    scale: float
    softcap: float | None
    query_block: int
    key_blocks: tuple[int, int]  # of the primal, and of the tangent program
    band: tuple[int, int] | None  # how many keys before and after its own place a query can see
    is_split: bool  # whether the keys are a slice, so that places are not those of the queries


# Blocks: arrays by query are [B, K, G, T, …] and arrays by key [B, K, S, …], the blocks on an axis
# before them.


def in_blocks(operands, fixed, plan, size):
    """All arrays in blocks, those by query and those by key only."""
    rows, keys = operand_blocks(operands, plan, size)
    mask, span, *origins = fixed
    mask = None if mask is None else _tiles(mask, plan, size)
    if span is not None:
        span = tuple(by_query(x[:, None, None, :, None], plan) for x in span)
    count = keys[0].shape[0]
    first = jnp.asarray(seen_blocks(plan, size)[0], jnp.int32)
    positions = size * jnp.arange(count, dtype=jnp.int32)
    origins = tuple(jnp.swapaxes(x, 1, 2) for x in origins)
    return (rows, (mask, span, first)), (keys, positions, origins)


def operand_blocks(operands, plan, size):
    """Query and bias by query; key and value by key."""
    q, k, v, bias = operands
    bias = None if bias is None else _tiles(bias, plan, size)
    keys = tuple(_split(jnp.swapaxes(x, 1, 2), 2, plan.keys, size) for x in (k, v))
    return (by_query(by_head(q, plan), plan), bias), keys


def _tiles(x, plan, size):
    """[b, n, t, s], lengths 1 for all → [query blocks, key blocks, b, k, g, block, block]."""
    b, n, t, s = x.shape
    heads = (1, 1) if n == 1 else (plan.key_heads, n // plan.key_heads)
    return by_query(_split(x.reshape(b, *heads, t, s), 4, plan.keys, size), plan)


def by_head(x, plan):
    """[B, T, N, …] → [B, K, G, T, …]."""
    B, T, N, D = x.shape
    x = x.reshape(B, T, plan.key_heads, N // plan.key_heads, D)
    return jnp.transpose(x, (0, 2, 3, 1, 4))


def by_query(x, plan):
    """Blocks of neighbours where there is a band, else every n-th query, which keeps a sharding."""
    return _split(x, x.ndim - 2, plan.queries, plan.query_block, strided=plan.band is None)


def _split(x, axis, length, size, strided=False):
    """Blocks of an axis, the last padded with zeros, on a new first axis."""
    count = -(-length // size)
    if x.shape[axis] != length:
        return jnp.broadcast_to(x, (count, *x.shape))
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, count * size - length)
    shape = (size, count) if strided else (count, size)
    x = jnp.pad(x, pad).reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis + strided, 0)


def joined(x, plan):
    """[blocks, B, K, G, block, D] → [B, T, N, D]."""
    n, B, K, G, size, D = x.shape
    x = jnp.moveaxis(x, 0, 4 if plan.band is None else 3)
    x = x.reshape(B, K, G, n * size, D)[:, :, :, : plan.queries]
    return jnp.transpose(x, (0, 3, 1, 2, 4)).reshape(B, plan.queries, K * G, D)


def seen_blocks(plan, size):
    """The first key block that each query block sees by the band, and the one past the last."""
    everything = (plan.queries + plan.keys,) * 2
    before, after = everything if plan.is_split or plan.band is None else plan.band
    begin = np.arange(0, plan.queries, plan.query_block)
    first = np.clip(begin - before, 0, plan.keys) // size
    return first, -(-np.clip(begin + plan.query_block + after, 0, plan.keys) // size)


def groups_of(plan, size):
    """Slices of the query blocks, and how many key blocks any block of each slice sees.

    There are four where the first ones see fewer, as under a causal mask: they then skip fewer.
    """
    first, last = seen_blocks(plan, size)
    count, reach = len(first), np.maximum(last - first, 1)
    parts = 4 if count >= 4 and reach[0] < np.max(reach, initial=1) else 1
    bounds = [count * i // parts for i in range(parts + 1)]
    groups = [slice(*bounds[i : i + 2]) for i in range(parts)]
    return [(group, int(np.max(reach[group], initial=1))) for group in groups]

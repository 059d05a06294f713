"""How arrays of attention are cut into blocks of queries and of keys, and put together again.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, G = N / K, H and D features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsoftjac._checks import AxisName
from jaxsoftjac.attention._dropout import Dropout


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


# Arrays by query are [B, K, G, T, …] and arrays by key [B, K, S, …]; axes of blocks stand before.


class QueryBlock(NamedTuple):
    """A block of queries, and its bias in blocks of keys."""

    query: jax.Array  # [B, K, G, T, H]
    bias: jax.Array | None  # [key blocks, b, k, g, t, S]


class Sight(NamedTuple):
    """Which keys a block of queries sees, and the random bits by which it drops some."""

    mask: jax.Array | None  # [key blocks, b, k, g, t, S]
    span: tuple[jax.Array, jax.Array] | None  # [B|1, 1, 1, T, 1]
    first_block: jax.Array  # the first block of keys that a band lets it see
    bits: jax.Array | None  # [b, k, g, T, 2]


class KeyBlock(NamedTuple):
    """A block of keys, and the bias between it and a block of queries."""

    key: jax.Array  # [B, K, S, H]
    value: jax.Array  # [B, K, S, D]
    bias: jax.Array | None  # [b, k, g, t, S]


class KeyBlocks(NamedTuple):
    """All keys, in blocks, and what else is common to all blocks of queries."""

    key: jax.Array  # [key blocks, B, K, S, H]
    value: jax.Array
    softcap: jax.Array | None

    def between(self, rows: QueryBlock) -> KeyBlock:
        """All blocks of keys, as one block of queries meets them."""
        return KeyBlock(self.key, self.value, rows.bias)


class Places(NamedTuple):
    """Where the blocks of keys begin, the origins of keys and values, and the rate of dropout."""

    positions: jax.Array  # [key blocks]
    key_origin: jax.Array  # [B, K, 1, H]
    value_origin: jax.Array  # [B, K, 1, D]
    dropout: Dropout | None


def operand_blocks(operands: Operands, plan: Plan, size: int) -> tuple[QueryBlock, KeyBlocks]:
    """What attention is differentiated by, in blocks of queries and in blocks of `size` keys."""
    q, k, v, bias, softcap = operands
    bias = None if bias is None else _tiles(bias, plan, size)
    k, v = (_split(jnp.swapaxes(x, 1, 2), 2, plan.keys, size) for x in (k, v))
    return QueryBlock(by_query(by_head(q, plan), plan), bias), KeyBlocks(k, v, softcap)


def fixed_blocks(fixed: Fixed, plan: Plan, size: int) -> tuple[Sight, Places]:
    """What attention is not differentiated by, in the same blocks."""
    mask = None if fixed.mask is None else _tiles(fixed.mask, plan, size)
    dropout, span = fixed.dropout, None
    if fixed.span is not None:
        start, stop = (by_query(x[:, None, None, :, None], plan) for x in fixed.span)
        span = start, stop
    bits = None if dropout is None else by_query(by_head(dropout.bits, plan), plan)
    first = jnp.asarray(seen_blocks(plan, size)[0], jnp.int32)
    positions = size * jnp.arange(-(-plan.keys // size), dtype=jnp.int32)
    key_origin, value_origin = (
        jnp.swapaxes(x, 1, 2) for x in (fixed.key_origin, fixed.value_origin)
    )
    places = Places(positions, key_origin, value_origin, dropout)
    return Sight(mask, span, first, bits), places


def _tiles(x: jax.Array, plan: Plan, size: int) -> jax.Array:
    """[b, n, t, s], lengths 1 for all → [query blocks, key blocks, b, k, g, block, block]."""
    b, n, t, s = x.shape
    x = x.reshape(b, *_heads(n, plan), t, s)
    return by_query(_split(x, 4, plan.keys, size), plan)


def _heads(n: int, plan: Plan) -> tuple[int, int]:
    return (1, 1) if n == 1 else (plan.key_heads, n // plan.key_heads)


def by_head(x: jax.Array, plan: Plan) -> jax.Array:
    """[B, T, N, …] → [B, K, G, T, …]."""
    B, T, N, D = x.shape
    return jnp.transpose(x.reshape(B, T, *_heads(N, plan), D), (0, 2, 3, 1, 4))


def by_query(x: jax.Array, plan: Plan) -> jax.Array:
    """Blocks of queries: neighbours under a band, else every n-th, which keeps a sharding."""
    return _split(x, x.ndim - 2, plan.queries, plan.query_block, strided=plan.band is None)


def _split(x: jax.Array, axis: int, length: int, size: int, strided: bool = False) -> jax.Array:
    """Blocks of an axis, the last padded with zeros, on a new first axis."""
    count = -(-length // size)
    if x.shape[axis] != length:
        return jnp.broadcast_to(x, (count, *x.shape))
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, count * size - length)
    shape = (size, count) if strided else (count, size)
    x = jnp.pad(x, pad).reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis + strided, 0)


def joined(x: jax.Array, plan: Plan) -> jax.Array:
    """[blocks, B, K, G, block, D] → [B, T, N, D]."""
    n, B, K, G, size, D = x.shape
    x = jnp.moveaxis(x, 0, 4 if plan.band is None else 3)
    x = x.reshape(B, K, G, n * size, D)[:, :, :, : plan.queries]
    return jnp.transpose(x, (0, 3, 1, 2, 4)).reshape(B, plan.queries, K * G, D)


def seen_blocks(plan: Plan, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first key block that each query block sees by the band, and the one past the last."""
    everything = (plan.queries + plan.keys,) * 2
    is_split = plan.axis_name is not None
    before, after = everything if is_split or plan.band is None else plan.band
    begin = np.arange(0, plan.queries, plan.query_block)
    first = np.clip(begin - before, 0, plan.keys) // size
    return first, -(-np.clip(begin + plan.query_block + after, 0, plan.keys) // size)


class Group(NamedTuple):
    """Neighbouring blocks of queries that go through as many blocks of keys."""

    blocks: slice
    reach: int  # how many blocks of keys any of them sees
    skips: bool  # whether one of them may see none of the keys of a block


def groups_of(plan: Plan, size: int) -> list[Group]:
    """Groups of the query blocks: four where the first ones see fewer keys, as under a causal mask.

    They then skip fewer, and where there is nothing to skip, there is no branch to compile.
    """
    first, last = seen_blocks(plan, size)
    count, reach = len(first), np.maximum(last - first, 1)
    parts = 4 if count >= 4 and reach[0] < np.max(reach, initial=1) else 1
    bounds = [count * i // parts for i in range(parts + 1)]
    anywhere = plan.has_lengths or plan.axis_name is not None
    groups = []
    for i in range(parts):
        blocks = slice(*bounds[i : i + 2])
        is_even = np.ptp(first[blocks]) == 0 and np.ptp(last[blocks]) == 0 if count else True
        farthest = int(np.max(reach[blocks], initial=1))
        groups.append(Group(blocks, farthest, anywhere or not is_even))
    return groups

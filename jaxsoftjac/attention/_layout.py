"""How arrays of attention are cut into blocks of queries and of keys, and put together again.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, G = N / K, H and D features.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsoftjac._checks import AxisName
from jaxsoftjac.attention._dropout import Dropout

Block = TypeVar("Block")
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


# Arrays by query are [B, K, G, T, …] and arrays by key [B, K, S, …]. Those in blocks of queries
# have an axis for these beside T, from which a loop takes one at a time: see `query_block`.


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


class Keys(NamedTuple):
    """All keys, as many as are whole blocks, and what else is common to all blocks of queries."""

    key: jax.Array  # [B, K, S, H]
    value: jax.Array  # [B, K, S, D]
    softcap: jax.Array | None

    def block(self, size: int, rows: QueryBlock, i: Index) -> KeyBlock:
        """The block with number `i`, read in place, as one block of queries meets it."""
        k, v = (lax.dynamic_slice_in_dim(x, i * size, size, 2) for x in self[:2])
        return KeyBlock(k, v, tile(rows.bias, i))


def tile(x: jax.Array | None, i: Index) -> jax.Array | None:
    """What belongs to the block of keys with number `i`."""
    return None if x is None else lax.dynamic_index_in_dim(x, i, 0, keepdims=False)


class Places(NamedTuple):
    """How many blocks of keys of which size, the origins of keys and values, and the dropout."""

    blocks: int
    size: int
    key_origin: jax.Array  # [B, K, 1, H]
    value_origin: jax.Array  # [B, K, 1, D]
    dropout: Dropout | None


def operand_blocks(operands: Operands, plan: Plan, size: int) -> tuple[QueryBlock, Keys]:
    """What attention is differentiated by, in blocks of queries, and for blocks of `size` keys."""
    q, k, v, bias, softcap = operands
    bias = None if bias is None else _tiles(bias, plan, size)
    k, v = (_padded(jnp.swapaxes(x, 1, 2), 2, size) for x in (k, v))
    return QueryBlock(by_query(by_head(q, plan), plan), bias), Keys(k, v, softcap)


def fixed_blocks(fixed: Fixed, plan: Plan, size: int) -> tuple[Sight, Places]:
    """What attention is not differentiated by, in the same blocks."""
    mask = None if fixed.mask is None else _tiles(fixed.mask, plan, size)
    dropout, span = fixed.dropout, None
    if fixed.span is not None:
        start, stop = (by_query(x[:, None, None, :, None], plan) for x in fixed.span)
        span = start, stop
    bits = None if dropout is None else by_query(by_head(dropout.bits, plan), plan)
    first = jnp.asarray(seen_blocks(plan, size)[0], jnp.int32)
    key_origin, value_origin = (
        jnp.swapaxes(x, 1, 2) for x in (fixed.key_origin, fixed.value_origin)
    )
    places = Places(-(-plan.keys // size), size, key_origin, value_origin, dropout)
    return Sight(mask, span, first, bits), places


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


def query_block(blocks: Block, i: Index, plan: Plan) -> Block:
    """What belongs to the block of queries with number `i`, read in place."""
    axis = -2 if plan.band is None else -3
    return jax.tree.map(
        lambda x: lax.dynamic_index_in_dim(x, i, axis if x.ndim > 1 else 0, keepdims=False), blocks
    )


def _padded(x: jax.Array, axis: int, size: int, fill: float = 0) -> jax.Array:
    """With zeros, or `fill`, after it, to whole blocks of an axis, and at least one."""
    length = x.shape[axis]
    if length == size:
        return x
    pad = [(0, 0)] * x.ndim
    pad[axis] = 0, -length % size if length else size
    return jnp.pad(x, pad, constant_values=fill)


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
    begin = np.arange(0, max(plan.queries, 1), plan.query_block)
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
    parts = 4 if count >= 4 and reach[0] < np.max(reach) else 1
    bounds = [count * i // parts for i in range(parts + 1)]
    anywhere = plan.has_lengths or plan.axis_name is not None
    groups = []
    for i in range(parts):
        blocks = slice(*bounds[i : i + 2])
        is_even = np.ptp(first[blocks]) == 0 and np.ptp(last[blocks]) == 0
        farthest = int(np.max(reach[blocks]))
        groups.append(Group(blocks, farthest, anywhere or not is_even))
    return groups

"""Attention of checked arrays, block by block: the primal, and the tangent program of every mode.

Both are scans over blocks of keys inside a map over blocks of queries, so that no array holds a
number per query and key. The tangent program is linear in the tangents and computes the
probabilities again from the log-sum-exp; its transpose, by JAX, is the backward pass.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, G = N / K, H and D features.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_again = partial(jax.checkpoint, prevent_cse=False)


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


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def attend(operands: Operands, fixed: Fixed, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Σⱼ pⱼ(vⱼ − origin), [B, T, N, D], and logsumexpⱼ of the scores, [B, T, N].

    A query that sees no key gets 0 and −∞.
    """
    rows, keys = _blocks(operands, fixed, plan, plan.key_blocks[0])
    return _map(partial(_softmax_rows, plan=plan), rows, keys, plan)


@attend.defjvp
def _(plan, primals, tangents):
    (operands, fixed), (pushed, _) = primals, tangents
    result = attend(operands, fixed, plan)
    return result, _push(pushed, operands, fixed, result, plan)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(4,))
def _push(pushed, operands, fixed, result, plan):
    """Tangents of the result, linear in `pushed`, the tangents of the operands."""
    rows, keys = _blocks(operands, fixed, plan, plan.key_blocks[1])
    row_tangents, key_tangents = _operand_blocks(pushed, plan, plan.key_blocks[1])
    o, lse = result
    done = tuple(_by_query(_heads(x, plan), plan) for x in (o, lse[..., None]))
    rows, keys = (rows, done, row_tangents), (keys, key_tangents)
    return _map(partial(_push_rows, plan=plan), rows, keys, plan)


# One block of queries, q [B, K, G, T, H], over blocks of keys [B, K, S, H]: scores [B, K, G, T, S].


def _softmax_rows(rows, keys, plan):
    """The online softmax: the top score so far, and Σp and Σp(v − origin) relative to it."""
    (q, bias), limits = rows
    (k, v), positions, origins = keys
    queries = _scaled(q, limits, plan)

    def step(carry, operands, seen):
        top, total, acc = carry
        s, v = _scores(queries, operands, seen, origins, plan)
        new_top = jnp.maximum(top, jnp.max(s, -1, keepdims=True))
        p, kept = jnp.exp(s - new_top), jnp.exp(top - new_top)
        total = total * kept + jnp.sum(p, -1, keepdims=True)
        return new_top, total, acc * kept + _mix(p, v)

    zero, zeros = _zeros(queries[0], v)
    carry = zero + float(jnp.finfo(zero.dtype).min), zero, zeros
    top, total, acc = _scan(step, carry, (k, v, bias), limits, positions, plan)
    return acc / jnp.where(total == 0, 1, total), top + jnp.log(total)


def _push_rows(rows, keys, plan):
    """ȯ = Σ p(ṡ − s̄)(v − o) + Σ p v̇ and the mean s̄ = Σpṡ, which is the tangent of logsumexp.

    The softmax part is PᵀDP with P = I − 1pᵀ, D = diag(p), in this direction and in the transpose.
    """
    ((q, bias), limits), (o, lse), (q_tangent, bias_tangent) = rows
    ((k, v), positions, origins), (k_tangent, v_tangent) = keys
    queries, queries_tangent = jax.jvp(lambda q: _scaled(q, limits, plan), (q,), (q_tangent,))
    lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)  # p = 0 where no key is seen

    def pushed_scores(block, seen):
        scores = partial(_scores, seen=seen, origins=origins, plan=plan)
        primals, tangents = (queries, block[0]), (queries_tangent, block[1])
        (s, v), (s_tangent, v_tangent) = jax.jvp(scores, primals, tangents)
        return jnp.exp(s - lse), s_tangent, v, v_tangent

    def add_mean(mean, block, seen):
        p, s_tangent, _, _ = pushed_scores(block, seen)
        return mean + jnp.sum(p * s_tangent, -1, keepdims=True)

    def add_centred(carry, block, seen):
        p, s_tangent, v, v_tangent = pushed_scores(block, seen)
        w = p * (s_tangent - mean)
        return carry[0] + jnp.sum(w, -1, keepdims=True), carry[1] + _mix(w, v) + _mix(p, v_tangent)

    zero, zeros = _zeros(queries[0], v)
    blocks = (k, v, bias), (k_tangent, v_tangent, bias_tangent)
    mean = _scan(add_mean, zero, blocks, limits, positions, plan)
    rest, acc = _scan(add_centred, (zero, zeros), blocks, limits, positions, plan)
    return acc - rest * o, mean + rest


def _scaled(q, limits, plan):
    """The queries times `scale`; in presence of masks 0 for those with NaN or ∞, and which."""
    mask, span, _ = limits
    q = q * plan.scale
    return (q, None) if mask is None and span is None else (_finite(q), _spoilt(q))


def _scores(queries, operands, seen, origins, plan):
    """Scores, −∞ where a key is not seen, and the values, from their origins.

    Where some keys are not seen, a NaN or ∞ of a key or value is moved into its scores: what is
    multiplied by p = 0 stays finite, and a query that does see it is NaN.
    """
    (q, spoilt), (k, v, bias) = queries, operands
    k, v = k - origins[0], v - origins[1]
    if seen is not None:
        spoilt = spoilt + jnp.swapaxes(_spoilt(k) + _spoilt(v), 2, 3)[:, :, None]
        k, v = _finite(k), _finite(v)
    s = jnp.einsum("bkgth,bksh->bkgts", q, k)
    if plan.softcap is not None:
        s = plan.softcap * jnp.tanh(s / plan.softcap)
    if bias is not None:
        s = s + bias
    if spoilt is not None:
        s = s + spoilt
    return s if seen is None else jnp.where(seen, s, -jnp.inf), v


def _mix(p, v):
    return jnp.einsum("bkgts,bksd->bkgtd", p, v)


def _finite(x):
    return jnp.where(jnp.isfinite(x), x, 0)


def _spoilt(x):
    """NaN where a vector is not finite, else 0."""
    return jnp.where(jnp.all(jnp.isfinite(x), -1, keepdims=True), 0, jnp.nan).astype(x.dtype)


def _zeros(q, v):
    """Zeros [B, K, G, T, 1] and [B, K, G, T, D], sharded as q."""
    zero = jnp.zeros_like(q[..., :1])
    return zero, jnp.broadcast_to(zero, (*zero.shape[:-1], v.shape[-1]))


def _scan(step, carry, blocks, limits, positions, plan) -> Any:
    """`step` over the blocks of keys, except those that no query sees.

    Nothing of a step is kept for a derivative, which computes it again. The second checkpoint, in
    the branches, keeps JAX from handing on what a branch computes.
    """
    mask, span, first = limits
    size = jax.tree.leaves(blocks)[0].shape[-2]
    xs = blocks, mask, positions
    reach = _reach(plan, positions.shape[0], size)[1]
    if reach < positions.shape[0]:
        xs = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, reach), xs)

    @_again
    def body(carry, x):
        block, mask, position = x
        if span is None:
            return step(carry, block, mask), None
        branches = [lambda carry, *_: carry, _again(partial(_step_in_span, step, size))]
        if mask is None:
            branches.append(_again(lambda carry, block, *_: step(carry, block, None)))
        index = _sight(span, position, size, len(branches))
        return lax.switch(index, branches, carry, block, mask, span, position), None

    return lax.scan(body, carry, xs)[0]


def _sight(span, position, size, cases):
    """0 where no query sees any key of the block, 2 where all see all of them, else 1."""
    start, stop = span
    begins = jnp.min(jnp.where(start < stop, start, jnp.iinfo(start.dtype).max))
    some = (begins < position + size) & (jnp.max(stop) > position)
    all_ = (jnp.max(start) <= position) & (jnp.min(stop) >= position + size)
    return jnp.minimum(some.astype(jnp.int32) + all_.astype(jnp.int32), cases - 1)


def _step_in_span(step, size, carry, block, mask, span, position):
    start, stop = span
    place = position + lax.broadcasted_iota(start.dtype, (1, 1, 1, 1, size), 4)
    seen = (place >= start) & (place < stop)
    return step(carry, block, seen if mask is None else seen & mask)


# Blocks: arrays by query are [B, K, G, T, …] and arrays by key [B, K, S, …], the blocks on an axis
# before them.


def _blocks(operands, fixed, plan, size):
    """All arrays in blocks, those by query and those by key only."""
    rows, keys = _operand_blocks(operands, plan, size)
    mask, span, *origins = fixed
    mask = None if mask is None else _tiles(mask, plan, size)
    if span is not None:
        span = tuple(_by_query(x[:, None, None, :, None], plan) for x in span)
    count = keys[0].shape[0]
    first = jnp.asarray(_reach(plan, count, size)[0], jnp.int32)
    positions = size * jnp.arange(count, dtype=jnp.int32)
    origins = tuple(jnp.swapaxes(x, 1, 2) for x in origins)
    return (rows, (mask, span, first)), (keys, positions, origins)


def _operand_blocks(operands, plan, size):
    q, k, v, bias = operands
    bias = None if bias is None else _tiles(bias, plan, size)
    keys = tuple(_split(jnp.swapaxes(x, 1, 2), 2, plan.keys, size) for x in (k, v))
    return (_by_query(_heads(q, plan), plan), bias), keys


def _tiles(x, plan, size):
    """[b, n, t, s], lengths 1 for all → [query blocks, key blocks, b, k, g, block, block]."""
    b, n, t, s = x.shape
    heads = (1, 1) if n == 1 else (plan.key_heads, n // plan.key_heads)
    return _by_query(_split(x.reshape(b, *heads, t, s), 4, plan.keys, size), plan)


def _heads(x, plan):
    """[B, T, N, …] → [B, K, G, T, …]."""
    B, T, N, D = x.shape
    x = x.reshape(B, T, plan.key_heads, N // plan.key_heads, D)
    return jnp.transpose(x, (0, 2, 3, 1, 4))


def _by_query(x, plan):
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


def _map(function, rows, keys, plan):
    """`function` of every block of queries; its two results as [B, T, N, D] and [B, T, N]."""
    if 0 < plan.queries <= plan.query_block:
        one = function(jax.tree.map(lambda x: x[0], rows), keys)
        o, lse = jax.tree.map(lambda x: x[None], one)
    else:
        o, lse = lax.map(_again(lambda row: function(row, keys)), rows)
    return _joined(o, plan), _joined(lse, plan)[..., 0]


def _joined(x, plan):
    """[blocks, B, K, G, block, D] → [B, T, N, D]."""
    n, B, K, G, size, D = x.shape
    x = jnp.moveaxis(x, 0, 4 if plan.band is None else 3)
    x = x.reshape(B, K, G, n * size, D)[:, :, :, : plan.queries]
    return jnp.transpose(x, (0, 3, 1, 2, 4)).reshape(B, plan.queries, K * G, D)


def _reach(plan, count, size):
    """The first key block of every query block, and how many blocks of keys any of them sees."""
    everything = (plan.queries + plan.keys,) * 2
    before, after = everything if plan.is_split or plan.band is None else plan.band
    begin = np.arange(0, plan.queries, plan.query_block)
    first = np.clip(begin - before, 0, plan.keys) // size
    last = -(-np.clip(begin + plan.query_block + after, 0, plan.keys) // size)
    reach = min(count, max(1, np.max(last - first, initial=0)))
    return np.minimum(first, count - reach), reach

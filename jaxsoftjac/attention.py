"""Attention without the T×S map, differentiable in every mode and to any order in linear memory.

>>> import jax, jax.numpy as jnp
>>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 256, 2, 16))
>>> attend = lambda q: dot_product_attention(q, k, v, is_causal=True)
>>> loss = lambda q: jnp.sum(jax.jvp(attend, (q,), (jnp.cos(q),))[1] ** 2)
>>> print(jax.jit(jax.grad(loss))(q).shape)  # reverse over forward, as in MeanFlow
(1, 256, 2, 16)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, wide
from jaxsoftjac.attention_blocks import attend
from jaxsoftjac.attention_layout import Fixed, Operands, Plan


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | jax.Array | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    logit_softcap: float | None = None,
    block_size: int | tuple[int, int] | None = None,
    return_residual: bool = False,
    sink: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Any:
    """Attention of each head: softmax(QKᵀ·scale + bias) V, as jax.nn.dot_product_attention.

    The scores exist in blocks only: memory is O(T + S) in jvp, vjp and every nesting, and blocks
    that `is_causal`, the window or the lengths empty are not computed. The softmax part of the
    derivatives is PᵀDP with P = I − 1pᵀ, D = diag(p), on keys and values from which their mean is
    taken: their common part costs no digits.

    Cost: O(T·S·H) time. Bias and its gradient are as large as the bias that is given.

    Args:
        query: shape [B, T, N, H] or [T, N, H].
        key: shape [B, S, K, H] or [S, K, H]; each key head serves N / K heads.
        value: shape [B, S, K, D] or [S, K, D].
        bias: added to the scores, after `logit_softcap`; its four axes broadcast to [B, N, T, S].
        mask: boolean, likewise; True where a query sees a key.
        scale: factor of QKᵀ, 1/√H by default.
        is_causal: query t sees keys 0 … t.
        query_seq_lengths: integers [B]; queries from there on give 0.
        key_value_seq_lengths: integers [B]; keys from there on are not seen.
        local_window_size: (l, r), or one int for both: query t sees keys t − l … t + r.
        logit_softcap: c > 0 makes the scores c·tanh(QKᵀ·scale / c).
        block_size: queries and keys of a block, (b, c) or one int; by default suited to caches.
        return_residual: also return the logsumexp of each query's scores.
        sink: [N], one more score per head, whose probability goes to no value.
        axis_name: mapped axis (`shard_map`, `vmap`) over which keys, values, bias and mask are
            split in equal slices along S; each device holds all queries, and lengths and places
            are global. Only arrays of the size of the queries are communicated.

    Returns:
        Array [B, T, N, D] (or [T, N, D]) in the dtype of `query`; with `return_residual` a pair
        with logsumexp [B, T, N], differentiable too. A query that sees no key gives 0 and −∞, with
        gradient 0. Keys and values that no query sees are ignored, NaN included; a NaN or ∞ that a
        query sees makes its row NaN.

    Raises:
        TypeError: an array is boolean or complex, the dtypes of query, key and value differ,
            `mask` is not boolean, or lengths are not integers.
        ValueError: shapes do not fit each other, or an option is out of range.
    """
    q, k, v = (as_real(n, x) for n, x in (("query", query), ("key", key), ("value", value)))
    _check_operands(q, k, v)
    unbatched, dtype = q.ndim == 3, q.dtype
    if unbatched:
        q, k, v = q[None], k[None], v[None]
    B, T, N, H = q.shape
    shape = B, N, T, k.shape[1]
    q, k, v = wide(q), wide(k), wide(v)  # here, so that their derivatives are rounded but once
    if not isinstance(scale, int | float | None):  # learned: JAX differentiates by it here
        q, scale = q * scale, 1.0
    band = _band(is_causal, local_window_size, 2**30)
    plan = _plan(q, k, scale, logit_softcap, block_size, band, axis_name is not None)
    span = _span(plan, query_seq_lengths, key_value_seq_lengths, B, axis_name)
    origins = _mean(k, axis_name), _mean(v, axis_name)
    if logit_softcap is not None:  # the capped scores are not moved along by the keys' origin
        origins = jnp.zeros_like(origins[0]), origins[1]
    bias = _broadcastable("bias", bias, shape)
    bias = None if bias is None else bias.astype(q.dtype)
    sink = None if sink is None else _checked_sink(sink, N).astype(q.dtype)
    operands = Operands(q, k, v, bias)
    fixed = Fixed(_broadcastable("mask", mask, shape), span, *origins)
    o, lse = attend(_varying(operands, fixed), fixed, plan)
    key_origin, value_origin = (_per_head(x, N) for x in origins)
    lse = _where_seen(lse, lse + plan.scale * jnp.sum(q * key_origin, -1), -jnp.inf)
    if axis_name is not None:
        o, lse = _over_slices(o, lse, axis_name)
    o = _where_seen(lse[..., None], o + value_origin, 0)
    if sink is not None:
        o, lse = _with_sink(o, lse, sink)
    o, lse = o.astype(dtype), lse.astype(dtype)
    if unbatched:
        o, lse = o[0], lse[0]
    return (o, lse) if return_residual else o


def _varying(operands, fixed):
    """The operands, varying over each mapped axis that anything varies over.

    The sum over devices, which is the transpose of that, then stands before the loops over blocks
    and not inside them.
    """
    dtype = operands.query.dtype
    first, *rest = (lax.full_like(x, 0, dtype, ()) for x in jax.tree.leaves((operands, fixed)))
    zero = sum(rest, first)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), operands)


def _where_seen(lse, x, otherwise):
    return jnp.where(lse == -jnp.inf, otherwise, x)


def _mean(x, axis_name):
    """Mean over the sequence, [B, 1, K, D], without what is not finite; a constant."""
    x = lax.stop_gradient(x)
    x = jnp.where(jnp.isfinite(x), x, 0)
    mean = jnp.sum(x, 1, keepdims=True) / max(x.shape[1], 1)
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def _per_head(x, heads):
    """[B, 1, K, D] → [B, 1, N, D]."""
    B, one, K, D = x.shape
    return jnp.broadcast_to(x[:, :, :, None], (B, one, K, heads // K, D)).reshape(B, one, heads, D)


def _over_slices(o, lse, axis_name):
    """The results of all keys from those of each device's keys."""
    top = lax.pmax(lax.stop_gradient(lse), axis_name)
    top = _where_seen(top, top, 0)
    weight = jnp.exp(lse - top)
    total = lax.psum(weight, axis_name)
    divisor = jnp.where(total == 0, 1, total)
    o = lax.psum(o * weight[..., None], axis_name) / divisor[..., None]
    return o, jnp.where(total == 0, -jnp.inf, top + jnp.log(divisor))


def _checked_sink(sink, heads):
    sink = as_real("sink", sink)
    if sink.shape != (heads,):
        raise ValueError(f"`sink` must have shape ({heads},), one per query head, got {sink.shape}")
    return sink


def _with_sink(o, lse, sink):
    """One more score per head, whose value is 0."""
    total = jnp.logaddexp(lse, sink[None, None])
    kept = jnp.exp(_where_seen(lse, lse - total, -jnp.inf))
    return o * kept[..., None], total


def _span(plan, query_lengths, key_lengths, batch, axis_name):
    """The first key that each query sees and the one past the last, [B or 1, T]; None for all."""
    lengths = _lengths("query_seq_lengths", query_lengths, batch)
    key_lengths = _lengths("key_value_seq_lengths", key_lengths, batch)
    padded = any(plan.keys % size for size in plan.key_blocks)
    if plan.band is None and lengths is None and key_lengths is None and not padded:
        return None
    slices = 1 if axis_name is None else lax.axis_size(axis_name)
    t = jnp.arange(plan.queries, dtype=jnp.int32)[None]
    before, after = plan.band or (slices * plan.keys + plan.queries,) * 2
    start, stop = t - before, jnp.minimum(t + after + 1, slices * plan.keys)
    if key_lengths is not None:
        stop = jnp.minimum(stop, key_lengths)
    if lengths is not None:
        stop = jnp.where(t < lengths, stop, 0)
    origin = 0 if axis_name is None else lax.axis_index(axis_name) * plan.keys
    start = jnp.broadcast_to(jnp.maximum(start, 0) - origin, stop.shape)
    return start, jnp.minimum(stop - origin, plan.keys)


def _plan(q, k, scale, softcap, block_size, band, is_split):
    (B, T, N, H), (_, S, K, _) = q.shape, k.shape
    if softcap is not None and not softcap > 0:
        raise ValueError(f"`logit_softcap` must be > 0 or None, got {softcap}")
    scale = 1 / math.sqrt(H) if scale is None else float(scale)
    query_block, *key_blocks = _block_sizes(block_size, B * N)
    if jax.typeof(q).sharding.spec[1] is not None:
        query_block = T  # blocks would cut through the devices' slices
    even = [_even(T, query_block), *(_even(S, size) for size in key_blocks)]
    return Plan(T, S, K, scale, softcap, even[0], (even[1], even[2]), band, is_split)


def _block_sizes(block_size, heads):
    """Queries of a block, and keys in the primal and in the tangent program.

    By default a block has at most about 2²⁰ scores, over all heads: as measured on a CPU, they
    then stay in its caches, and the rows that every step reads and writes do not weigh much.
    """
    if block_size is None:
        queries = min(max(2**13 // max(heads, 1), 128), 1024)
        keys = min(max(2**20 // (queries * max(heads, 1)), 128), 256)
        return queries, 2 * keys, keys
    sizes = (block_size, block_size) if isinstance(block_size, int) else tuple(block_size)
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"`block_size` must be one or two ints > 0, got {block_size}")
    return sizes[0], sizes[1], sizes[1]


def _even(length, size):
    """The block size that cuts a length into as many blocks as `size` does, as even as can be."""
    return -(-length // max(-(-length // size), 1)) or 1


def _band(is_causal, window, unbounded):
    """How many keys before and after its own place a query sees; None for all."""
    if window is None:
        return (unbounded, 0) if is_causal else None
    window = (window, window) if isinstance(window, int) else tuple(window)
    if len(window) != 2 or not all(isinstance(w, int) and w >= 0 for w in window):
        raise ValueError(f"`local_window_size` must be one or two ints ≥ 0, got {window}")
    before, after = (min(w, unbounded) for w in window)
    return before, 0 if is_causal else after


def _check_operands(q, k, v):
    if q.ndim not in (3, 4):
        raise ValueError(f"`query` must have shape [B, T, N, H] or [T, N, H], got {q.shape}")
    if k.ndim != q.ndim or k.shape[:-3] != q.shape[:-3] or k.shape[-1] != q.shape[-1]:
        expected = "[B, S, K, H]" if q.ndim == 4 else "[S, K, H]"
        raise ValueError(
            f"`key` must have shape {expected} with the batch and features of `query` {q.shape}, "
            f"got {k.shape}"
        )
    if v.ndim != k.ndim or v.shape[:-1] != k.shape[:-1]:
        raise ValueError(
            f"`value` must have the shape of `key` {k.shape} but for its last axis, got {v.shape}"
        )
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"the heads of `query` {q.shape} must be a multiple of those of `key` {k.shape}, "
            f"got {q.shape[-2]} and {k.shape[-2]}"
        )
    for name, x in (("key", k), ("value", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"`{name}` must have the dtype of `query`, {q.dtype}, got {x.dtype}")


def _broadcastable(name, x, shape):
    """`bias` or `mask` with four axes, each of length 1 or as in [B, N, T, S]."""
    if x is None:
        return None
    x = as_real(name, x) if name == "bias" else jnp.asarray(x)
    if name == "mask" and x.dtype != jnp.bool_:
        raise TypeError(f"`mask` must be boolean, got dtype {x.dtype}")
    full = (1,) * (4 - x.ndim) + x.shape
    if len(full) != 4 or any(n not in (1, m) for n, m in zip(full, shape, strict=True)):
        raise ValueError(f"`{name}` must broadcast to [B, N, T, S] = {shape}, got {x.shape}")
    return x.reshape(full)


def _lengths(name, x, batch):
    if x is None:
        return None
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integers, got dtype {x.dtype}")
    if x.shape != (batch,):
        raise ValueError(f"`{name}` must have shape ({batch},), got {x.shape}")
    return x.astype(jnp.int32)[:, None]

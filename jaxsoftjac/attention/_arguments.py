"""The checked arguments of attention, and the plan of its blocks.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, H and D features.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._checks import as_real
from jaxsoftjac.attention._layout import Plan


def checked_sink(sink, heads):
    sink = as_real("sink", sink)
    if sink.shape != (heads,):
        raise ValueError(f"`sink` must have shape ({heads},), one per query head, got {sink.shape}")
    return sink


def span_of(plan, query_lengths, key_lengths, batch, axis_name):
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


def plan_of(q, k, scale, softcap, block_size, band, is_split):
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


def band_of(is_causal, window, unbounded):
    """How many keys before and after its own place a query sees; None for all."""
    if window is None:
        return (unbounded, 0) if is_causal else None
    window = (window, window) if isinstance(window, int) else tuple(window)
    if len(window) != 2 or not all(isinstance(w, int) and w >= 0 for w in window):
        raise ValueError(f"`local_window_size` must be one or two ints ≥ 0, got {window}")
    before, after = (min(w, unbounded) for w in window)
    return before, 0 if is_causal else after


def check_operands(q, k, v):
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


def broadcastable(name, x, shape):
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

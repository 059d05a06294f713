"""The checked options of attention: blocks, the band of keys that each query can see, lengths.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, H and D features.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxsoftjac._checks import known_size
from jaxsoftjac.attention._arguments import scalar
from jaxsoftjac.attention._layout import AxisName, Plan

_EVERY_KEY = 2**30


def plan_of(
    q: jax.Array,
    k: jax.Array,
    *,
    scale: float | jax.Array | None,
    softcap: float | jax.Array | None,
    block_size: int | tuple[int, int] | None,
    band: tuple[int, int] | None,
    has_lengths: bool,
    axis_name: AxisName | None,
    precision: lax.PrecisionLike,
) -> Plan:
    """What is static, for q [B, T, N, H] and k [B, S, K, H]; a scalar that JAX traces is not."""
    (*batch, T, N, H), (S, K) = q.shape, k.shape[-3:-1]
    if scale is None:
        scale = 1 / math.sqrt(max(H, 1))
    heads = math.prod(known_size(n, 1) for n in batch) * N
    query_block, *key_blocks = _block_sizes(block_size, heads, T, S, band is not None)
    if jax.typeof(q).sharding.spec[-3] is not None:
        query_block = T  # blocks would cut through the devices' slices
    even = [_even(T, query_block), *(_even(S, size) for size in key_blocks)]
    return Plan(
        queries=T,
        keys=S,
        key_heads=K,
        scale=scale if isinstance(scale, float) else 1.0,
        softcap=softcap if isinstance(softcap, float) else None,
        query_block=even[0],
        key_blocks=(even[1], even[2]),
        band=band,
        has_lengths=has_lengths,
        axis_name=axis_name,
        precision=precision,
    )


def slice_of(plan: Plan, axis_name: AxisName, slices: int) -> Plan:
    """The plan of one of the equal slices of the keys over a mapped axis."""
    keys = plan.keys // slices
    of_primal, of_tangent = (_even(keys, size) for size in plan.key_blocks)
    return plan._replace(keys=keys, key_blocks=(of_primal, of_tangent), axis_name=axis_name)


def softcap_of(x: ArrayLike | None) -> float | jax.Array | None:
    """The bound of the scores, None for ∞."""
    if x is None:
        return None
    x = scalar("logit_softcap", x)
    if isinstance(x, float) and not x > 0:
        raise ValueError(f"`logit_softcap` must be > 0 or None, got {x}")
    return None if isinstance(x, float) and x == math.inf else x


def _block_sizes(
    block_size: int | tuple[int, int] | None, heads: int, T: int, S: int, has_band: bool
) -> tuple[int, int, int]:
    """Queries of a block, and keys in the primal and in the tangent program.

    By default a block has at most about 2²⁰ scores, over all heads: they stay in a CPU's caches,
    and the rows that every step reads and writes weigh little against them. All keys are one block
    where that has at most twice as many, for then each score of a derivative is computed once.
    Under a band blocks are smaller, so that few of them hold scores that no query sees.
    """
    if block_size is not None:
        queries, keys = two_ints("block_size", block_size, 1)
        return queries, keys, keys
    most = min(max(T // 4, 128), 512) if has_band else 1024
    queries = min(max(2**13 // max(heads, 1), 128), most)
    if min(queries, T) * heads * S <= 2**21 and not (has_band and queries < T):
        return queries, max(S, 1), max(S, 1)
    keys = min(max(2**20 // (queries * heads), 128), 256)
    if has_band:
        keys = min(keys, queries)
        return queries, min(2 * keys, queries), keys
    return queries, 2 * keys, keys


def _even(length: int, size: int) -> int:
    """The block size that cuts a length into as many blocks as `size` does, as even as can be."""
    return -(-length // max(-(-length // size), 1)) or 1


def two_ints(name: str, x: Any, least: int) -> tuple[int, int]:
    """One int for both, or two, of Python or NumPy."""
    text = f"`{name}` must be one or two ints ≥ {least}, got {x!r}"
    if isinstance(x, np.ndarray | np.generic | jax.Array) and not isinstance(x, Tracer):
        x = np.asarray(x).tolist()
    parts: tuple[Any, ...] = tuple(x) if isinstance(x, list | tuple) else (x, x)
    if any(isinstance(n, bool | Tracer) or not hasattr(n, "__index__") for n in parts):
        raise TypeError(text)
    if len(parts) != 2 or min(parts) < least:
        raise ValueError(text)
    return operator.index(parts[0]), operator.index(parts[1])


def band_of(
    is_causal: bool | str, window: int | tuple[int, int] | None, offset: int
) -> tuple[int, int] | None:
    """How many keys before and after its own place a query sees; None for all.

    `offset` is the place of query 0 among the keys under a mask that is causal from the end.
    """
    if isinstance(is_causal, str):
        if is_causal != "bottom_right":
            raise ValueError(
                f"`is_causal` must be True, False or 'bottom_right', got {is_causal!r}"
            )
    elif not isinstance(is_causal, bool | np.bool_):
        kind = type(is_causal).__name__
        raise TypeError(f"`is_causal` must be a bool or 'bottom_right', got {kind}")
    elif not is_causal:
        offset = 0
        if window is None:
            return None
    else:
        offset = 0
    before, after = (_EVERY_KEY,) * 2
    if window is not None:
        before, after = (min(w, _EVERY_KEY) for w in two_ints("local_window_size", window, 0))
    return before - offset, (0 if is_causal else after) + offset


def span_of(
    plan: Plan,
    query_lengths: jax.Array | None,
    key_lengths: jax.Array | None,
) -> tuple[jax.Array, jax.Array] | None:
    """The first key that each query sees and the one past the last, [B or 1, T]; None for all."""
    padded = any(plan.keys % size for size in plan.key_blocks)
    if plan.band is None and query_lengths is None and key_lengths is None and not padded:
        return None
    origin, total = first_key(plan), slices_of(plan.axis_name) * plan.keys
    t = jnp.arange(plan.queries, dtype=jnp.int32)[None]
    before, after = plan.band or (_EVERY_KEY,) * 2
    start, stop = t - before, jnp.minimum(t + after + 1, total)
    if key_lengths is not None:
        stop = jnp.minimum(stop, key_lengths[:, None])
    if query_lengths is not None:
        stop = jnp.where(t < query_lengths[:, None], stop, 0)
    start = jnp.broadcast_to(jnp.maximum(start, 0) - origin, stop.shape)
    return start, jnp.minimum(stop - origin, plan.keys)


def slices_of(axis_name: AxisName | None) -> int:
    """Over how many devices the keys are split."""
    return 1 if axis_name is None else lax.axis_size(axis_name)


def first_key(plan: Plan) -> jax.Array:
    """The place, among all keys, of the first key of this device's slice."""
    index = 0 if plan.axis_name is None else lax.axis_index(plan.axis_name)
    return jnp.asarray(index * plan.keys, jnp.int32)

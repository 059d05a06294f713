"""The checked arrays of attention.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, H and D features.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_real, checked_key


def checked_operands(
    query: ArrayLike, key: ArrayLike, value: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, key and value as arrays of one floating dtype, whose shapes fit each other."""
    q, k, v = (as_real(n, x) for n, x in (("query", query), ("key", key), ("value", value)))
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
    return q, k, v


def broadcastable(name: str, x: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """`bias` or `mask` with four axes, each of length 1 or as in [B, N, T, S]."""
    if x is None:
        return None
    x = as_real(name, x) if name == "bias" else as_array(name, x)
    if name == "mask" and x.dtype != jnp.bool_:
        raise TypeError(f"`mask` must be boolean, got dtype {x.dtype}")
    full = (1,) * (4 - x.ndim) + x.shape
    if len(full) != 4 or any(n not in (1, m) for n, m in zip(full, shape, strict=True)):
        raise ValueError(f"`{name}` must broadcast to [B, N, T, S] = {shape}, got {x.shape}")
    return x.reshape(full)


def checked_lengths(name: str, x: ArrayLike | None, batch: int) -> jax.Array | None:
    """Lengths as integers [B]."""
    if x is None:
        return None
    x = as_array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integers, got dtype {x.dtype}")
    if x.shape != (batch,):
        raise ValueError(f"`{name}` must have shape ({batch},), got {x.shape}")
    return x.astype(jnp.int32)


def checked_sink(sink: ArrayLike | None, heads: int) -> jax.Array | None:
    """One score per head."""
    if sink is None:
        return None
    sink = as_real("sink", sink)
    if sink.shape != (heads,):
        raise ValueError(f"`sink` must have shape ({heads},), one per query head, got {sink.shape}")
    return sink


def scalar(name: str, x: ArrayLike) -> float | jax.Array:
    """A number as a float, which is static, or a JAX scalar, by which one can differentiate."""
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    kinds = jnp.integer, jnp.floating
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        got = f"dtype {array.dtype}" if hasattr(x, "dtype") else repr(x)
        raise TypeError(f"`{name}` must be a real number, got {got}")
    if array.shape:
        raise ValueError(f"`{name}` must be a scalar, got shape {array.shape}")
    return as_real(name, x) if isinstance(x, jax.Array) else float(array)


def flag(name: str, x: object) -> bool:
    """A bool of Python or NumPy, as Python's."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"`{name}` must be a bool, got {type(x).__name__}")
    return bool(x)


def checked_dropout(
    rate: ArrayLike, key: jax.Array | None
) -> tuple[float | jax.Array, jax.Array] | None:
    """The rate of dropout and a random key; None where nothing is dropped."""
    rate = scalar("dropout_rate", rate)
    if isinstance(rate, float) and not 0 <= rate < 1:
        raise ValueError(f"`dropout_rate` must lie in [0, 1), got {rate}")
    drops = not (isinstance(rate, float) and rate == 0)
    if key is None:
        if drops:
            message = f"`dropout_key` must be a random key where `dropout_rate` is {rate}, got None"
            raise ValueError(message)
        return None
    key = checked_key("dropout_key", key)
    return (rate, key) if drops else None

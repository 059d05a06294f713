"""Argument checks that tracing can see: dtype, axis and shape; never values."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Axis = int | Sequence[int] | None


def as_real(name: str, x: ArrayLike) -> jax.Array:
    """`x` as a floating array; integers are cast before anything is subtracted from them."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.bool_) or jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got dtype {x.dtype.name}")
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(jnp.result_type(float))


def working_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that rows are computed in: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """`x` in its working dtype."""
    return x.astype(working_dtype(x.dtype))


def as_index(name: str, value: Any) -> int:
    """`value` as a Python int, which can be static."""
    try:
        return operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"`{name}` must be an int, got {kind}") from None


def as_axis(axis: int | Sequence[int]) -> int | tuple[int, ...]:
    """An axis or several as what can be static."""
    if isinstance(axis, Sequence):
        return tuple(as_index("axis", a) for a in axis)
    return as_index("axis", axis)


def canonical_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` as a tuple of distinct axes in 0 … ndim − 1; None is all of them."""
    if axis is None:
        return tuple(range(ndim))
    if not isinstance(axis, Sequence):
        try:
            axis = (axis.__index__(),)
        except AttributeError:
            kind = type(axis).__name__
            raise TypeError(f"`axis` must be an int, a tuple of ints or None, got {kind}") from None
    if any(not -ndim <= a < ndim for a in axis):
        raise ValueError(f"`axis` must lie in [{-ndim}, {ndim}) for {ndim} dimensions, got {axis}")
    axes = tuple(a % ndim for a in axis)
    if len(set(axes)) < len(axes):
        raise ValueError(f"`axis` must not name an axis twice, got {axis}")
    return axes


def broadcast_where(
    where: ArrayLike | None, shape: tuple[int, ...], advice: str = ""
) -> jax.Array | None:
    """`where` as a boolean array of `shape`; None stays None."""
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"`where` must be boolean, got dtype {where.dtype.name}")
    try:
        return jnp.broadcast_to(where, shape)
    except ValueError:
        message = f"`where` must broadcast to shape {shape}, got {where.shape}{advice}"
        raise ValueError(message) from None


def same_shape(name: str, x: jax.Array, other_name: str, other: jax.Array) -> None:
    """Raises unless the two arrays have one shape."""
    if x.shape != other.shape:
        raise ValueError(
            f"`{name}` must have the shape of `{other_name}`, {other.shape}, got {x.shape}"
        )

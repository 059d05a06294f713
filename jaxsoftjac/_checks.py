"""Argument checks that tracing can see: dtype, axis and shape; never values."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

Axis = int | Sequence[int] | None
AxisName = str | tuple[str, ...]


def as_array(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array of any dtype that JAX has."""
    if isinstance(x, jax.Array):
        return x
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        kind = type(x).__name__
        raise TypeError(f"`{name}` must be an array of numbers, got {kind}") from error


def as_real(name: str, x: ArrayLike) -> jax.Array:
    """`x` as a floating array; integers are cast before anything is subtracted from them."""
    x = as_array(name, x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if not jnp.issubdtype(x.dtype, jnp.integer):
        advice = ": cast it by .astype(float)" if x.dtype == jnp.bool_ else ""
        raise TypeError(f"`{name}` must be real, got dtype {x.dtype.name}{advice}")
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
        raise TypeError(f"`{name}` must be an int, got {type(value).__name__}") from None


def known_size(size: Any, otherwise: int) -> int:
    """A length as an int; `otherwise` stands for one that `jax.export` has as a symbol."""
    return size if isinstance(size, int) else otherwise


def as_count(name: str, value: Any, least: int) -> int:
    """`value` as a Python int that is at least so large."""
    count = as_index(name, value)
    if count < least:
        raise ValueError(f"`{name}` must be ≥ {least}, got {count}")
    return count


def checked_number(
    name: str, value: ArrayLike, expected: str, holds: Callable[[float], bool]
) -> float | jax.Array:
    """A Python float of a Python or NumPy number; what is a JAX array stays one."""
    if np.shape(value) != ():
        raise ValueError(f"`{name}` must be a number, got shape {np.shape(value)}")
    if isinstance(value, Tracer):
        return as_real(name, value)
    known = np.asarray(value)
    if known.dtype.kind not in "iuf" and known.dtype != jnp.bfloat16:
        raise TypeError(f"`{name}` must be a real number, got {type(value).__name__}")
    if not holds(float(known)):
        raise ValueError(f"`{name}` must {expected}, got {value}")
    return as_real(name, value) if isinstance(value, jax.Array) else float(known)


def checked_key(name: str, key: ArrayLike) -> jax.Array:
    """A single random key, typed or raw."""
    key = as_array(name, key)
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_typed and key.dtype != jnp.uint32:
        raise TypeError(f"`{name}` must be a random key, got dtype {key.dtype}")
    if key.ndim != (0 if is_typed else 1):
        raise ValueError(f"`{name}` must be a single random key, got shape {key.shape}")
    return key


def check_function(name: str, value: Any) -> None:
    """Raises unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"`{name}` must be a function, got {type(value).__name__}")


def check_axis_name(value: AxisName | None, option: str = "axis_name") -> None:
    """Raises unless it is the name of a mapped axis, or of several."""
    names = value if isinstance(value, tuple) else (value,)
    if value is not None and not all(isinstance(name, str) for name in names):
        raise TypeError(f"`{option}` must name one mapped axis or several, got {value!r}")


def as_axis(axis: int | Sequence[int]) -> int | tuple[int, ...]:
    """An axis or several as what can be static."""
    try:
        if isinstance(axis, Sequence):
            return tuple(operator.index(a) for a in axis)
        return operator.index(axis)
    except TypeError:
        got = repr(axis) if isinstance(axis, Sequence) else type(axis).__name__
        message = f"`axis` must be an int, a tuple of ints or None, got {got}"
        raise TypeError(message) from None


def canonical_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` as a tuple of distinct axes in 0 … ndim − 1; None is all of them."""
    if axis is None:
        return tuple(range(ndim))
    axis = as_axis(axis)
    axis = axis if isinstance(axis, tuple) else (axis,)
    if axis and not ndim:
        raise ValueError(f"`axis` must be None or () for a number, which has no axis, got {axis}")
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
    where = as_array("where", where)
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

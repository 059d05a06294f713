"""softmax, log_softmax and logsumexp, differentiable in every mode and to every order.

Drop-ins for those of jax.nn. The rule of each is an O(K) product, linear in the tangents, so that
jvp, vjp and all nestings work; that of softmax is marked with `jax.custom_vjp` as well.

>>> import jax, jax.numpy as jnp
>>> print(jax.jacfwd(softmax)(jnp.array([0.0, 0.0])))
[[ 0.25 -0.25]
 [-0.25  0.25]]
"""

import math
from collections.abc import Callable
from typing import Literal, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import Axis, as_array, as_real, broadcast_where, canonical_axes, wide
from jaxsoftjac._row_functions import log_softmax_rows, logsumexp_rows, softmax_rows
from jaxsoftjac._rows import ClassAxes, nan_unless
from jaxsoftjac._rules import compiled
from jaxsoftjac._weighted_sums import weighted_logsumexp

__all__ = ["softmax", "log_softmax", "logsumexp"]


def softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Softmax along an axis: σᵢ = exp(xᵢ) / Σⱼ exp(xⱼ).

    Derivatives are O(K) products with J = diag(σ) − σσᵀ (see `softmax_vjp`). The VJP keeps one
    array of the logits' size: σ, or for bfloat16 and float16 the logits themselves, from which the
    row is computed again in float32.

    Args:
        x: logits, any shape; integers are cast to float first.
        axis: axis or axes of the classes; None for all.
        where: boolean, broadcast to `x`; excluded classes get 0, and their logits, NaN included,
            are ignored. A row without classes is 0 with gradient 0.

    Returns:
        Array of the shape of `x`. As in jax.nn, a row that is all −∞ or holds NaN or +∞ is NaN;
        the gradient of an all −∞ row is 0.

    Raises:
        TypeError: `x` is boolean or complex, or `where` is not boolean.
        ValueError: `axis` is out of range or named twice, or `where` does not broadcast to `x`.

    >>> print(softmax(jnp.array([0.0, 0.0, jnp.nan]), where=jnp.array([True, True, False])))
    [0.5 0.5 0. ]
    """
    x, where, classes = _checked(x, axis, where)
    return _masked(x, where, function=softmax_rows, classes=classes, fill=0.0)


def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Log-softmax along an axis: log σᵢ = (xᵢ − x_max) − log1p(Σ_{j≠max} exp(xⱼ − x_max)).

    Both terms are ≤ 0, so that every entry keeps its relative precision, also log σ ≈ −e⁻⁴⁰ of a
    class that is 40 nats ahead. Excluded classes get −∞ with derivative 0.

    Cost, arguments and errors as for `softmax`.

    >>> print(f"{log_softmax(jnp.array([40.0, 0.0]))[0]:.4e}")      # 0 in jax.nn
    -4.2484e-18
    """
    x, where, classes = _checked(x, axis, where)
    return _masked(x, where, function=log_softmax_rows, classes=classes, fill=-math.inf)


@overload
def logsumexp(
    x: ArrayLike | None = None,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: Literal[False] = False,
    where: ArrayLike | None = None,
    *,
    a: ArrayLike | None = None,
) -> jax.Array: ...
@overload
def logsumexp(
    x: ArrayLike | None = None,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    *,
    return_sign: Literal[True],
    where: ArrayLike | None = None,
    a: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]: ...
@overload
def logsumexp(
    x: ArrayLike | None,
    axis: Axis,
    b: ArrayLike | None,
    keepdims: bool,
    return_sign: Literal[True],
    where: ArrayLike | None = None,
    *,
    a: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]: ...
def logsumexp(
    x: ArrayLike | None = None,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
    *,
    a: ArrayLike | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Log of a sum of exponentials: log Σⱼ bⱼ exp(xⱼ), as jax.nn.logsumexp.

    Without `b` its gradient is σ and its Hessian J, structured to every order. With `b`, which may
    be 0 or negative, the gradient is b·r by x and r by b, r = exp(x)/Σ b exp(x).

    Args:
        x: array of any shape; integers are cast to float first.
        axis: axis or axes to sum over; None for all.
        b: real factors of the exponentials; `x` and `b` are broadcast against each other.
        keepdims: keep the summed axes with length 1.
        return_sign: also return the sign of the sum, and the log of its absolute value.
        where: boolean, broadcast to `x`: the terms to include.
        a: what jax.nn.logsumexp calls `x`.

    Returns:
        The log of the sum, −∞ for an empty one, NaN for a negative one; with `return_sign`, a pair
        with the sign. A row with +∞ is +∞, with all of the gradient there.

    Raises:
        TypeError: `x` or `b` is boolean or complex, `where` is not boolean, or not one of `x` and
            `a` is given.
        ValueError: `axis` is out of range or named twice, or shapes do not broadcast.

    >>> print(f"{logsumexp(jnp.array([0.0, 0.0])):.4f}")
    0.6931
    """
    given = [array for array in (x, a) if array is not None]
    if len(given) != 1:
        raise TypeError("`logsumexp` takes one array, as `x` or as `a`")
    x = as_real("x", given[0])
    if b is not None:
        is_weak = type(b) is float  # of no dtype of its own, as integers
        b = as_array("b", b)
        is_weak = is_weak or jnp.issubdtype(b.dtype, jnp.integer)
        x, b = _broadcast_together(x, b.astype(x.dtype) if is_weak else as_real("b", b))
    x, where, classes = _checked(x, axis, where)
    value, sign = _logsumexp(x, b, where, classes=classes, keepdims=bool(keepdims))
    if return_sign:
        return value, sign
    return value if b is None else value * nan_unless(~(sign < 0), value.dtype)


@compiled("classes", "keepdims")
def _logsumexp(
    x: jax.Array,
    b: jax.Array | None,
    where: jax.Array | None,
    *,
    classes: ClassAxes,
    keepdims: bool,
) -> tuple[jax.Array, jax.Array]:
    where = broadcast_where(where, x.shape)
    if where is not None:
        x = jnp.where(where, x, -jnp.inf)
    if b is None:
        value = logsumexp_rows(x, classes)
        sign = lax.stop_gradient(
            jnp.where(jnp.isnan(value), value, (value != -jnp.inf).astype(x.dtype))
        )
    else:
        b = b if where is None else jnp.where(where, b, 0)
        value, sign = weighted_logsumexp(wide(x), wide(b), classes)
        value, sign = value.astype(x.dtype), sign.astype(x.dtype)
    if not keepdims:
        value, sign = lax.squeeze(value, classes.axes), lax.squeeze(sign, classes.axes)
    return value, sign


def _broadcast_together(x: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = jnp.promote_types(x.dtype, b.dtype)
    try:
        shape = jnp.broadcast_shapes(x.shape, b.shape)
    except ValueError:
        raise ValueError(f"`b` must broadcast against `x` {x.shape}, got {b.shape}") from None
    return jnp.broadcast_to(x.astype(dtype), shape), jnp.broadcast_to(b.astype(dtype), shape)


def _checked(
    x: ArrayLike, axis: Axis, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array | None, ClassAxes]:
    x = as_real("x", x)
    where = None if where is None else as_array("where", where)
    return x, where, ClassAxes(canonical_axes(axis, x.ndim))


@compiled("function", "classes", "fill")
def _masked(
    x: jax.Array,
    where: jax.Array | None,
    *,
    function: Callable[[jax.Array, ClassAxes], jax.Array],
    classes: ClassAxes,
    fill: float,
) -> jax.Array:
    """`function` of the kept classes: excluded logits are −∞ before it and `fill` after it."""
    where = broadcast_where(where, x.shape)
    if where is None:
        spoilt = nan_unless(jnp.isfinite(classes.max(x)), x.dtype)  # as in jax.nn
        return function(x, classes) + 0 * spoilt
    x = jnp.where(where, x, -jnp.inf)
    spoilt = nan_unless(classes.max(x) != jnp.inf, x.dtype)
    return jnp.where(where, function(x, classes) + 0 * spoilt, fill)

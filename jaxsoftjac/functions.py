"""softmax, log_softmax and logsumexp, differentiable in every mode and to every order.

Drop-ins for those of jax.nn. Each is a `jax.custom_vjp` with the O(K) product of `products` behind
a `jax.custom_jvp` that pushes forward by the same product, so that jvp, vjp and all nestings work.

>>> import jax, jax.numpy as jnp
>>> print(jax.jacfwd(softmax)(jnp.array([0.0, 0.0])))
[[ 0.25 -0.25]
 [-0.25  0.25]]
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import Axis, as_real, broadcast_where, canonical_axes, working_dtype
from jaxsoftjac.products import Axes, centre, guarded, row_sum, softmax_product


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
    """
    return _masked(_softmax, x, axis, where, fill=0)


def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Log-softmax along an axis: log σᵢ = (xᵢ − x_max) − log1p(Σ_{j≠max} exp(xⱼ − x_max)).

    Both terms are ≤ 0, so that every entry keeps its relative precision, also log σ ≈ −e⁻⁴⁰ of a
    class that is 40 nats ahead. Excluded classes get −∞ with derivative 0.

    Cost, arguments and errors as for `softmax`.
    """
    return _masked(_log_softmax, x, axis, where, fill=-jnp.inf)


def logsumexp(
    x: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Log of a sum of exponentials: log Σⱼ bⱼ exp(xⱼ), as jax.nn.logsumexp.

    Without `b` its gradient is σ and its Hessian J, structured to every order; with `b` the value
    and its derivatives are those of jax.nn.logsumexp.

    Args:
        x: array of any shape; integers are cast to float first.
        axis: axis or axes to sum over; None for all.
        b: real factors of the exponentials, broadcast against `x`.
        keepdims: keep the summed axes with length 1.
        return_sign: also return the sign of the sum, and the log of its absolute value.
        where: boolean, broadcast to `x`: the terms to include.

    Returns:
        The log of the sum, −∞ for an empty one; with `return_sign`, a pair with the sign.

    Raises:
        TypeError: `x` or `b` is boolean or complex, or `where` is not boolean.
        ValueError: `axis` is out of range or named twice, or `where` does not broadcast to `x`.
    """
    x = as_real("x", x)
    axes = canonical_axes(axis, x.ndim)
    where = broadcast_where(where, x.shape)
    if b is not None:
        b = as_real("b", b)
        return jax.nn.logsumexp(x, axes, b, keepdims, return_sign, where)
    if where is not None:
        x = jnp.where(where, x, -jnp.inf)
    value = _logsumexp(x, axes)
    value = value if keepdims else lax.squeeze(value, axes)
    if not return_sign:
        return value
    positive = jnp.where(value == -jnp.inf, 0.0, 1.0).astype(value.dtype)
    return value, jnp.where(jnp.isnan(value), lax.stop_gradient(value), positive)


def _masked(
    function: Callable[[jax.Array, Axes], jax.Array],
    x: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    fill: float,
) -> jax.Array:
    """`function` of the kept classes: excluded logits are −∞ before it and `fill` after it."""
    x = as_real("x", x)
    axes = canonical_axes(axis, x.ndim)
    where = broadcast_where(where, x.shape)
    if where is None:
        return function(x, axes)
    return jnp.where(where, function(jnp.where(where, x, -jnp.inf), axes), fill)


# The three functions on checked input. Each rule's value comes from the function itself, not from
# its formula: otherwise the second derivative would see the formula and lose the structure. The
# linear programs run under `jax.checkpoint`, so that a linearisation keeps one array of the logits'
# size and nothing computed from it.

_linear = partial(jax.checkpoint, prevent_cse=False, static_argnums=(3,))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(x: jax.Array, axes: Axes) -> jax.Array:
    return _softmax_reverse(x, axes)


@_softmax.defjvp
def _(axes, primals, tangents):
    sigma, pullback = jax.vjp(lambda x: _softmax_reverse(x, axes), *primals)
    return sigma, *pullback(*tangents)  # J = Jᵀ: the pullback is the pushforward


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax_reverse(x: jax.Array, axes: Axes) -> jax.Array:
    row = _wide(x)
    unnormalised = jnp.exp(row - _row_max(row, axes))
    return (unnormalised / row_sum(unnormalised, axes)).astype(x.dtype)


def _softmax_forward(x, axes):
    sigma = _softmax(x, axes)
    return sigma, (_unrounded(sigma, x), _is_alive(x, axes))


def _softmax_backward(axes, residuals, g):
    return (_softmax_pullback(g, *residuals, axes),)


_softmax_reverse.defvjp(_softmax_forward, _softmax_backward)


@_linear
def _softmax_pullback(g, kept, alive, axes):
    sigma = kept if _is_wide(kept) else _softmax(_wide(kept), axes)
    product = softmax_product(jnp.where(alive, _wide(g), 0), sigma, axes)
    return jnp.where(alive, product, 0).astype(g.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _log_softmax(x: jax.Array, axes: Axes) -> jax.Array:
    row = _wide(x)
    depth = row - _row_max(row, axes)
    return (depth - jnp.log1p(_rest(depth, axes))).astype(x.dtype)


@_log_softmax.defjvp
def _(axes, primals, tangents):
    (x,), (tangent,) = primals, tangents
    log_sigma = _log_softmax(x, axes)
    kept, alive = _unrounded(log_sigma, x), _is_alive(x, axes)
    return log_sigma, _log_softmax_pushforward(tangent, kept, alive, axes)


@_linear
def _log_softmax_pushforward(tangent, kept, alive, axes):
    log_sigma = kept if _is_wide(kept) else _log_softmax(_wide(kept), axes)
    moves = alive & (log_sigma != -jnp.inf)
    centred = centre(jnp.where(moves, _wide(tangent), 0), jnp.exp(log_sigma), axes)
    return jnp.where(moves, centred, 0).astype(tangent.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _logsumexp(x: jax.Array, axes: Axes) -> jax.Array:
    row = _wide(x)
    top = _row_max(row, axes)
    finite_top = jnp.where(jnp.isfinite(top), top, 0)
    value = finite_top + jnp.log1p(_rest(row - finite_top, axes))
    return jnp.where(jnp.isfinite(top), value, top).astype(x.dtype)


@_logsumexp.defjvp
def _(axes, primals, tangents):
    (x,), (tangent,) = primals, tangents
    return _logsumexp(x, axes), _logsumexp_pushforward(tangent, x, _is_alive(x, axes), axes)


@_linear
def _logsumexp_pushforward(tangent, x, alive, axes):
    sigma = jnp.where(alive, _softmax(_wide(x), axes), 0)
    return row_sum(sigma * guarded(_wide(tangent), sigma), axes).astype(tangent.dtype)


def _row_max(x: jax.Array, axes: Axes) -> jax.Array:
    return lax.stop_gradient(jnp.max(x, axis=axes, keepdims=True, initial=-jnp.inf))


def _rest(depth: jax.Array, axes: Axes) -> jax.Array:
    """Σ exp(depth) without one top entry, for depth ≤ 0 with top 0: 1 + rest is the whole sum.

    The top entries are those whose exponential rounds to 1; arithmetic finds them, because a
    compare would leave the compilers' vectorised reductions.
    """
    unnormalised = jnp.exp(depth)
    scale = 2 / jnp.finfo(depth.dtype).eps
    at_top = jnp.maximum(unnormalised * scale - (scale - 1), 0)
    return row_sum(unnormalised - at_top, axes) + (row_sum(at_top, axes) - 1)


def _is_alive(x: jax.Array, axes: Axes) -> jax.Array:
    """Which rows are not all −∞: those have derivative 0 (a row with NaN keeps it)."""
    return _row_max(x, axes) != -jnp.inf


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(working_dtype(x.dtype))


def _is_wide(x: jax.Array) -> bool:
    return x.dtype == working_dtype(x.dtype)


def _unrounded(result: jax.Array, x: jax.Array) -> jax.Array:
    """What a derivative keeps: the result, or the logits where the result was rounded."""
    return result if _is_wide(x) else x

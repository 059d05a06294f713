"""sparsemax and entmax: their arguments, and their rule of differentiation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import (
    Axis,
    as_array,
    as_real,
    broadcast_where,
    canonical_axes,
    wide,
    working_dtype,
)
from jaxsoftjac._row_functions import softmax_rows
from jaxsoftjac._rows import ClassAxes, largest, nan_unless
from jaxsoftjac._rules import compiled, recomputed
from jaxsoftjac.products import softmax_product
from jaxsoftjac.sparse._powers import Beta, deformed_log_slope, weights
from jaxsoftjac.sparse._threshold import probabilities

LOWEST, HIGHEST = 1, 4  # of α


def sparsemax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Euclidean projection of each row on the simplex: p = [x − τ]₊, Σp = 1, with exact zeros.

    It is `entmax` with α = 2: see there for derivatives, cost, arguments and errors. On the support
    S its Jacobian is diag(1_S) − 1_S1_Sᵀ/|S|. Reference: Martins and Astudillo 2016.

    >>> print(sparsemax(jnp.array([1.0, 0.5, -1.0])))
    [0.75 0.25 0.  ]
    """
    return entmax(x, 2.0, axis, where)


def entmax(
    x: ArrayLike, alpha: ArrayLike = 1.5, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    """α-entmax along an axis: p = [(α − 1)x − τ]₊^{1/(α−1)}, τ such that Σp = 1.

    It maximises ⟨p, x⟩ plus the Tsallis entropy Σ(p − p^α)/(α(α − 1)): softmax at α = 1, sparsemax
    at α = 2. Classes below the threshold get exactly 0, and derivative 0; at the edge of the
    support a class has the derivative of the side that its value took. The Jacobian is
    diag(s) − ssᵀ/Σs, s = p^{2−α}: Σs times that of softmax at s/Σs.

    Cost: O(K) for each step of a root finder, of which a few are needed, and more where α > 2 or is
    an array; O(K) for each product with the Jacobian. One array of the logits' size is kept for the
    derivatives.

    Args:
        x: logits, any shape; integers are cast to float first.
        alpha: α in [1, 4], a number, or an array that broadcasts to the shape of `x` without
            `axis`. An array may be traced and has a derivative; entries out of range give NaN.
            A number is part of the program, as for `cross_entropy`: a schedule gives an array.
        axis: axis or axes of the classes; None for all.
        where: boolean, broadcast to `x`; excluded classes get 0, and their logits, NaN included,
            are ignored. A row without classes is 0 with gradient 0.

    Returns:
        Array of the shape of `x`; rows that are all −∞ or hold NaN or +∞ are NaN, as in `softmax`.

    Raises:
        TypeError: `x` or `alpha` is boolean or complex, or `where` is not boolean.
        ValueError: `alpha` is out of range, `axis` is out of range or named twice, or `where` or
            `alpha` does not broadcast.

    Reference: Peters, Niculae and Martins 2019; for the derivative by α, Correia, Niculae and
    Martins 2019.

    >>> print(jnp.round(entmax(jnp.array([1.0, 0.0, -3.0])), 4))
    [0.8307 0.1693 0.    ]
    """
    x = as_real("x", x)
    classes = ClassAxes(canonical_axes(axis, x.ndim))
    known, traced = parts_of(checked_alpha(alpha, x, classes))
    where = None if where is None else as_array("where", where)
    return _entmax(x, traced, where, alpha=known, classes=classes)


@compiled("alpha", "classes")
def _entmax(
    x: jax.Array,
    traced: jax.Array | None,
    where: jax.Array | None,
    *,
    alpha: float | None,
    classes: ClassAxes,
) -> jax.Array:
    where = broadcast_where(where, x.shape)
    if where is not None:
        x = jnp.where(where, x, -jnp.inf)
    top = largest(x, classes)
    p = family_rows(x, whole_of(alpha, traced), classes)
    if traced is not None:
        p = p + 0 * lax.stop_gradient(traced).astype(x.dtype)  # NaN out of range
    if where is None:
        return p + 0 * nan_unless(jnp.isfinite(top), x.dtype)
    return jnp.where(where, p + 0 * nan_unless(top < jnp.inf, x.dtype), 0)


def alpha_in_range(alpha: ArrayLike) -> float | jax.Array:
    """α as a Python number, or as an array, whose values are only checked if they are NumPy's."""
    is_known = isinstance(alpha, int | float | np.ndarray | np.generic)
    array = as_real("alpha", alpha)
    if is_known and not np.all((np.asarray(alpha) >= LOWEST) & (np.asarray(alpha) <= HIGHEST)):
        raise ValueError(f"`alpha` must lie in [{LOWEST}, {HIGHEST}], got {alpha}")
    return float(np.asarray(alpha)) if is_known and array.ndim == 0 else array


def checked_alpha(alpha: ArrayLike, x: jax.Array, classes: ClassAxes) -> float | jax.Array:
    """α as a Python number, or as an array with class axes of length 1 and NaN out of range."""
    array = alpha_in_range(alpha)
    if not isinstance(array, jax.Array):
        return array
    axes = tuple(a % x.ndim for a in classes.axes)
    rows = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    try:
        array = jnp.broadcast_to(array, rows)
    except ValueError:
        raise ValueError(f"`alpha` must broadcast to {rows}, got {array.shape}") from None
    array = lax.expand_dims(array.astype(working_dtype(x.dtype)), axes)
    return array * nan_unless((array >= LOWEST) & (array <= HIGHEST), array.dtype)


def parts_of(alpha: float | jax.Array) -> tuple[float | None, jax.Array | None]:
    """α as what can be static and what can be traced, one of them None."""
    return (None, alpha) if isinstance(alpha, jax.Array) else (alpha, None)


def whole_of(known: float | None, traced: jax.Array | None) -> Any:
    """α of its two parts."""
    return traced if known is None else known


def family_rows(x: jax.Array, alpha: float | jax.Array | None, classes: ClassAxes) -> jax.Array:
    """`entmax` of checked input, α as `checked_alpha` gives it."""
    if not isinstance(alpha, float):
        return _learned_rows(x, alpha, classes)
    return softmax_rows(x, classes) if alpha == 1 else _entmax_rows(x, alpha, classes)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _entmax_rows(x: jax.Array, alpha: float, classes: ClassAxes) -> jax.Array:
    return probabilities(wide(x), alpha - 1, classes).astype(x.dtype)


@_entmax_rows.defjvp
def _entmax_jvp(
    alpha: float, classes: ClassAxes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    p = _entmax_rows(x, alpha, classes)
    kept = p if _is_wide(x) else x
    return p, _entmax_pushforward(tangent, kept, wide(classes.max(p)), alpha, classes)


@recomputed(static_argnums=(3, 4))
def _entmax_pushforward(
    tangent: jax.Array, kept: jax.Array, top: jax.Array, alpha: float, classes: ClassAxes
) -> jax.Array:
    p = kept if _is_wide(kept) else _entmax_rows(wide(kept), alpha, classes)
    known = top if _is_wide(kept) and alpha in (1.5, 2) else None
    return entmax_product(wide(tangent), p, alpha - 1, classes, known).astype(tangent.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _learned_rows(x: jax.Array, alpha: jax.Array, classes: ClassAxes) -> jax.Array:
    return probabilities(wide(x), alpha - 1, classes).astype(x.dtype)


@_learned_rows.defjvp
def _learned_jvp(
    classes: ClassAxes,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    x, alpha = primals
    p = _learned_rows(x, alpha, classes)
    return p, _learned_pushforward(tangents, p if _is_wide(x) else x, alpha, classes)


@recomputed(static_argnums=(3,))
def _learned_pushforward(
    tangents: tuple[jax.Array, jax.Array], kept: jax.Array, alpha: jax.Array, classes: ClassAxes
) -> jax.Array:
    """log_β p = x − θ on the support, so that ṗ = J(ẋ − (∂ log_β p/∂β)·α̇)."""
    tangent, alpha_tangent = tangents
    p = kept if _is_wide(kept) else _learned_rows(wide(kept), alpha, classes)
    v = wide(tangent) - deformed_log_slope(p, alpha - 1) * alpha_tangent
    return entmax_product(v, p, alpha - 1, classes).astype(tangent.dtype)


def entmax_product(
    v: jax.Array, p: jax.Array, beta: Beta, classes: ClassAxes, top: jax.Array | None = None
) -> jax.Array:
    """Jv with J = diag(s) − ssᵀ/Σs, s = p^{1−β}: Σs times a product of softmax.

    The largest s is found, unless the `top` of each row of p is given, of which β = ½ and 1 make it
    to the last bit.
    """
    s = weights(p, beta)
    total = classes.sum(s)
    inverse = 1 / jnp.where(total == 0, 1, total)
    highest = None if top is None else lax.stop_gradient(weights(top, beta) * inverse)
    return total * softmax_product(v, s * inverse, classes, highest)


def _is_wide(x: jax.Array) -> bool:
    return x.dtype == working_dtype(x.dtype)

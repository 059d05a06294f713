"""Entropy of a row and divergence of two rows of logits, exact near one-hot and near equality.

>>> import jax.numpy as jnp
>>> print(f"{entropy(jnp.array([0.0, 0.0], jnp.float32)):.4f}")      # log 2
0.6931
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_index, as_real, known_size, wide
from jaxsoftjac._pivots import unless_excluded, where_positive
from jaxsoftjac._row_functions import log1p_rest, of_top, pivoted, softmax_rows, top_probability
from jaxsoftjac._rows import (
    LOWEST,
    ClassAxes,
    class_logits,
    depth,
    exp_depth,
    half_depth,
    nan_unless,
    statistics,
    statistics_and_sums,
    top_of,
)
from jaxsoftjac._rules import compiled, recomputed
from jaxsoftjac.products import log_softmax_product, softmax_product


def entropy(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    """Entropy of the softmax of each row, in nats: H = −Σ σ log σ.

    A sum of terms ≥ 0, exact near one-hot; its gradient is −J log σ. Excluded classes and −∞
    logits contribute 0, with gradient 0.

    Cost: O(K) per row, in every mode and order.

    Args:
        logits: real array with the classes on `axis`.
        axis: the class axis.
        where: boolean, broadcast to `logits`: the classes to keep.

    Returns:
        Array of the shape of `logits` without `axis`.

    Raises:
        TypeError: `logits` is boolean or complex, or `where` is not boolean.
        ValueError: `axis` is out of range, or `where` does not broadcast to `logits`.

    >>> print(f"{jnp.exp(entropy(jnp.zeros(5))):.4f} classes")
    5.0000 classes
    """
    where = None if where is None else as_array("where", where)
    return _checked_entropy(as_real("logits", logits), where, axis=as_index("axis", axis))


@compiled("axis")
def _checked_entropy(logits: jax.Array, where: jax.Array | None, *, axis: int) -> jax.Array:
    x, classes = class_logits("logits", logits, axis, where)
    spoilt = nan_unless(classes.max(x) != jnp.inf, x.dtype)
    return lax.squeeze(_entropy(x, classes) + 0 * spoilt, classes.axes)


def kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """KL divergence of the model from the target, KL(p‖q) = Σ p (log p − log q), in nats.

    p = softmax(target_logits), q = softmax(logits); differentiable in both. Computed as
    log1p Σ p·(e^d − 1 − d), d the difference of the logits less its mean under p, whose terms are
    ≥ 0: nearly equal rows keep their digits.

    Cost: O(K) per row, in every mode and order.

    Args:
        logits: real array with the classes on `axis`: the model.
        target_logits: the target, of the same shape.
        axis: the class axis.
        where: boolean, broadcast to `logits`: the classes to keep.

    Returns:
        Array of the shape of `logits` without `axis`; +∞ where the model excludes a class that the
        target has, with a finite gradient; 0 with gradient 0 where either has no class at all.

    Raises:
        TypeError: logits are boolean or complex, or `where` is not boolean.
        ValueError: the shapes differ, `axis` is out of range, or `where` does not broadcast.

    >>> x = jnp.array([1.0, 0.0], jnp.float32)
    >>> print(f"{kl_divergence(x, x + jnp.array([1e-3, 0], jnp.float32)):.2e}")     # σ₁σ₂·1e-6/2
    9.83e-08
    """
    logits, target_logits = as_real("logits", logits), as_real("target_logits", target_logits)
    where = None if where is None else as_array("where", where)
    return _checked_kl(logits, target_logits, where, axis=as_index("axis", axis))


@compiled("axis")
def _checked_kl(
    logits: jax.Array, target_logits: jax.Array, where: jax.Array | None, *, axis: int
) -> jax.Array:
    x, classes = class_logits("logits", logits, axis, where)
    y, _ = class_logits("target_logits", target_logits, axis, where)
    if x.shape != y.shape:
        raise ValueError(
            f"`target_logits` must have the shape of `logits`, {x.shape}, got {y.shape}"
        )
    dtype = jnp.promote_types(x.dtype, y.dtype)
    x, y = x.astype(dtype), y.astype(dtype)
    spoilt = nan_unless(jnp.maximum(classes.max(x), classes.max(y)) < jnp.inf, dtype)
    return lax.squeeze(_kl(x, y, classes).astype(dtype) + 0 * spoilt, classes.axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entropy(x: jax.Array, classes: ClassAxes) -> jax.Array:
    row = wide(x)
    down = _clipped_depth(row, classes)
    (_, rest), (mean,) = statistics_and_sums(
        row, classes, exp_depth(row, top_of(row, classes)) * down
    )
    return (log1p_rest(rest) - mean * of_top(rest)).astype(x.dtype)


@_entropy.defjvp
def _entropy_jvp(
    classes: ClassAxes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return _entropy(x, classes), _entropy_pushforward(tangent, x, classes)


@recomputed(static_argnums=(2,))
def _entropy_pushforward(tangent: jax.Array, x: jax.Array, classes: ClassAxes) -> jax.Array:
    row = wide(x)
    slopes, sigma = _entropy_slopes(row, classes), softmax_rows(row, classes)
    return classes.sum(slopes * where_positive(wide(tangent), sigma)).astype(tangent.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entropy_slopes(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """−J log σ = −J d, d = x − top: J does not see a constant."""
    sigma, top = softmax_rows(x, classes), lax.stop_gradient(top_probability(x, classes))
    return -softmax_product(_clipped_depth(x, classes), sigma, classes, top)


@_entropy_slopes.defjvp
def _entropy_slopes_jvp(
    classes: ClassAxes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """−J((1 + d − d̄)⊙(ẋ − x̄)): d moves by ẋ, and J by its second derivative."""
    (x,), (tangent,) = primals, tangents
    known = pivoted(x, statistics(x, classes))
    sigma, d = softmax_rows(x, classes), _clipped_depth(x, classes)
    centred = log_softmax_product(tangent, sigma, known, classes)
    along = (1 + d - classes.sum(sigma * d)) * centred
    return _entropy_slopes(x, classes), -softmax_product(along, sigma, classes, known.of_top)


def _clipped_depth(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """The depth, but where the exponential is 0 anyway, which may be −∞."""
    return jnp.maximum(depth(x, top_of(x, classes)), LOWEST)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl(x: jax.Array, y: jax.Array, classes: ClassAxes) -> jax.Array:
    compared = _compared(wide(x), wide(y), classes)
    value = compared.value + jnp.where(compared.is_missing, jnp.inf, 0)  # NaN stays
    return jnp.where(compared.is_defined, value, 0)


@partial(_kl.defjvp, symbolic_zeros=True)
def _kl_jvp(
    classes: ClassAxes, primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    moves = tuple(None if isinstance(t, SymbolicZero) else t for t in tangents)
    return _kl(*primals, classes), _kl_pushforward(moves, *primals, classes)


@recomputed(static_argnums=(3,))
def _kl_pushforward(
    tangents: tuple[jax.Array | None, jax.Array | None],
    x: jax.Array,
    y: jax.Array,
    classes: ClassAxes,
) -> jax.Array:
    x, y = wide(x), unless_excluded(wide(y))
    x_tangent, y_tangent = tangents
    compared, pushed = _compared(x, y, classes), jnp.zeros_like(x)
    p = softmax_rows(y, classes)
    if x_tangent is not None:
        q = softmax_rows(x, classes)
        moves = jnp.where(x == -jnp.inf, 0, where_positive(wide(x_tangent), p, q))
        pushed = _less(q, p, compared.log_ratio) * moves
    if y_tangent is not None:
        top = lax.stop_gradient(top_probability(y, classes))
        product = softmax_product(wide(y_tangent), p, classes, top)
        pushed = pushed - product * jnp.where(x == -jnp.inf, 0, compared.centred)
    return jnp.where(compared.is_defined, classes.sum(pushed), 0)


def _less(q: jax.Array, p: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """The difference q − p, with its own derivatives; p·(e^Δ − 1) where that is exact."""
    near = (jnp.abs(log_ratio) < 0.5) & (p != 0) & (q != 0)
    delta = jnp.where(near, log_ratio, 0)
    exact = jnp.where(near, p * (delta + _excess_of_exp(delta)), q - p)
    return lax.stop_gradient(exact) + ((q - p) - lax.stop_gradient(q - p))


class _Compared(NamedTuple):
    """Of two rows of logits, the model's and the target's."""

    value: jax.Array  # the divergence, without classes that one of the rows excludes
    centred: jax.Array  # d = x − y less its mean under p, finite where one excludes the class
    log_ratio: jax.Array  # Δ = log q − log p
    is_missing: jax.Array  # whether the model excludes a class that the target has
    is_defined: jax.Array  # whether both rows have classes


def _compared(x: jax.Array, y: jax.Array, classes: ClassAxes) -> _Compared:
    """KL = log Σ p·e^d, for any d = x − y + a constant of mean 0 under p: log1p Σ p·(e^d − 1 − d).

    All terms are ≥ 0. Where d is not small, p·e^d is taken from x, which the target may not have.
    Rows that are far apart have no need of it: there KL is the mean of log p − log q.
    """
    half = _half_difference(x, y, top_of(x, classes), top_of(y, classes))
    e = exp_depth(y, top_of(y, classes))
    both = jnp.where(x == -jnp.inf, 0, e)
    x_top, x_rest = statistics(x, classes)
    K = known_size(x.shape[classes.axes[0]], 2**31 - 1)
    width = 2.0 ** K.bit_length()  # the sum of what is large could overflow
    y_rest = statistics(y, classes).rest
    mean, missing = classes.sums(both * (half / width), e - both, at_once=4)
    x_log, y_log = log1p_rest(x_rest), log1p_rest(y_rest)
    p, far_mean = both * of_top(y_rest), 2 * (width * (mean * of_top(y_rest)))
    lowest = float(jnp.finfo(x.dtype).min)  # far_mean is −∞ where KL is beyond the largest number
    apart, mean = jnp.maximum(2 * half, lowest), jnp.maximum(far_mean, lowest)
    d, is_missing = apart - mean, missing > 0
    is_small = jnp.abs(d) < 0.5
    mass = jnp.exp(jnp.minimum(depth(x, x_top) - (mean + y_log), _HIGHEST))
    terms = jnp.where(is_small, p * _excess_of_exp(jnp.where(is_small, d, 0)), mass - p * (1 + d))
    excess = classes.sum(terms)
    is_near = jnp.abs(excess) < 1  # far below 0 where `_HIGHEST` has cut an exponential
    shift = x_log - y_log
    value = jnp.where(is_near, jnp.log1p(jnp.minimum(excess, 1)), shift - far_mean)
    # Whichever is rounded less; without a class that the target has, the sum is not that of all.
    is_shift_exact = is_missing | (x_log + y_log < jnp.abs(d) + value)
    by_value = d - jnp.where(is_shift_exact, 0, value)
    log_ratio = jnp.where(is_shift_exact, apart - shift, by_value)
    return _Compared(value, d, log_ratio, is_missing, ~((x_rest < 0) | (y_rest < 0)))


def _half_difference(x: jax.Array, y: jax.Array, x_top: jax.Array, y_top: jax.Array) -> jax.Array:
    """Half of (x − x_top) − (y − y_top), with all digits of rows that are equal but for a shift.

    There it is x − y less the same of the tops, both with what their rounding lost. The whole of it
    may be beyond the largest number. Where the target has no weight, nothing depends on it.
    """
    lowest = float(jnp.finfo(x.dtype).min)
    half = half_depth(jnp.maximum(x, lowest), x_top) - 0.5 * jnp.maximum(depth(y, y_top), LOWEST)
    x, y, x_top, y_top = (jnp.clip(a, -_LARGE, _LARGE) for a in (x, y, x_top, y_top))
    (difference, lost), (shift, shift_lost) = _two_difference(x, y), _two_difference(x_top, y_top)
    exact = (difference - shift) + (lost - shift_lost)
    return jnp.where(jnp.abs(half) < 0.5, 0.5 * exact, half)


def _two_difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference as rounded, and exactly what the rounding lost (Møller and Knuth)."""
    rounded = a - b
    virtual = rounded - a
    return rounded, (a - (rounded - virtual)) - (b + virtual)


_LARGE, _HIGHEST = 1e30, 80.0  # differences and exponentials of such do not overflow


def _excess_of_exp(delta: jax.Array) -> jax.Array:
    """e^Δ − 1 − Δ for |Δ| < 1/2 without cancellation, by its Taylor series."""
    series = jnp.zeros_like(delta)
    for n in range(_TERMS[jnp.dtype(delta.dtype).name], 1, -1):
        series = series * delta + 1 / math.factorial(n)
    return delta * delta * series


_TERMS = {"float32": 9, "float64": 17}

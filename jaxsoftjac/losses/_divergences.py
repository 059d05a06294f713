"""Entropy of a row and divergence of two rows of logits, exact near one-hot and near equality.

>>> import jax.numpy as jnp
>>> print(f"{entropy(jnp.array([0.0, 0.0], jnp.float32)):.4f}")      # log 2
0.6931
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_index, as_real, wide
from jaxsoftjac._row_functions import log1p_rest, softmax_rows, top_probability
from jaxsoftjac._rows import (
    LOWEST,
    ClassAxes,
    class_logits,
    depth,
    exp_depth,
    has_classes,
    nan_unless,
    statistics,
    top_of,
)
from jaxsoftjac._rules import compiled, recomputed
from jaxsoftjac.products import softmax_product, where_positive


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
    top, rest = statistics(row, classes)
    down = jnp.maximum(depth(row, top), LOWEST)  # below, the exponential is 0
    mean = classes.sum(jnp.exp(down) * down) / (1 + jnp.where(rest < 0, 0, rest))
    return (log1p_rest(rest) - mean).astype(x.dtype)


@_entropy.defjvp
def _entropy_jvp(
    classes: ClassAxes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return _entropy(x, classes), _entropy_pushforward(tangent, x, classes)


@recomputed(static_argnums=(2,))
def _entropy_pushforward(tangent: jax.Array, x: jax.Array, classes: ClassAxes) -> jax.Array:
    row = wide(x)
    # H = Σ σ·(−log σ), and Σ σ d(log σ) = 0: only dσ counts, and its sum is 0, so that the depth
    # below the top may stand for −log σ.
    down = jnp.maximum(depth(row, top_of(row, classes)), LOWEST)
    sigma, of_top = softmax_rows(row, classes), lax.stop_gradient(top_probability(row, classes))
    product = softmax_product(wide(tangent), sigma, classes, of_top)
    return -classes.sum(product * down).astype(tangent.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl(x: jax.Array, y: jax.Array, classes: ClassAxes) -> jax.Array:
    x, y = wide(x), wide(y)
    value = _compared(x, y, classes).value
    is_missing = (y != -jnp.inf) & (x == -jnp.inf) & (softmax_rows(y, classes) > 0)
    value = jnp.where(classes.max(is_missing.astype(x.dtype)) > 0, jnp.inf, value)
    return jnp.where(_comparable(x, y, classes), value, 0)


@_kl.defjvp
def _kl_jvp(
    classes: ClassAxes,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    return _kl(*primals, classes), _kl_pushforward(tangents, *primals, classes)


@recomputed(static_argnums=(3,))
def _kl_pushforward(
    tangents: tuple[jax.Array, jax.Array], x: jax.Array, y: jax.Array, classes: ClassAxes
) -> jax.Array:
    x, y = wide(x), wide(y)
    x_tangent, y_tangent = map(wide, tangents)
    q, p = softmax_rows(x, classes), softmax_rows(y, classes)
    compared = _compared(x, y, classes)
    # q − p has its exact derivatives as it stands; its value is p·(e^Δ − 1) where that is exact.
    delta = compared.log_ratio
    near = (jnp.abs(delta) < 0.5) & (p != 0) & (q != 0)
    exact = jnp.where(near, p * jnp.expm1(jnp.where(near, delta, 0)), q - p)
    difference = (q - p) + lax.stop_gradient(exact - (q - p))
    along_model = classes.sum(difference * where_positive(x_tangent, difference))
    of_top = lax.stop_gradient(top_probability(y, classes))
    along_target = classes.sum(softmax_product(y_tangent, p, classes, of_top) * compared.centred)
    return jnp.where(_comparable(x, y, classes), along_model - along_target, 0)


def _comparable(x: jax.Array, y: jax.Array, classes: ClassAxes) -> jax.Array:
    return has_classes(x, classes) & has_classes(y, classes)


class _Compared(NamedTuple):
    """Of two rows of logits, the model's and the target's."""

    value: jax.Array  # the divergence, without classes that one of the rows excludes
    centred: jax.Array  # d = x − y less its mean under p, 0 where one excludes the class
    log_ratio: jax.Array  # Δ = log q − log p


def _compared(x: jax.Array, y: jax.Array, classes: ClassAxes) -> _Compared:
    """KL = log Σ p·e^d, for any d = x − y + a constant of mean 0 under p: log1p Σ p·(e^d − 1 − d).

    All terms are ≥ 0. Where d is not small, p·e^d is taken from x, which the target may not have.
    Rows that are far apart have no need of it: there KL is the mean of log p − log q.
    """
    (x_top, x_rest), (y_top, y_rest) = statistics(x, classes), statistics(y, classes)
    x_log, y_log = log1p_rest(x_rest), log1p_rest(y_rest)
    has_both = (x != -jnp.inf) & (y != -jnp.inf)
    p = jnp.where(has_both, exp_depth(y, y_top) / (1 + jnp.where(y_rest < 0, 0, y_rest)), 0)
    apart = jnp.where(has_both, _difference(x, y, x_top, y_top), 0)
    mean = classes.sum(p * apart)
    d = jnp.where(has_both, apart - mean, 0)
    is_small = has_both & (jnp.abs(d) < 0.5)
    mass = jnp.exp(jnp.minimum(depth(x, x_top) - (mean + y_log), _HIGHEST))
    terms = jnp.where(is_small, p * _excess_of_exp(jnp.where(is_small, d, 0)), mass - p * (1 + d))
    excess = classes.sum(terms)
    is_near, shift = excess < 1, x_log - y_log
    value = jnp.where(is_near, jnp.log1p(jnp.minimum(excess, 1)), shift - mean)
    is_shift_exact = x_log + y_log < jnp.abs(d) + value  # whichever is rounded less
    return _Compared(value, d, jnp.where(is_shift_exact, apart - shift, d - value))


def _difference(x: jax.Array, y: jax.Array, x_top: jax.Array, y_top: jax.Array) -> jax.Array:
    """(x − x_top) − (y − y_top), with all digits where the rows are nearly equal but for a shift.

    There it is x − y less the same of the tops, both with what their rounding lost.
    """
    lowest = float(jnp.finfo(x.dtype).min) / 4
    apart = jnp.maximum(depth(x, x_top), lowest) - jnp.maximum(depth(y, y_top), lowest)
    x, y, x_top, y_top = (jnp.clip(a, -_LARGE, _LARGE) for a in (x, y, x_top, y_top))
    (difference, lost), (shift, shift_lost) = _two_difference(x, y), _two_difference(x_top, y_top)
    exact = (difference - shift) + (lost - shift_lost)
    return jnp.where(jnp.abs(apart) < 1, exact, apart)


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
        series = (1 + series) * delta / n
    return series * delta


_TERMS = {"float32": 9, "float64": 17}

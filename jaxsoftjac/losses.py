"""Losses on logits, one per example, that stay exact in the tails and differentiable to any order.

>>> import jax, jax.numpy as jnp
>>> loss = lambda x: cross_entropy(x, 0)
>>> x = jnp.array([40.0, 0.0], jnp.float32)
>>> print(f"{loss(x):.3e} {jax.grad(loss)(x)[0]:.3e}")      # 0 and 0 elsewhere
4.248e-18 -4.248e-18
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, broadcast_where, canonical_axes, wide
from jaxsoftjac.functions import (
    is_alive,
    linear,
    log_softmax_rows,
    logsumexp_rows,
    softmax_rows,
)
from jaxsoftjac.products import Rows, centre


class Mixture(NamedTuple):
    """What is mixed into the plain cross-entropy; hashable, so that it can be static."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Cross-entropy of each example: −Σⱼ tⱼ log σⱼ + z_loss·(logsumexp x)².

    The target t is one-hot at an integer label, or the given probabilities; smoothing makes it
    (1 − s)·t + s/K over the kept classes. The value is a sum of terms ≥ 0 and the gradient at the
    label is minus the sum of the others: both keep their relative precision however confident the
    prediction. Without `z_loss` the Hessian is J, in every mode. Of the logits' size, only the
    arguments themselves are kept for the derivatives.

    Cost: O(K) per example, in every mode and order.

    Args:
        logits: real array; the classes are on `axis`, −∞ excludes a class.
        labels: integers, of the shape of `logits` without `axis` (or broadcast to it), or
            probabilities of the shape of `logits`; the dtype tells which.
        axis: the class axis.
        where: boolean, broadcast to `logits`: the classes to keep.
        label_smoothing: s in [0, 1].
        z_loss: factor ≥ 0 of the squared log-normaliser.
        ignore_index: label whose examples have loss 0 and gradient 0.
        axis_name: mapped axis (`shard_map`, `vmap`) over which the classes are split in equal
            slices; integer labels are global. Only arrays of the batch's size are communicated.

    Returns:
        Array of the shape of `logits` without `axis`. A label out of range gives NaN, in value and
        gradient, for that example; a label on an excluded class gives +∞.

    Raises:
        TypeError: `logits` or `labels` is boolean or complex, or `where` is not boolean.
        ValueError: the shape of `labels`, `axis`, `label_smoothing` or `z_loss` is wrong, or
            `ignore_index` comes with probabilities.
    """
    x, labels, ignored, rows, mixture = examples(
        logits, labels, axis, where, label_smoothing, z_loss, ignore_index, axis_name
    )
    loss_of = _label_loss if jnp.issubdtype(labels.dtype, jnp.integer) else _target_loss
    return lax.squeeze(jnp.where(ignored, 0, loss_of(x, labels, rows, mixture)), rows.axes)


# Integer labels. What is one-hot is made where it is used, from an iota, and never kept.


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _label_loss(x: jax.Array, labels: jax.Array, rows: Rows, mixture: Mixture) -> jax.Array:
    loss = (1 - mixture.label_smoothing) * _surprise_at(labels, wide(x), rows)
    if mixture != Mixture():
        loss = loss + _loss(x, jnp.zeros_like(wide(x)), rows, mixture)
    return (_in_range(labels, x, rows) * loss).astype(x.dtype)


@_label_loss.defjvp
def _(rows, mixture, primals, tangents):
    (x, labels), (tangent, _) = primals, tangents
    loss = _label_loss(x, labels, rows, mixture)
    return loss, _label_pushforward(tangent, x, labels, (rows, mixture))


@linear
def _label_pushforward(tangent, x, labels, static):
    rows, mixture = static
    row, s, z = wide(x), mixture.label_smoothing, mixture.z_loss
    gradient = _label_gradient(row, labels, rows)
    moves = gradient != 0  # quicker than x ≠ −∞, and the same: it is 0 only where J is
    if mixture != Mixture():
        moves = x != -jnp.inf
        sigma = jnp.where(moves, softmax_rows(row, rows), 0)
        uniform = _smoothed(jnp.zeros_like(row), x, rows, mixture)
        gradient = (1 - s) * gradient + s * sigma - uniform
        if z:
            log_normalizer = jnp.where(is_alive(x, rows), logsumexp_rows(row, rows), 0)
            gradient = gradient + 2 * z * log_normalizer * sigma
    pushed = rows.sum(jnp.where(moves, gradient * wide(tangent), 0))
    return (_in_range(labels, x, rows) * pushed).astype(tangent.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _label_gradient(x: jax.Array, labels: jax.Array, rows: Rows) -> jax.Array:
    """σ − one-hot: at the label minus the sum of the others, or 0 where that is excluded."""
    is_label, others, depth = _apart(x, labels, rows)
    rest = rows.sum(others)
    scale = 1 / jnp.maximum(rest + jnp.exp(-depth), float(jnp.finfo(x.dtype).tiny))
    is_kept = _at_label(x, labels, rows) != -jnp.inf
    return others * scale - is_label * jnp.where(is_kept, rest * scale, 0)


@_label_gradient.defjvp
def _(rows, primals, tangents):
    _, tangent = jax.jvp(lambda x: softmax_rows(x, rows), primals[:1], tangents[:1])
    return _label_gradient(*primals, rows), tangent


def _surprise_at(labels, x, rows):
    """−log σ at the label: two terms ≥ 0; +∞ at an excluded class."""
    _, others, depth = _apart(x, labels, rows)
    surprise = depth + jnp.log1p(rows.sum(others) + (jnp.exp(-depth) - 1))
    return jnp.where(is_alive(x, rows), surprise, jnp.inf)


def _apart(x, labels, rows):
    """One-hot of the label, exp(x − max) of the other classes (0 at the label), max − x there.

    Nothing is subtracted from a sum, so that Σ of the others keeps its digits. The label leaves by
    arithmetic, because XLA's CPU kernels store a whole array before they reduce a selection.
    """
    top = jnp.where(is_alive(x, rows), rows.max(x), 0)
    is_label = _is_label(labels, x, rows).astype(x.dtype)
    others = jnp.exp(x - top - 1e30 * is_label)
    return is_label, others, top - _at_label(x, labels, rows)


def _at_label(x, labels, rows):
    """Logits at the labels, by a gather or, where sharding forbids that, by comparison."""
    axis = rows.axes[0]
    if rows.axis_name is not None or jax.typeof(x).sharding.spec[axis] is not None:
        return rows.sum(jnp.where(_is_label(labels, x, rows), x, 0))
    return jnp.take_along_axis(x, labels, axis, mode="fill", fill_value=jnp.nan)


def _is_label(labels, x, rows):
    axis = rows.axes[0]
    shape = [x.shape[i] if i == axis else 1 for i in range(x.ndim)]
    index = lax.broadcasted_iota(labels.dtype, shape, axis)
    if rows.axis_name is not None:
        first = lax.axis_index(rows.axis_name) * x.shape[axis]
        index = index + first.astype(labels.dtype)
    return index == labels


def _in_range(labels, x, rows):
    """1 for the label of a class, NaN for any other."""
    slices = 1 if rows.axis_name is None else lax.axis_size(rows.axis_name)
    inside = (labels >= 0) & (labels < slices * x.shape[rows.axes[0]])
    return jnp.where(inside, 1, jnp.nan).astype(wide(x).dtype)


# Probabilities as labels, differentiable in both arguments.


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _target_loss(x: jax.Array, target: jax.Array, rows: Rows, mixture: Mixture) -> jax.Array:
    return _loss(x, wide(target), rows, mixture).astype(x.dtype)


@_target_loss.defjvp
def _(rows, mixture, primals, tangents):
    (x, target), (x_tangent, target_tangent) = primals, tangents
    loss = _target_loss(x, target, rows, mixture)
    pushed = _target_pushforward((x_tangent, target_tangent), x, target, (rows, mixture))
    return loss, pushed.astype(loss.dtype)


@linear
def _target_pushforward(tangents, x, target, static):
    (x_tangent, target_tangent), (rows, mixture) = tangents, static
    surprise = jnp.where(x == -jnp.inf, 0, -log_softmax_rows(wide(x), rows))
    along_target = rows.sum(wide(target_tangent) * surprise)
    pushed = _pushforward(wide(x_tangent), x, wide(target), rows, mixture)
    return pushed + (1 - mixture.label_smoothing) * along_target


def _loss(x, target, rows, mixture):
    """Σ t·(−log σ) + z_loss·logsumexp²: sums of terms ≥ 0."""
    surprise = jnp.where(x == -jnp.inf, jnp.inf, -log_softmax_rows(wide(x), rows))
    target = _smoothed(target, x, rows, mixture)
    loss = rows.sum(jnp.where(target == 0, 0, target * surprise))
    if mixture.z_loss:
        loss = loss + mixture.z_loss * logsumexp_rows(wide(x), rows) ** 2
    return loss


def _pushforward(tangent, x, target, rows, mixture):
    """The derivative of `_loss` along a tangent of x, linear in it."""
    moves = is_alive(x, rows) & (x != -jnp.inf)
    sigma = jnp.where(moves, softmax_rows(wide(x), rows), 0)
    tangent = jnp.where(moves, tangent, 0)
    target = jnp.where(moves, _smoothed(target, x, rows, mixture), 0)
    pushed = -rows.sum(target * centre(tangent, sigma, rows))
    if mixture.z_loss:
        log_normaliser = jnp.where(is_alive(x, rows), logsumexp_rows(wide(x), rows), 0)
        pushed = pushed + 2 * mixture.z_loss * log_normaliser * rows.sum(sigma * tangent)
    return pushed


def _smoothed(target, x, rows, mixture):
    s = mixture.label_smoothing
    if not s:
        return target
    kept = (x != -jnp.inf).astype(target.dtype)
    return (1 - s) * target + s * kept / jnp.maximum(rows.sum(kept), 1)


def checked_logits(
    name: str, logits: ArrayLike, axis: int, where: ArrayLike | None, axis_name: str | None = None
) -> tuple[jax.Array, Rows]:
    """The logits, −∞ where excluded, and where their classes are."""
    x = as_real(name, logits)
    if not hasattr(axis, "__index__"):
        raise TypeError(f"`axis` must be an int, got {type(axis).__name__}")
    axes = canonical_axes(axis, x.ndim)
    where = broadcast_where(where, x.shape)
    return x if where is None else jnp.where(where, x, -jnp.inf), Rows(axes, axis_name)


def examples(
    logits, labels, axis, where, label_smoothing, z_loss, ignore_index, axis_name=None
) -> tuple[jax.Array, jax.Array, jax.Array, Rows, Mixture]:
    """The checked arguments of `cross_entropy`: logits, labels, which are ignored, rows, mixture.

    Integer labels have length 1 on the class axis, and 0 in place of `ignore_index`.
    """
    mixture = checked_mixture(label_smoothing, z_loss)
    x, rows = checked_logits("logits", logits, axis, where, axis_name)
    labels = jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = integer_labels(labels, x.shape, rows.axes[0])
        ignored = jnp.zeros_like(labels, bool)
        if ignore_index is not None:
            ignored = labels == ignore_index
        return x, jnp.where(ignored, 0, labels), ignored, rows, mixture
    target = as_real("labels", labels)
    if ignore_index is not None:
        raise ValueError("`ignore_index` must be None when `labels` are probabilities")
    if target.shape != x.shape:
        raise ValueError(
            f"`labels` must be integers or have the shape {x.shape} of `logits`, got {target.shape}"
        )
    return x, target.astype(wide(x).dtype), jnp.zeros((), bool), rows, mixture


def target_mass(x, labels, rows: Rows, mixture: Mixture) -> jax.Array:
    """Σt of each example: 1 for an integer label, NaN where that is out of range."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return _in_range(labels, x, rows)
    return rows.sum(_smoothed(labels, x, rows, mixture))


def integer_labels(labels: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Checked integer labels for logits of `shape`, with length 1 on the class axis."""
    expected = shape[:axis] + shape[axis + 1 :]
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    if labels.ndim and labels.shape != expected:
        raise ValueError(f"`labels` must have shape {expected}, got {labels.shape}")
    return jnp.expand_dims(jnp.broadcast_to(labels, expected), axis)


def checked_mixture(label_smoothing: Any, z_loss: Any) -> Mixture:
    """The options, checked."""
    for name, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"`{name}` must be a Python number, got {type(value).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must lie in [0, 1], got {label_smoothing}")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"`z_loss` must be ≥ 0 and finite, got {z_loss}")
    return Mixture(float(label_smoothing), float(z_loss))

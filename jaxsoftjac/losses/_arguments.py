"""The checked arguments of losses: labels, and what is mixed into the plain cross-entropy."""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsoftjac._checks import (
    Axis,
    as_array,
    as_real,
    broadcast_where,
    canonical_axes,
    checked_number,
    wide,
)
from jaxsoftjac._rows import ClassAxes, class_logits, in_range

Reduction = Literal["none", "sum", "mean"]


class LossOptions(NamedTuple):
    """What is mixed into the plain cross-entropy: Python numbers (0 is left out), or arrays."""

    label_smoothing: float | jax.Array | None = 0.0
    z_loss: float | jax.Array | None = 0.0

    @property
    def has_smoothing(self) -> bool:
        """Whether the target is smoothed, as far as is known."""
        return not _is_zero(self.label_smoothing)

    @property
    def has_z_loss(self) -> bool:
        """Whether the log-normalizer counts, as far as is known."""
        return not _is_zero(self.z_loss)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is mixed in, as far as is known."""
        return not (self.has_smoothing or self.has_z_loss)

    def split(self) -> "tuple[LossOptions, LossOptions]":
        """The Python numbers, which can be static, and the arrays; None elsewhere."""
        known = [value if isinstance(value, float) else None for value in self]
        traced = [None if isinstance(value, float) else value for value in self]
        return LossOptions(*known), LossOptions(*traced)

    def joined(self, others: "LossOptions") -> "LossOptions":
        """The options of which these and the `others` are the parts."""
        pairs = zip(self, others, strict=True)
        return LossOptions(*(a if b is None else b for a, b in pairs))


def mixed(
    surprise: jax.Array,
    uniform: jax.Array | None,
    log_normalizer: jax.Array | None,
    options: LossOptions,
) -> jax.Array:
    """(1 − s)·surprise + s·uniform + z·log_normalizer²; what has weight 0 may be infinite.

    A term whose factor is the Python number 0 is not read.
    """
    s, z = options
    loss = surprise
    if uniform is not None and options.has_smoothing:
        s = s if isinstance(s, float) else jnp.asarray(s, surprise.dtype)
        loss = _weighted(1 - s, surprise) + _weighted(s, uniform)
    if log_normalizer is not None and options.has_z_loss:
        is_infinite = jnp.isinf(log_normalizer)
        finite = jnp.where(is_infinite, 0, log_normalizer)
        if not isinstance(z, float):
            z = jnp.asarray(z, log_normalizer.dtype)
            is_infinite = is_infinite & (z > 0)
        loss = loss + (z * finite * finite + jnp.where(is_infinite, jnp.inf, 0))
    return loss


def counted(surprise: jax.Array, options: LossOptions) -> jax.Array:
    """The surprise, 0 for ∞ where smoothing leaves nothing of it: it may be weighted further."""
    s = options.label_smoothing
    if isinstance(s, float) and s != 1:
        return surprise
    return jnp.where(jnp.isinf(surprise) & (jnp.asarray(s) == 1), 0, surprise)


def _weighted(weight: jax.Array | float | None, term: jax.Array) -> jax.Array:
    if isinstance(weight, float):
        return weight * (term if weight else jnp.where(jnp.isinf(term), 0, term))
    weight = jnp.asarray(weight, term.dtype)
    return weight * jnp.where((weight == 0) & jnp.isinf(term), 0, term)


def _is_zero(option: float | jax.Array | None) -> bool:
    return isinstance(option, float) and option == 0


def checked_arguments(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    ignore_index: int | None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None, ClassAxes]:
    """Checked logits, labels, which are ignored (None: none), and where the classes are.

    Integer labels have length 1 on the class axis. What is ignored has label 0 and logits 0.
    """
    x, classes = class_logits("logits", logits, axis, where, axis_name)
    labels = as_array("labels", labels)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        ignored = is_ignored(labels, ignore_index)
        labels = integer_labels(labels, x.shape, classes.axes[0])
        if ignored is None:
            return x, labels, None, classes
        ignored = _beside(ignored, x.shape, classes.axes[0])
        return jnp.where(ignored, 0, x), jnp.where(ignored, 0, labels), ignored, classes
    target = as_real("labels", labels)
    if ignore_index is not None:
        raise ValueError("`ignore_index` must be None when `labels` are probabilities")
    if target.shape != x.shape:
        raise ValueError(
            f"`labels` must be integers or have the shape {x.shape} of `logits`, got {target.shape}"
        )
    return x, target.astype(wide(x).dtype), None, classes


def target_mass(
    x: jax.Array, labels: jax.Array, classes: ClassAxes, options: LossOptions
) -> jax.Array:
    """Σt of each example: 1 for an integer label, NaN where that is out of range."""
    s = options.label_smoothing
    if jnp.issubdtype(labels.dtype, jnp.integer):
        mass = in_range(labels, x, classes)
    else:
        mass = classes.sum(labels)
    if _is_zero(s):
        return mass
    s = jnp.asarray(s, mass.dtype)
    return (1 - s) * mass + s


def is_ignored(labels: jax.Array, ignore_index: int | None) -> jax.Array | None:
    """Which labels are `ignore_index`; None for none."""
    if ignore_index is None:
        return None
    range_of = jnp.iinfo(labels.dtype)
    if not range_of.min <= ignore_index <= range_of.max:
        return jnp.zeros(labels.shape, bool)
    return labels == np.asarray(ignore_index, labels.dtype)


def wide_labels(labels: jax.Array) -> jax.Array:
    """Integers of a dtype that the number of classes fits into."""
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def integer_labels(labels: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Checked integer labels for logits of `shape`, with length 1 on the class axis."""
    expected = shape[:axis] + shape[axis + 1 :]
    labels = wide_labels(labels)
    if labels.ndim and labels.shape != expected:
        is_like_logits = labels.shape == shape
        advice = ": cast what is one-hot by .astype(float)" if is_like_logits else ""
        raise ValueError(f"`labels` must have shape {expected}, got {labels.shape}{advice}")
    return _beside(labels, shape, axis)


def _beside(a: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """`a` of each example, with length 1 on the class axis of logits of `shape`."""
    return jnp.expand_dims(jnp.broadcast_to(a, shape[:axis] + shape[axis + 1 :]), axis)


def checked_options(label_smoothing: ArrayLike, z_loss: ArrayLike) -> LossOptions:
    """The options, checked: numbers, or real arrays without axes, which may be traced."""
    s = checked_number("label_smoothing", label_smoothing, "lie in [0, 1]", lambda s: 0 <= s <= 1)
    z = checked_number("z_loss", z_loss, "be ≥ 0 and finite", lambda z: 0 <= z < np.inf)
    return LossOptions(s, z)


def check_reduction(value: str) -> None:
    """Raises unless the value is a way to reduce losses."""
    if value not in get_args(Reduction):
        choices = ", ".join(get_args(Reduction))
        raise ValueError(f"`reduction` must be one of {choices}, got {value!r}")


def checked_weights(weights: jax.Array | None, losses: jax.Array) -> jax.Array:
    """The factors of the losses, of their shape and dtype."""
    if weights is None:
        return jnp.ones_like(losses)
    if weights.shape not in (losses.shape, ()):
        raise ValueError(f"`weights` must have shape {losses.shape} or (), got {weights.shape}")
    return jnp.broadcast_to(weights.astype(losses.dtype), losses.shape)


def reduced(losses: jax.Array, weights: jax.Array, shares: jax.Array, reduction: str) -> jax.Array:
    """The weighted losses, their sum, or the sum over that of the `shares`: 0 if that is 0."""
    losses = weighted(weights, losses)
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    if reduction == "sum":
        return total
    count = jnp.sum(shares)
    return total * jnp.where(count == 0, 0, 1 / jnp.where(count == 0, 1, count))


def weighted(weights: jax.Array, losses: jax.Array) -> jax.Array:
    """Losses times weights; of weight 0, an infinite one is 0 too."""
    return weights * jnp.where((weights == 0) & jnp.isinf(losses), 0, losses)


def flattened(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, axis: Axis
) -> tuple[jax.Array, jax.Array, jax.Array | None, int]:
    """The arguments with the classes of several axes on one, the last, in row-major order."""
    axes = canonical_axes(axis, logits.ndim)
    batch = tuple(i for i in range(logits.ndim) if i not in axes)
    shape = [logits.shape[i] for i in batch] + [math.prod(logits.shape[i] for i in axes)]
    if not jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == logits.shape:
        labels = labels.transpose(*batch, *axes).reshape(shape)
    where = broadcast_where(where, logits.shape)
    if where is not None:
        where = where.transpose(*batch, *axes).reshape(shape)
    return logits.transpose(*batch, *axes).reshape(shape), labels, where, len(batch)

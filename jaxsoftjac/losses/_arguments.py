"""The checked arguments of losses: labels, and what is mixed into the plain cross-entropy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftjac._checks import as_real, wide
from jaxsoftjac._rows import ClassAxes, class_logits, in_range


class LossOptions(NamedTuple):
    """What is mixed into the plain cross-entropy; hashable, so that it can be static."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0


def checked_arguments(
    logits, labels, axis, where, label_smoothing, z_loss, ignore_index, axis_name=None
) -> tuple[jax.Array, jax.Array, jax.Array, ClassAxes, LossOptions]:
    """Checked logits, labels, which are ignored, where the classes are, and the options.

    Integer labels have length 1 on the class axis, and 0 in place of `ignore_index`.
    """
    options = checked_options(label_smoothing, z_loss)
    x, classes = class_logits("logits", logits, axis, where, axis_name)
    labels = jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = integer_labels(labels, x.shape, classes.axes[0])
        ignored = jnp.zeros_like(labels, bool)
        if ignore_index is not None:
            ignored = labels == ignore_index
        return x, jnp.where(ignored, 0, labels), ignored, classes, options
    target = as_real("labels", labels)
    if ignore_index is not None:
        raise ValueError("`ignore_index` must be None when `labels` are probabilities")
    if target.shape != x.shape:
        raise ValueError(
            f"`labels` must be integers or have the shape {x.shape} of `logits`, got {target.shape}"
        )
    return x, target.astype(wide(x).dtype), jnp.zeros((), bool), classes, options


def target_mass(x, labels, classes: ClassAxes, options: LossOptions) -> jax.Array:
    """Σt of each example: 1 for an integer label, NaN where that is out of range."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return in_range(labels, x, classes)
    return classes.sum(smoothed(labels, x, classes, options))


def integer_labels(labels: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Checked integer labels for logits of `shape`, with length 1 on the class axis."""
    expected = shape[:axis] + shape[axis + 1 :]
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    if labels.ndim and labels.shape != expected:
        raise ValueError(f"`labels` must have shape {expected}, got {labels.shape}")
    return jnp.expand_dims(jnp.broadcast_to(labels, expected), axis)


def checked_options(label_smoothing: Any, z_loss: Any) -> LossOptions:
    """The options, checked."""
    for name, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"`{name}` must be a Python number, got {type(value).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must lie in [0, 1], got {label_smoothing}")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"`z_loss` must be ≥ 0 and finite, got {z_loss}")
    return LossOptions(float(label_smoothing), float(z_loss))


def smoothed(target, x, classes, options):
    s = options.label_smoothing
    if not s:
        return target
    kept = (x != -jnp.inf).astype(target.dtype)
    return (1 - s) * target + s * kept / jnp.maximum(classes.sum(kept), 1)

"""Cross-entropy of integer labels and of probabilities, exact in the tails."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import wide
from jaxsoftjac._rows import ClassAxes, first_class, has_classes, in_range, is_label
from jaxsoftjac._rules import recomputed
from jaxsoftjac.functions import log_softmax_rows, logsumexp_rows, softmax_rows
from jaxsoftjac.losses._arguments import LossOptions, checked_arguments, smoothed
from jaxsoftjac.products import centre


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
        z_loss: factor ≥ 0 of the squared log-normalizer.
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
    x, labels, ignored, classes, options = checked_arguments(
        logits, labels, axis, where, label_smoothing, z_loss, ignore_index, axis_name
    )
    loss_of = _label_loss if jnp.issubdtype(labels.dtype, jnp.integer) else _target_loss
    return lax.squeeze(jnp.where(ignored, 0, loss_of(x, labels, classes, options)), classes.axes)


# Integer labels. What is one-hot is made where it is used, from an iota, and never kept.


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _label_loss(
    x: jax.Array, labels: jax.Array, classes: ClassAxes, options: LossOptions
) -> jax.Array:
    loss = (1 - options.label_smoothing) * _surprise_at(labels, wide(x), classes)
    if options != LossOptions():
        loss = loss + _loss(x, jnp.zeros_like(wide(x)), classes, options)
    return (in_range(labels, x, classes) * loss).astype(x.dtype)


@_label_loss.defjvp
def _(classes, options, primals, tangents):
    (x, labels), (tangent, _) = primals, tangents
    loss = _label_loss(x, labels, classes, options)
    return loss, _label_pushforward(tangent, x, labels, (classes, options))


@recomputed(static_argnums=(3,))
def _label_pushforward(tangent, x, labels, static):
    classes, options = static
    row, s, z = wide(x), options.label_smoothing, options.z_loss
    gradient = _label_gradient(row, labels, classes)
    moves = gradient != 0  # quicker than x ≠ −∞, and the same: it is 0 only where J is
    if options != LossOptions():
        moves = x != -jnp.inf
        sigma = jnp.where(moves, softmax_rows(row, classes), 0)
        uniform = smoothed(jnp.zeros_like(row), x, classes, options)
        gradient = (1 - s) * gradient + s * sigma - uniform
        if z:
            log_normalizer = jnp.where(has_classes(x, classes), logsumexp_rows(row, classes), 0)
            gradient = gradient + 2 * z * log_normalizer * sigma
    pushed = classes.sum(jnp.where(moves, gradient * wide(tangent), 0))
    return (in_range(labels, x, classes) * pushed).astype(tangent.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _label_gradient(x: jax.Array, labels: jax.Array, classes: ClassAxes) -> jax.Array:
    """σ − one-hot: at the label minus the sum of the others, or 0 where that is excluded."""
    is_label, others, depth = _apart(x, labels, classes)
    rest = classes.sum(others)
    scale = 1 / jnp.maximum(rest + jnp.exp(-depth), float(jnp.finfo(x.dtype).tiny))
    is_kept = _at_label(x, labels, classes) != -jnp.inf
    return others * scale - is_label * jnp.where(is_kept, rest * scale, 0)


@_label_gradient.defjvp
def _(classes, primals, tangents):
    _, tangent = jax.jvp(lambda x: softmax_rows(x, classes), primals[:1], tangents[:1])
    return _label_gradient(*primals, classes), tangent


def _surprise_at(labels, x, classes):
    """−log σ at the label: two terms ≥ 0; +∞ at an excluded class."""
    _, others, depth = _apart(x, labels, classes)
    surprise = depth + jnp.log1p(classes.sum(others) + (jnp.exp(-depth) - 1))
    return jnp.where(has_classes(x, classes), surprise, jnp.inf)


def _apart(x, labels, classes):
    """One-hot of the label, exp(x − max) of the other classes (0 at the label), max − x there.

    Nothing is subtracted from a sum, so that Σ of the others keeps its digits. The label leaves by
    arithmetic, because XLA's CPU kernels store a whole array before they reduce a selection.
    """
    top = jnp.where(has_classes(x, classes), classes.max(x), 0)
    is_label = _is_label(labels, x, classes).astype(x.dtype)
    others = jnp.exp(x - top - 1e30 * is_label)
    return is_label, others, top - _at_label(x, labels, classes)


def _at_label(x, labels, classes):
    """Logits at the labels, by a gather or, where sharding forbids that, by comparison."""
    axis = classes.axes[0]
    if classes.axis_name is not None or jax.typeof(x).sharding.spec[axis] is not None:
        return classes.sum(jnp.where(_is_label(labels, x, classes), x, 0))
    return jnp.take_along_axis(x, labels, axis, mode="fill", fill_value=jnp.nan)


def _is_label(labels, x, classes):
    axis = classes.axes[0]
    return is_label(labels, x, axis, first_class(x.shape[axis], classes.axis_name))


# Probabilities as labels, differentiable in both arguments.


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _target_loss(
    x: jax.Array, target: jax.Array, classes: ClassAxes, options: LossOptions
) -> jax.Array:
    return _loss(x, wide(target), classes, options).astype(x.dtype)


@_target_loss.defjvp
def _(classes, options, primals, tangents):
    (x, target), (x_tangent, target_tangent) = primals, tangents
    loss = _target_loss(x, target, classes, options)
    pushed = _target_pushforward((x_tangent, target_tangent), x, target, (classes, options))
    return loss, pushed.astype(loss.dtype)


@recomputed(static_argnums=(3,))
def _target_pushforward(tangents, x, target, static):
    (x_tangent, target_tangent), (classes, options) = tangents, static
    surprise = jnp.where(x == -jnp.inf, 0, -log_softmax_rows(wide(x), classes))
    along_target = classes.sum(wide(target_tangent) * surprise)
    pushed = _pushforward(wide(x_tangent), x, wide(target), classes, options)
    return pushed + (1 - options.label_smoothing) * along_target


def _loss(x, target, classes, options):
    """Σ t·(−log σ) + z_loss·logsumexp²: sums of terms ≥ 0."""
    surprise = jnp.where(x == -jnp.inf, jnp.inf, -log_softmax_rows(wide(x), classes))
    target = smoothed(target, x, classes, options)
    loss = classes.sum(jnp.where(target == 0, 0, target * surprise))
    if options.z_loss:
        loss = loss + options.z_loss * logsumexp_rows(wide(x), classes) ** 2
    return loss


def _pushforward(tangent, x, target, classes, options):
    """The derivative of `_loss` along a tangent of x, linear in it."""
    moves = has_classes(x, classes) & (x != -jnp.inf)
    sigma = jnp.where(moves, softmax_rows(wide(x), classes), 0)
    tangent = jnp.where(moves, tangent, 0)
    target = jnp.where(moves, smoothed(target, x, classes, options), 0)
    pushed = -classes.sum(target * centre(tangent, sigma, classes))
    if options.z_loss:
        log_normalizer = jnp.where(has_classes(x, classes), logsumexp_rows(wide(x), classes), 0)
        pushed = pushed + 2 * options.z_loss * log_normalizer * classes.sum(sigma * tangent)
    return pushed

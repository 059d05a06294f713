"""Cross-entropy of integer labels and of probabilities, exact in the tails."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_index, as_real, wide
from jaxsoftjac._rows import (
    ClassAxes,
    depth,
    first_class,
    in_range,
    is_label,
    nan_unless,
    top_of,
)
from jaxsoftjac._rules import compiled, recomputed
from jaxsoftjac.functions import log1p_rest, log_softmax_rows, logsumexp_rows, softmax_rows
from jaxsoftjac.losses._arguments import LossOptions, checked_arguments, checked_options, mixed
from jaxsoftjac.products import centre, where_positive


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
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
        where: boolean, broadcast to `logits`: the classes to keep. It is no mask of examples, not
            even where its shape [N] fits: weight those with the losses that are returned.
        label_smoothing: s in [0, 1]; an array may be traced, and has a derivative.
        z_loss: factor ≥ 0 of the squared log-normalizer, likewise.
        ignore_index: label whose examples have loss 0 and gradient 0, whatever their logits.
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
    known, traced = checked_options(label_smoothing, z_loss).split()
    return _cross_entropy(
        as_real("logits", logits),
        jnp.asarray(labels),
        None if where is None else jnp.asarray(where),
        traced,
        known=known,
        axis=as_index("axis", axis),
        ignore_index=None if ignore_index is None else as_index("ignore_index", ignore_index),
        axis_name=axis_name,
    )


@compiled("known", "axis", "ignore_index", "axis_name")
def _cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    traced: LossOptions,
    *,
    known: LossOptions,
    axis: int,
    ignore_index: int | None,
    axis_name: str | None,
) -> jax.Array:
    x, labels, ignored, classes = checked_arguments(
        logits, labels, axis, where, ignore_index, axis_name
    )
    options = known.joined(traced)
    loss = recomputed(partial(_losses, options=options, classes=classes))(x, labels)
    loss = loss + 0 * nan_unless(classes.max(x) != jnp.inf, x.dtype)
    return lax.squeeze(loss if ignored is None else jnp.where(ignored, 0, loss), classes.axes)


def _losses(
    x: jax.Array, labels: jax.Array, *, options: LossOptions, classes: ClassAxes
) -> jax.Array:
    row = wide(x)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        surprise = _label_surprise(row, labels, classes) * in_range(labels, row, classes)
    else:
        surprise = _target_surprise(row, labels, classes)

    def uniform():
        kept = lax.stop_gradient((row != -jnp.inf).astype(row.dtype))
        return _target_surprise(row, kept / jnp.maximum(classes.sum(kept), 1), classes)

    loss = mixed(surprise, uniform, partial(logsumexp_rows, row, classes), options)
    return loss.astype(x.dtype)


# Integer labels. What is one-hot is made where it is used, from an iota, and never kept.


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _label_surprise(x: jax.Array, labels: jax.Array, classes: ClassAxes) -> jax.Array:
    """−log σ at the label: two terms ≥ 0; +∞ at an excluded class."""
    _, others, depth_of_label = _apart(x, labels, classes)
    rest = classes.sum(others) + (jnp.exp(-depth_of_label) - 1)
    return depth_of_label + log1p_rest(rest)


@_label_surprise.defjvp
def _label_surprise_jvp(classes, primals, tangents):
    (x, labels), (tangent, _) = primals, tangents
    return _label_surprise(x, labels, classes), _label_pushforward(tangent, x, labels, classes)


@recomputed(static_argnums=(3,))
def _label_pushforward(
    tangent: jax.Array, x: jax.Array, labels: jax.Array, classes: ClassAxes
) -> jax.Array:
    gradient = _label_gradient(x, labels, classes)
    return classes.sum(gradient * where_positive(tangent, gradient))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _label_gradient(x: jax.Array, labels: jax.Array, classes: ClassAxes) -> jax.Array:
    """σ − one-hot: at the label minus the sum of the others, or 0 where that is excluded."""
    label, others, depth_of_label = _apart(x, labels, classes)
    rest = classes.sum(others)
    scale = 1 / jnp.maximum(rest + jnp.exp(-depth_of_label), float(jnp.finfo(x.dtype).tiny))
    is_excluded = _at_label(x, labels, classes) == -jnp.inf
    return others * scale - label * jnp.where(is_excluded, 0, rest * scale)


@_label_gradient.defjvp
def _label_gradient_jvp(classes, primals, tangents):
    _, tangent = jax.jvp(lambda x: softmax_rows(x, classes), primals[:1], tangents[:1])
    return _label_gradient(*primals, classes), tangent


def _apart(
    x: jax.Array, labels: jax.Array, classes: ClassAxes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One-hot of the label, exp(x − top) of the other classes (0 at the label), top − x there.

    Nothing is subtracted from a sum, so that Σ of the others keeps its digits. The label leaves by
    arithmetic, because XLA's CPU kernels store a whole array before they reduce a selection.
    """
    top = top_of(x, classes)
    label = _is_label(labels, x, classes).astype(x.dtype)
    others = jnp.exp(depth(x, top) - 1e30 * label)
    return label, others, -depth(_at_label(x, labels, classes), top)


def _at_label(x: jax.Array, labels: jax.Array, classes: ClassAxes) -> jax.Array:
    """Logits at the labels, by a gather or, where sharding forbids that, by comparison."""
    axis = classes.axes[0]
    if classes.axis_name is not None or jax.typeof(x).sharding.spec[axis] is not None:
        return classes.sum(jnp.where(_is_label(labels, x, classes), x, 0))
    inside = (labels >= 0) & (labels < x.shape[axis])
    return jnp.take_along_axis(x, jnp.where(inside, labels, 0), axis, mode="clip")


def _is_label(labels: jax.Array, x: jax.Array, classes: ClassAxes) -> jax.Array:
    axis = classes.axes[0]
    return is_label(labels, x, axis, first_class(x.shape[axis], classes.axis_name))


# Probabilities as labels, differentiable in both arguments.


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _target_surprise(x: jax.Array, target: jax.Array, classes: ClassAxes) -> jax.Array:
    """Σ t·(−log σ), a sum of terms ≥ 0; +∞ where an excluded class has a share."""
    counts = target != 0
    surprise = -log_softmax_rows(x, classes)
    return classes.sum(jnp.where(counts, target, 0) * jnp.where(counts, surprise, 0))


@_target_surprise.defjvp
def _target_surprise_jvp(classes, primals, tangents):
    return _target_surprise(*primals, classes), _target_pushforward(tangents, *primals, classes)


@recomputed(static_argnums=(3,))
def _target_pushforward(
    tangents: tuple[jax.Array, jax.Array], x: jax.Array, target: jax.Array, classes: ClassAxes
) -> jax.Array:
    """Σ ṫ·(−log σ) − Σ t·(ẋ − ⟨σ, ẋ⟩); a row of zeros does not move with its logits."""
    (x_tangent, target_tangent), has_target = tangents, classes.max(jnp.abs(target)) != 0
    kept = x != -jnp.inf
    surprise = jnp.where(kept, -log_softmax_rows(x, classes), 0)
    x = jnp.where(has_target, x, 0)
    moves = has_target & kept
    centred = centre(jnp.where(moves, x_tangent, 0), softmax_rows(x, classes), classes)
    return classes.sum(target_tangent * surprise) - classes.sum(
        jnp.where(moves, target, 0) * centred
    )

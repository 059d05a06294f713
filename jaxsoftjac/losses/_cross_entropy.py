"""Cross-entropy of integer labels and of probabilities, exact in the tails."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import Axis, as_array, as_axis, as_index, as_real, check_axis_name, wide
from jaxsoftjac._rows import ClassAxes, in_range, nan_unless
from jaxsoftjac._rules import compiled, recomputed
from jaxsoftjac.losses._arguments import (
    LossOptions,
    Reduction,
    check_reduction,
    checked_arguments,
    checked_options,
    checked_weights,
    counted,
    flattened,
    mixed,
    reduced,
    weighted,
)
from jaxsoftjac.losses._row_terms import Asked, at_label, label_terms, target_terms, uniform_target


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    ignore_index: int | None = None,
    reduction: Reduction = "none",
    axis_name: str | None = None,
) -> jax.Array:
    """Cross-entropy of each example: −Σⱼ tⱼ log σⱼ + z_loss·(logsumexp x)².

    The target t is one-hot at an integer label, or the given probabilities; smoothing makes it
    (1 − s)·t + s/K over the kept classes. The value is a sum of terms ≥ 0 and the gradient at the
    label is minus the sum of the others: both keep their relative precision however confident the
    prediction. Without `z_loss` the Hessian is J, in every mode. Of the logits' size, only the
    arguments themselves are kept for the derivatives.

    What comes after may lose a gradient that is small but exact. Adam adds ε = 1e-8 to its size:
    below that the steps shrink, unless ε is smaller, as in `optax.adam(rate, eps=1e-15)`. Below
    1e-19 the square of a gradient is 0 in float32, and the step is divided by ε alone. Plain
    descent adds rate·gradient to the parameters, which in float32 do not move by less than 6e-8 of
    themselves: steps that do not depend on the gradient's size help, or float64 parameters.

    Cost: O(K) per example, in every mode and order.

    Args:
        logits: real array; the classes are on `axis`, −∞ excludes a class.
        labels: integers, of the shape of `logits` without `axis` (or broadcast to it), or
            probabilities of the shape of `logits`; the dtype tells which.
        axis: the class axis, or several, whose classes are then numbered in row-major order.
        where: boolean, broadcast to `logits`: the classes to keep. It is no mask of examples, not
            even where its shape [N] fits: that is what `weights` are for. A target that gives an
            excluded class a share has loss +∞: set its entries there to 0.
        weights: factors of the losses, of their shape or a number.
        class_weights: w [K] in the target: wⱼ·tⱼ, as in torch. Without smoothing an integer label
            weighs its example by w at the label. `z_loss` is not weighted by class.
        label_smoothing: s in [0, 1]; an array may be traced, and has a derivative. A Python number
            is part of the program, which outside of `jit` is compiled for each: a schedule gives
            an array.
        z_loss: factor ≥ 0 of the squared log-normalizer, likewise.
        ignore_index: label whose examples have loss 0 and gradient 0, whatever their logits.
        reduction: "none", "sum", or "mean": the sum over the sum of the weights of the examples
            that are not ignored, 0 if there are none. The weight of an integer label's class counts
            there, as in torch.
        axis_name: mapped axis (`shard_map`, `vmap`) over which the classes are split in equal
            slices, `class_weights` too; integer labels are global. Only arrays of the batch's size
            are communicated. Take second derivatives inside a `vmap`: outside of it JAX raises
            "unbound axis name". A gradient inside a `vmap`, or a `shard_map` with check_vma=False,
            is that of the sum of all slices' equal losses, as JAX has it for every psum.

    Returns:
        Array of the shape of `logits` without `axis`, or its sum or mean, computed in float32 or
        wider and rounded once to the dtype of `logits` (a sum may be beyond that of float16). A
        label out of range gives NaN, in value and gradient, for that example; a label on an
        excluded class gives +∞.

    Raises:
        TypeError: `logits`, `labels` or weights are boolean or complex, or `where` is not boolean.
        ValueError: a shape, `axis` or an option is wrong, or `ignore_index` comes with
            probabilities.

    >>> x = jnp.array([[9.0, 0.0], [0.0, 1.0]])
    >>> print(cross_entropy(x, jnp.array([0, 1])).round(5))
    [1.2000e-04 3.1326e-01]
    >>> print(f"{cross_entropy(x, 1, class_weights=jnp.array([1, 3.0]), reduction='mean'):.4f}")
    4.6567
    """
    check_reduction(reduction)
    check_axis_name(axis_name)
    known, traced = checked_options(label_smoothing, z_loss).split()
    return _cross_entropy(
        as_real("logits", logits),
        as_array("labels", labels),
        None if where is None else as_array("where", where),
        None if weights is None else as_real("weights", weights),
        None if class_weights is None else as_real("class_weights", class_weights),
        traced,
        known=known,
        axis=axis if axis is None else as_axis(axis),
        ignore_index=None if ignore_index is None else as_index("ignore_index", ignore_index),
        reduction=reduction,
        axis_name=axis_name,
    )


@compiled("known", "axis", "ignore_index", "reduction", "axis_name")
def _cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    weights: jax.Array | None,
    class_weights: jax.Array | None,
    traced: LossOptions,
    *,
    known: LossOptions,
    axis: Axis,
    ignore_index: int | None,
    reduction: str,
    axis_name: str | None,
) -> jax.Array:
    if not isinstance(axis, int):
        logits, labels, where, axis = flattened(logits, labels, where, axis)
    x, labels, ignored, classes = checked_arguments(
        logits, labels, axis, where, ignore_index, axis_name
    )
    of_class = _beside_classes(class_weights, x, classes)
    losses = recomputed(partial(_losses, options=known.joined(traced), classes=classes))
    spoilt = nan_unless(classes.max(x) != jnp.inf, wide(x).dtype)
    loss = losses(x, labels, of_class) + 0 * spoilt
    loss = lax.squeeze(loss if ignored is None else jnp.where(ignored, 0, loss), classes.axes)
    if reduction == "none" and weights is None:
        return loss.astype(x.dtype)
    weights = checked_weights(weights, loss)
    if ignored is not None:
        weights = jnp.where(lax.squeeze(ignored, classes.axes), 0, weights)
    shares = weights
    if of_class is not None and jnp.issubdtype(labels.dtype, jnp.integer):
        shares = weights * lax.squeeze(at_label(of_class, labels, classes), classes.axes)
    return reduced(loss, weights, shares, reduction).astype(x.dtype)


def _losses(
    x: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array | None,
    *,
    options: LossOptions,
    classes: ClassAxes,
) -> jax.Array:
    """The loss of each row, the class axis kept with length 1."""
    row, asked = wide(x), Asked(options.has_smoothing, options.has_z_loss)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        if class_weights is not None:
            labels = labels * class_weights
        terms = target_terms(row, labels, classes, asked)
    else:
        terms = label_terms(row, labels, classes, asked)
        surprise = terms.surprise * in_range(labels, row, classes)
        if class_weights is not None:
            of_label = at_label(class_weights, labels, classes)
            surprise = weighted(of_label, counted(surprise, options))
        terms = terms._replace(surprise=surprise)
    if class_weights is not None and asked.uniform:
        target = uniform_target(row, classes) * class_weights
        uniform = target_terms(row, target, classes, Asked(False, False)).surprise
        terms = terms._replace(uniform=uniform)
    return mixed(terms.surprise, terms.uniform, terms.log_normalizer, options)


def _beside_classes(
    class_weights: jax.Array | None, x: jax.Array, classes: ClassAxes
) -> jax.Array | None:
    """The weight of each class, in the shape of the logits `x`."""
    if class_weights is None:
        return None
    axis = classes.axes[0]
    if class_weights.shape != (x.shape[axis],):
        expected = (x.shape[axis],)
        raise ValueError(f"`class_weights` must have shape {expected}, got {class_weights.shape}")
    shape = [x.shape[i] if i == axis else 1 for i in range(x.ndim)]
    return jnp.broadcast_to(class_weights.astype(wide(x).dtype).reshape(shape), x.shape)

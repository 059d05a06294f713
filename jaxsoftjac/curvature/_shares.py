"""The share of each example in a mean over those that are kept, and what its target weighs.

>>> kept, shares = shares_of(jnp.zeros((3, 2)), jnp.array([0, -1, 1]), {"ignore_index": -1})
>>> print(kept, shares)
[ True False  True] [0.5 0.  0.5]
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._checks import AxisName, as_real, wide
from jaxsoftjac._rows import ClassAxes
from jaxsoftjac.losses import LinearTarget
from jaxsoftjac.losses._arguments import is_ignored, wide_labels
from jaxsoftjac.losses._row_terms import at_label


def shares_of(z: jax.Array, labels: Any, options: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Which examples are kept, and the share of each in the mean, 0 if it is not."""
    kept, weights, total = _weighed(z, labels, options)
    return kept, weights * jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))


def share_of_device(
    z: jax.Array, labels: Any, options: Mapping[str, Any], axis_name: AxisName
) -> jax.Array:
    """The share of this device's examples in the mean over those of all devices."""
    own = _weighed(z, labels, options)[2]
    total = lax.psum(own, axis_name)
    return own / jnp.where(total == 0, 1, total)


def _weighed(
    z: jax.Array, labels: Any, options: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which examples are kept, what each weighs, and by what a mean divides the sum."""
    shape, dtype = z.shape[:-1], wide(z).dtype
    kept, ignore_index = jnp.ones(shape, bool), options.get("ignore_index")
    if ignore_index is not None:
        if labels is None:
            raise ValueError("`labels` must be given where `ignore_index` is")
        labels = jnp.asarray(labels)
        ignored = is_ignored(labels, ignore_index) if are_integers(labels) else None
        kept = kept if ignored is None else jnp.broadcast_to(~ignored, shape)
    each = kept.astype(dtype)
    if options.get("weights") is not None:
        weights = as_real("weights", options["weights"]).astype(dtype)
        if weights.shape not in (shape, ()):
            raise ValueError(f"`weights` must have shape {shape} or (), got {weights.shape}")
        each = jnp.where(kept, weights, 0)
    counts = each
    if options.get("class_weights") is not None and are_integers(labels):  # as in the loss
        counts = counts * _at_label(labels, options, each)
    return kept, each, jnp.sum(counts)


def weighed_by_targets(
    labels: Any, is_class: jax.Array, options: Mapping[str, Any], shares: jax.Array
) -> jax.Array:
    """Shares times Σⱼ wⱼtⱼ of each example, which multiplies its Hessian; w are class weights.

    `is_class` says which classes are not excluded, [..., K] or [K].
    """
    w = options.get("class_weights")
    if w is None and (isinstance(labels, LinearTarget) or are_integers(labels)):
        return shares
    w = jnp.ones(is_class.shape[-1]) if w is None else as_real("class_weights", w)
    w = w.astype(shares.dtype)
    if are_integers(labels):
        weight = _at_label(labels, options, shares)
    else:
        weight = _weighted_sum(jnp.asarray(labels, shares.dtype), w)
    s = jnp.asarray(options.get("label_smoothing", 0.0), shares.dtype)
    count = jnp.maximum(jnp.sum(is_class, axis=-1, dtype=shares.dtype), 1)
    uniform = _weighted_sum(is_class.astype(shares.dtype), w) / count
    return shares * ((1 - s) * weight + s * uniform)


def are_integers(labels: Any) -> bool:
    """Whether labels are numbers of classes."""
    return jnp.issubdtype(jnp.result_type(labels), jnp.integer)


def _weighted_sum(a: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.sum(a * jnp.broadcast_to(w, a.shape), axis=-1)


def _at_label(labels: Any, options: Mapping[str, Any], like: jax.Array) -> jax.Array:
    """The class weight of each label, of the shape of `like`."""
    of_class = as_real("class_weights", options["class_weights"]).astype(like.dtype)
    beside = jnp.broadcast_to(of_class, (*like.shape, *of_class.shape))
    labels = jnp.broadcast_to(wide_labels(jnp.asarray(labels)), like.shape)[..., None]
    classes = ClassAxes((like.ndim,), options.get("axis_name"))
    return at_label(beside, labels, classes)[..., 0]

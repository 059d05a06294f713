"""The checked arguments of the losses beneath a vocabulary, and the layout of its blocks."""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, checked_number, same_shape
from jaxsoftjac._rows import first_class, nan_unless
from jaxsoftjac._rules import recomputed
from jaxsoftjac.losses._arguments import (
    LossOptions,
    Reduction,
    integer_labels,
    is_ignored,
)
from jaxsoftjac.losses._blocks import Head, Layout, Operands, Shared, logits_dtype
from jaxsoftjac.losses._linear_gradients import OfClasses, Static

_BLOCK_ELEMENTS = 2**20  # logits of one block, in all examples: 4 MB in float32
_NARROWEST = 128  # classes of a block, which is no larger than `hidden` then, for D ≥ 128


class LinearOptions(TypedDict, total=False):
    """The options of `linear_cross_entropy` but `return_log_normalizer`, which decides its type."""

    bias: ArrayLike | None
    weights: ArrayLike | None
    class_weights: ArrayLike | None
    label_smoothing: ArrayLike
    z_loss: ArrayLike
    logit_softcap: ArrayLike | None
    ignore_index: int | None
    reduction: Reduction
    block_size: int | None
    axis_name: str | None


class Problem(NamedTuple):
    operands: Operands
    labels: jax.Array  # [..., 1]
    weights: jax.Array  # [..., 1]
    ignored: jax.Array | None  # [..., 1]
    of_classes: OfClasses | None  # None where they are in the weights already
    static: Static


def without_ignored(problem: Problem) -> Operands:
    """The operands, with hidden states of 0 for the examples that are ignored."""
    if problem.ignored is None:
        return problem.operands
    return _without(problem.ignored, problem.operands)


def _without(ignored: jax.Array, operands: Operands) -> Operands:
    shared = operands.shared
    hidden = jnp.where(ignored, 0, shared.hidden)
    return operands._replace(shared=shared._replace(hidden=hidden))


def problem_of(
    operands: Operands,
    labels: jax.Array,
    weights: jax.Array | None,
    class_weights: jax.Array | None,
    traced: LossOptions,
    *,
    known: LossOptions,
    ignore_index: int | None,
    reduction: str,
    block_size: int | None,
    axis_name: str | None,
) -> Problem:
    """The checked arguments; weights are 0 for ignored examples, NaN for labels out of range."""
    operands, options = _checked_operands(operands, axis_name), known.joined(traced)
    hidden, V = operands.shared.hidden, operands.head.kernel.shape[1]
    lead = hidden.shape[:-1]
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integers, got dtype {labels.dtype.name}")
    ignored = is_ignored(labels, ignore_index)
    labels = integer_labels(labels, (*lead, V), len(lead))
    weights = _checked_weights(weights, hidden[..., :1].astype(logits_dtype(operands)))
    if ignored is not None:
        ignored = jnp.broadcast_to(ignored, lead)[..., None]
        labels, weights = jnp.where(ignored, 0, labels), jnp.where(ignored, 0, weights)
    shares, of_classes = weights, None
    if class_weights is not None:
        kept = operands if ignored is None else _without(ignored, operands)
        of_classes = _of_classes(class_weights, kept, labels, options, axis_name)
        shares = weights * of_classes.at_label
        if options.is_plain:
            weights, of_classes = shares, None
    if reduction == "mean":
        total = jnp.sum(shares)
        weights = weights * jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
    slices = 1 if axis_name is None else lax.axis_size(axis_name)
    weights = weights * nan_unless((labels >= 0) & (labels < slices * V), weights.dtype)
    has_mean = not (options.is_static and options.label_smoothing == 0)
    layout = _layout(V, labels.size, block_size, has_mean, axis_name)
    return Problem(operands, labels, weights, ignored, of_classes, Static(layout, options))


def _layout(
    V: int, N: int, block_size: int | None, has_mean: bool, axis_name: str | None
) -> Layout:
    if block_size is None:
        widest = min(_BLOCK_ELEMENTS // max(1, N), V // 16)
        blocks = -(-V // max(_NARROWEST, widest))
        block_size = max(1, V // blocks)
    elif not block_size >= 1:
        raise ValueError(f"`block_size` must be ≥ 1 or None, got {block_size}")
    size = min(int(block_size), V)
    count = (V - 1) // size
    return Layout(V - count * size, size, count, has_mean, axis_name)


def as_arrays(
    hidden: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None, softcap: ArrayLike | None
) -> Operands:
    hidden, kernel = as_real("hidden", hidden), as_real("kernel", kernel)
    bias = None if bias is None else as_real("bias", bias)
    if softcap is not None:
        softcap = checked_number("logit_softcap", softcap, "be > 0 or None", lambda c: c > 0)
        is_none = isinstance(softcap, float) and softcap == float("inf")
        softcap = None if is_none else jnp.asarray(softcap, hidden.dtype)
    return Operands(Shared(hidden, softcap), Head(kernel, bias))


def _checked_operands(operands: Operands, axis_name: str | None) -> Operands:
    (hidden, softcap, _), (kernel, bias) = operands
    if hidden.ndim < 1:
        raise ValueError(f"`hidden` must have shape [..., D], got {hidden.shape}")
    if kernel.ndim != 2 or kernel.shape[0] != hidden.shape[-1] or not kernel.shape[1]:
        raise ValueError(
            f"`kernel` must have shape ({hidden.shape[-1]}, V ≥ 1) for `hidden` of shape "
            f"{hidden.shape}, got {kernel.shape}"
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"`bias` must have shape {kernel.shape[1:]}, got {bias.shape}")
    if bias is None or softcap is not None:
        return operands
    origin = _origin(bias.astype(logits_dtype(operands)), axis_name)
    return operands._replace(shared=Shared(hidden, None, origin))


def _origin(bias: jax.Array, axis_name: str | None) -> jax.Array:
    """The largest finite bias: measured from it, biases of any size leave the logits exact."""
    bias = lax.stop_gradient(bias)
    lowest = float(jnp.finfo(bias.dtype).min)
    top = jnp.max(jnp.where(jnp.isfinite(bias), bias, lowest))
    top = top if axis_name is None else lax.pmax(top, axis_name)
    return jnp.where(top == lowest, 0, top)


def _checked_weights(weights: jax.Array | None, column: jax.Array) -> jax.Array:
    lead, ones = column.shape[:-1], jnp.ones_like(column)  # split over devices as `hidden` is
    if weights is None:
        return ones
    weights = weights.astype(column.dtype)
    if weights.shape not in (lead, ()):
        raise ValueError(f"`weights` must have shape {lead}, got {weights.shape}")
    return jnp.broadcast_to(weights, lead)[..., None] * ones


def _of_classes(
    class_weights: jax.Array,
    operands: Operands,
    labels: jax.Array,
    options: LossOptions,
    axis_name: str | None,
) -> OfClasses:
    (hidden, softcap, origin), (kernel, bias) = operands
    V, dtype = kernel.shape[1], logits_dtype(operands)
    if class_weights.shape != (V,):
        raise ValueError(f"`class_weights` must have shape ({V},), got {class_weights.shape}")
    if options.has_smoothing and softcap is not None:
        raise ValueError(
            "`class_weights` must be None with both `label_smoothing` and `logit_softcap`, got both"
        )

    def total(of_slice: jax.Array) -> jax.Array:
        return of_slice if axis_name is None else lax.psum(of_slice, axis_name)

    class_weights = class_weights.astype(dtype)
    index = labels - jnp.asarray(first_class(V, axis_name), labels.dtype)
    at_label = total(_at(class_weights, index))
    kept = jnp.ones(V, bool) if bias is None else bias != -jnp.inf
    share = jnp.where(kept, class_weights, 0) / jnp.maximum(total(jnp.sum(kept.astype(dtype))), 1)
    mean = total(jnp.sum(share))
    if not options.has_smoothing:
        return OfClasses(at_label, mean, None)
    # The logits are linear in the kernel: the mean of all takes one product with their weights.
    mean_logits = hidden.astype(dtype) @ total(kernel.astype(dtype) @ share)[:, None]
    if bias is not None:
        above = jnp.where(kept, bias.astype(dtype) - (0 if origin is None else origin), 0)
        mean_logits = mean_logits + total(jnp.sum(share * above))
    return OfClasses(at_label, mean, mean_logits)


def _at(class_weights: jax.Array, index: jax.Array) -> jax.Array:
    """The weights at [..., 1] indices, 0 out of range."""
    V = class_weights.shape[0]
    if not any(jax.typeof(index).sharding.spec):
        is_inside = (index >= 0) & (index < V)
        return jnp.where(is_inside, class_weights[jnp.where(is_inside, index, 0)], 0)

    # Explicit axes refuse to gather: compared with some classes at a time, [N, V] never arises.
    width = min(V, _NARROWEST)
    parts = jnp.pad(class_weights, (0, -V % width)).reshape(-1, width)
    classes = jnp.arange(parts.size, dtype=index.dtype).reshape(parts.shape)

    @recomputed
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        own, weights = (jnp.expand_dims(a, tuple(range(index.ndim - 1))) for a in part)
        return total + jnp.sum(jnp.where(index == own, weights, 0), -1, keepdims=True), None

    return lax.scan(add, 0 * index.astype(parts.dtype), (classes, parts))[0]


def checked_tangents(tangents: Sequence[ArrayLike], operands: Operands) -> Operands:
    hidden, (kernel, bias) = operands.shared.hidden, operands.head
    at = {"hidden": hidden, "kernel": kernel} | ({} if bias is None else {"bias": bias})
    if not isinstance(tangents, tuple | list) or len(tangents) != len(at):
        got = f"{len(tangents)}" if isinstance(tangents, tuple | list) else type(tangents).__name__
        raise ValueError(f"`tangents` must be a tuple of {len(at)} arrays, {tuple(at)}, got {got}")
    checked = {}
    for (name, a), tangent in zip(at.items(), tangents, strict=True):
        t = as_real(f"tangents ({name})", tangent).astype(a.dtype)
        same_shape(f"tangents ({name})", t, name, a)
        checked[name] = t
    return Operands(Shared(checked["hidden"]), Head(checked["kernel"], checked.get("bias")))

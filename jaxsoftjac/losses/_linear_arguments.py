"""The checked arguments of the losses beneath a vocabulary, and the layout of its blocks."""

from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import known_size
from jaxsoftjac._rows import first_class, nan_unless
from jaxsoftjac._rules import recomputed
from jaxsoftjac.losses._arguments import (
    LossOptions,
    Reduction,
    integer_labels,
    is_ignored,
)
from jaxsoftjac.losses._blocks import Layout, Operands, logits_dtype
from jaxsoftjac.losses._linear_losses import OfClasses
from jaxsoftjac.losses._linear_operands import checked_operands, checked_teacher

STATIC = "known", "ignore_index", "reduction", "block_size", "axis_name"

_BLOCK_ELEMENTS = 2**20  # logits of one block, in all examples: 4 MB in float32
_ROWS = 1024  # how many examples a symbolic number of them stands for
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
    operands: Operands  # with the teacher's if there is one
    labels: jax.Array | None  # [..., 1]; None for a teacher
    weights: jax.Array  # [..., 1]
    ignored: jax.Array | None  # [..., 1]
    of_classes: OfClasses | None  # None where they are in the weights already
    layout: Layout
    options: LossOptions


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
    labels: jax.Array | Operands,
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
    operands, options = checked_operands(operands, axis_name), known.joined(traced)
    hidden, V = operands.shared.hidden, operands.head.kernel.shape[1]
    lead = hidden.shape[:-1]
    weights = _checked_weights(weights, _column(hidden).astype(logits_dtype(operands)))
    rows = weights.size * (2 if isinstance(labels, Operands) else 1)  # the teacher's are held too
    layout = _layout(V, rows, block_size, options.has_smoothing, axis_name)
    if isinstance(labels, Operands):
        _check_for_target(class_weights, ignore_index)
        operands = operands.taught_by(checked_teacher(labels, operands, axis_name))
        if reduction == "mean":
            weights = weights * _one_over(jnp.sum(weights))
        return Problem(operands, None, weights, None, None, layout, options)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"`labels` must be integers or a LinearTarget, got dtype {labels.dtype.name}"
        )
    ignored = is_ignored(labels, ignore_index)
    labels = integer_labels(labels, (*lead, V), len(lead))
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
        weights = weights * _one_over(jnp.sum(shares))
    slices = 1 if axis_name is None else lax.axis_size(axis_name)
    weights = weights * nan_unless((labels >= 0) & (labels < slices * V), weights.dtype)
    return Problem(operands, labels, weights, ignored, of_classes, layout, options)


def with_any_label(problem: Problem) -> Problem:
    """The problem for what does not depend on the labels: any stands for a teacher."""
    if problem.labels is not None:
        return problem
    labels = jnp.zeros_like(problem.weights, jnp.int32)
    return problem._replace(operands=problem.operands.student, labels=labels)


def _one_over(total: jax.Array) -> jax.Array:
    return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))


def _layout(
    V: int, N: int, block_size: int | None, has_mean: bool, axis_name: str | None
) -> Layout:
    if block_size is None:
        if not isinstance(V, int):  # nor can it be cut
            return Layout(V, V, 0, has_mean, axis_name)
        widest = _BLOCK_ELEMENTS // max(1, known_size(N, _ROWS))
        widest = V if widest >= V else min(widest, V // 16)
        blocks = -(-V // max(_NARROWEST, widest))
        block_size = max(1, V // blocks)
    elif not block_size >= 1:
        raise ValueError(f"`block_size` must be ≥ 1 or None, got {block_size}")
    size = min(int(block_size), V)
    count = (V - 1) // size
    return Layout(V - count * size, size, count, has_mean, axis_name)


def _check_for_target(class_weights: jax.Array | None, ignore_index: int | None) -> None:
    for name, value in (("class_weights", class_weights), ("ignore_index", ignore_index)):
        if value is not None:
            got = value if isinstance(value, int) else f"shape {value.shape}"
            raise ValueError(f"`{name}` must be None when `labels` are a LinearTarget, got {got}")


def _column(hidden: jax.Array) -> jax.Array:
    """[..., 1], split over devices as `hidden` is, which may have no features."""
    return jnp.sum(hidden[..., :1], -1, keepdims=True)


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
    (hidden, softcap, origin, *_), (kernel, bias, _) = operands
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
    if bias is not None:
        kernel = jnp.where(kept[None], kernel, 0)
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

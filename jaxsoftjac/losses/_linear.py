"""Cross-entropy of hidden @ kernel + bias in every mode and order, without the [N, V] logits.

>>> import jax, jax.numpy as jnp
>>> hidden, kernel = jnp.ones((2, 3)), jnp.zeros((3, 5))
>>> print(f"{linear_cross_entropy(hidden, kernel, 4, reduction='mean'):.4f}")      # log 5
1.6094
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, same_shape
from jaxsoftjac._rows import nan_unless
from jaxsoftjac.losses._arguments import (
    LossOptions,
    checked_number,
    checked_options,
    integer_labels,
    is_ignored,
)
from jaxsoftjac.losses._linear_gradients import (
    Static,
    gradient_pushforward,
    log_normalizer,
    loss,
    weighted,
    weighted_sum,
)
from jaxsoftjac.losses._vocabulary import Head, Layout, Operands, Shared, logits_dtype, row_terms

_BLOCK_ELEMENTS = 2**20  # logits of one block, in all examples: 4 MB in float32
_NARROWEST = 128  # classes of a block, which is no larger than `hidden` then, for D ≥ 128


class _Problem(NamedTuple):
    operands: Operands
    labels: jax.Array  # [..., 1]
    weights: jax.Array  # [..., 1]
    ignored: jax.Array | None  # [..., 1]
    static: Static


def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    logit_softcap: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "none",
    block_size: int | None = None,
    return_log_normalizer: bool = False,
    axis_name: str | None = None,
) -> Any:
    """Cross-entropy of the logits z = hidden @ kernel + bias: w·(logsumexp z − z_label).

    As `cross_entropy`, exact in the tails, but the logits are computed in blocks of classes and
    never held, in any mode or order. A gradient takes four products of size N×D×V: three, with
    the logits of a tile of examples held at once, were measured to be no faster.

    Cost: O(N·D·V) time; O((N + V)·D + N·block) memory, in every mode and order.

    Args:
        hidden: real array [..., D]; N is the number of its rows.
        kernel: real array [D, V]; pass `embedding.T` for tied embeddings.
        labels: integers [...].
        bias: real array [V]; −∞ excludes a class.
        weights: factors of the losses, [...].
        label_smoothing: as for `cross_entropy`.
        z_loss: as for `cross_entropy`.
        logit_softcap: c > 0 replaces z by c·tanh(z/c), but for excluded classes; may be traced.
        ignore_index: label whose examples have loss 0 and gradient 0, whatever their `hidden`.
        reduction: "none", "sum", or "mean": the sum over the sum of the weights of the examples
            that are not ignored, 0 if there are none.
        block_size: classes per block; by default V/16, or so many that a block has 2²⁰ logits,
            but at least 128: a block of 128 is no larger than `hidden` for D ≥ 128.
        return_log_normalizer: also return logsumexp z, [...], of ignored examples too.
        axis_name: mapped axis (`shard_map`, `vmap`) over which `kernel` and `bias` are split along
            V in equal slices; labels are global. Of the batch's size are the values communicated;
            the gradient of a `hidden` that all slices share is added over them once.

    Returns:
        Losses [...], or their sum or mean, in the working dtype: float32 for bfloat16 and float16.
        A label out of range gives NaN for its example, one on an excluded class +∞.

    Raises:
        TypeError: `labels` are not integers, or another array is boolean or complex.
        ValueError: shapes do not fit, or an option is out of its range.
    """
    operands = _checked_operands(hidden, kernel, bias, logit_softcap, axis_name)
    problem = _problem(
        operands,
        jnp.asarray(labels),
        weights,
        checked_options(label_smoothing, z_loss),
        ignore_index,
        reduction,
        block_size,
        axis_name,
    )
    options, rows = problem.static.options, problem.weights.ndim - 1
    if (
        reduction != "none"
        and not return_log_normalizer
        and axis_name is None
        and options.is_static
    ):
        operands = _without_ignored(problem)
        return weighted_sum(operands, problem.labels, problem.weights, problem.static)
    layout = problem.static.layout
    terms, constants = row_terms(_without_ignored(problem), problem.labels, layout)
    losses = lax.squeeze(weighted(problem.weights, loss(terms, constants, options)), (rows,))
    result = losses if reduction == "none" else jnp.sum(losses)
    if not return_log_normalizer:
        return result
    if problem.ignored is not None:
        terms, constants = row_terms(operands, problem.labels, layout)
    return result, lax.squeeze(log_normalizer(terms, constants), (rows,))


def linear_cross_entropy_gauss_newton(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    tangents: tuple[ArrayLike, ...],
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    logit_softcap: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "none",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, ...]:
    """Gauss–Newton product of the summed loss: Σᵢ wᵢ·JᵢᵀHᵢJᵢt over the examples.

    Jᵢ is the derivative of the logits by (hidden, kernel, bias) and Hᵢ the Hessian of the loss by
    the logits, so that the product is positive semi-definite; for z_loss = 0 it is that of the
    Fisher matrix. Beneath a model it composes with its linearisation:

        hidden, push = jax.linearize(features, params)
        along = linear_cross_entropy_gauss_newton(hidden, kernel, labels, (push(t), kernel_t))
        product = jax.linear_transpose(push, params)(along[0])[0], along[1]

    Cost: nine products of size N×D×V, where a gradient takes four; memory as
    `linear_cross_entropy`.

    Args:
        hidden: as for `linear_cross_entropy`, as are all that are not named here.
        kernel: real array [D, V].
        labels: integers [...]; without `ignore_index` only their range matters.
        tangents: arrays like (hidden, kernel), or (hidden, kernel, bias) with a bias.
        bias: real array [V].
        weights: factors of the losses.
        label_smoothing: does not change the product.
        z_loss: as for `cross_entropy`.
        logit_softcap: c > 0 replaces z by c·tanh(z/c).
        ignore_index: label whose examples do not count.
        reduction: "mean" divides by the sum of weights; "none" and "sum" do not.
        block_size: classes per block.
        axis_name: as for `linear_cross_entropy`; the product by `hidden` is that of all slices.

    Returns:
        The product, arrays like `tangents`.

    Raises:
        TypeError: as `linear_cross_entropy`.
        ValueError: as `linear_cross_entropy`, or `tangents` do not have the operands' shapes.
    """
    operands = _checked_operands(hidden, kernel, bias, logit_softcap, axis_name)
    problem = _problem(
        operands,
        jnp.asarray(labels),
        weights,
        checked_options(label_smoothing, z_loss),
        ignore_index,
        reduction,
        block_size,
        axis_name,
    )
    moves = _checked_tangents(tangents, operands)
    moves = _without_ignored(problem._replace(operands=moves))
    _, product = gradient_pushforward(
        moves,
        jnp.zeros_like(problem.weights),
        _without_ignored(problem),
        problem.labels,
        problem.weights,
        problem.static,
        hold=True,
    )
    return tuple(a for a in (product.shared.hidden, *product.head) if a is not None)


def _without_ignored(problem: _Problem) -> Operands:
    """The operands, with hidden states of 0 for the examples that are ignored."""
    shared, head = problem.operands
    if problem.ignored is not None:
        shared = shared._replace(hidden=jnp.where(problem.ignored, 0, shared.hidden))
    return Operands(shared, head)


def _problem(
    operands: Operands,
    labels: jax.Array,
    weights: ArrayLike | None,
    options: LossOptions,
    ignore_index: int | None,
    reduction: str,
    block_size: int | None,
    axis_name: str | None,
) -> _Problem:
    """The checked arguments; weights are 0 for ignored examples, NaN for labels out of range."""
    hidden, V = operands.shared.hidden, operands.head.kernel.shape[1]
    lead = hidden.shape[:-1]
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"`reduction` must be 'none', 'sum' or 'mean', got {reduction!r}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integers, got dtype {labels.dtype.name}")
    ignored = is_ignored(labels, ignore_index)
    labels = integer_labels(labels, (*lead, V), len(lead))
    weights = _checked_weights(weights, hidden[..., :1].astype(logits_dtype(operands)))
    if ignored is not None:
        ignored = jnp.broadcast_to(ignored, lead)[..., None]
        labels, weights = jnp.where(ignored, 0, labels), jnp.where(ignored, 0, weights)
    if reduction == "mean":
        total = jnp.sum(weights)
        weights = weights * jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
    slices = 1 if axis_name is None else lax.axis_size(axis_name)
    weights = weights * nan_unless((labels >= 0) & (labels < slices * V), weights.dtype)
    has_mean = not (options.is_static and options.label_smoothing == 0)
    layout = _layout(V, labels.size, block_size, has_mean, axis_name)
    return _Problem(operands, labels, weights, ignored, Static(layout, options))


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


def _checked_operands(
    hidden: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    softcap: ArrayLike | None,
    axis_name: str | None,
) -> Operands:
    hidden, kernel = as_real("hidden", hidden), as_real("kernel", kernel)
    if hidden.ndim < 1:
        raise ValueError(f"`hidden` must have shape [..., D], got {hidden.shape}")
    if kernel.ndim != 2 or kernel.shape[0] != hidden.shape[-1] or not kernel.shape[1]:
        raise ValueError(
            f"`kernel` must have shape ({hidden.shape[-1]}, V ≥ 1) for `hidden` of shape "
            f"{hidden.shape}, got {kernel.shape}"
        )
    if bias is not None:
        bias = as_real("bias", bias)
        if bias.shape != kernel.shape[1:]:
            raise ValueError(f"`bias` must have shape {kernel.shape[1:]}, got {bias.shape}")
    if softcap is not None:
        softcap = checked_number("logit_softcap", softcap, "be > 0 or None", lambda c: c > 0)
        is_none = isinstance(softcap, float) and softcap == float("inf")
        softcap = None if is_none else jnp.asarray(softcap, hidden.dtype)
    operands = Operands(Shared(hidden, softcap), Head(kernel, bias))
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


def _checked_weights(weights: ArrayLike | None, column: jax.Array) -> jax.Array:
    lead, ones = column.shape[:-1], jnp.ones_like(column)  # split over devices as `hidden` is
    if weights is None:
        return ones
    weights = as_real("weights", weights).astype(column.dtype)
    if weights.shape not in (lead, ()):
        raise ValueError(f"`weights` must have shape {lead}, got {weights.shape}")
    return jnp.broadcast_to(weights, lead)[..., None] * ones


def _checked_tangents(tangents: Sequence[ArrayLike], operands: Operands) -> Operands:
    hidden, (kernel, bias) = operands.shared.hidden, operands.head
    at = {"hidden": hidden, "kernel": kernel} | ({} if bias is None else {"bias": bias})
    if not isinstance(tangents, tuple | list) or len(tangents) != len(at):
        raise ValueError(f"`tangents` must be a tuple of {len(at)} arrays, for {tuple(at)}")
    checked = {}
    for (name, a), tangent in zip(at.items(), tangents, strict=True):
        t = as_real(f"tangents ({name})", tangent).astype(a.dtype)
        same_shape(f"tangents ({name})", t, name, a)
        checked[name] = t
    return Operands(Shared(checked["hidden"]), Head(checked["kernel"], checked.get("bias")))

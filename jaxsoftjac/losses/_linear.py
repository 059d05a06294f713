"""Cross-entropy of hidden @ kernel + bias in every mode and order, without the [N, V] logits.

>>> import jax, jax.numpy as jnp
>>> hidden, kernel = jnp.ones((2, 3)), jnp.zeros((3, 5))
>>> print(f"{linear_cross_entropy(hidden, kernel, 4, reduction='mean'):.4f}")      # log 5
1.6094
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, same_shape
from jaxsoftjac.losses._arguments import checked_options, integer_labels
from jaxsoftjac.losses._linear_gradients import Static, gradient_pushforward, loss, weighted_sum
from jaxsoftjac.losses._vocabulary import Layout, Operands, logits_dtype, row_terms

_BLOCK_ELEMENTS = 2**20  # logits of one block, in all examples: 4 MB in float32
_NARROWEST = 128  # classes of a block, which is no larger than `hidden` then, for D ≥ 128


class _Problem(NamedTuple):
    operands: Operands
    labels: jax.Array  # [..., 1]
    weights: jax.Array  # [..., 1]
    static: Static


def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
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
        logit_softcap: c > 0 replaces z by c·tanh(z/c).
        ignore_index: label whose examples have loss 0 and gradient 0, whatever their `hidden`.
        reduction: "none", "sum", or "mean": the sum over the sum of the weights of the examples
            that are not ignored, 0 if there are none.
        block_size: classes per block; by default V/16, or so many that a block has 2²⁰ logits,
            but at least 128: a block of 128 is no larger than `hidden` for D ≥ 128.
        return_log_normalizer: also return logsumexp z, [...].
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
    problem = _problem(
        (hidden, kernel, bias), labels, weights, (label_smoothing, z_loss, logit_softcap),
        ignore_index, reduction, block_size, axis_name,
    )  # fmt: skip
    operands, labels, weights, static = problem
    if reduction != "none" and not return_log_normalizer and axis_name is None:
        return weighted_sum(operands, labels, weights, static)
    terms = row_terms(operands, labels, static.layout)
    losses = lax.squeeze(weights * loss(terms, static.options), (weights.ndim - 1,))
    result = losses if reduction == "none" else jnp.sum(losses)
    return (result, terms.log_normalizer[..., 0]) if return_log_normalizer else result


def linear_cross_entropy_gauss_newton(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    tangents: tuple[ArrayLike, ...],
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
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
    operands, labels, weights, static = _problem(
        (hidden, kernel, bias), labels, weights, (label_smoothing, z_loss, logit_softcap),
        ignore_index, reduction, block_size, axis_name,
    )  # fmt: skip
    moves = _checked_tangents(tangents, operands)
    constant = jnp.zeros_like(weights)
    _, product = gradient_pushforward(moves, constant, operands, labels, weights, static, hold=True)
    return tuple(product[name] for name in operands)


def _problem(
    operands, labels, weights, options, ignore_index, reduction, block_size, axis_name
) -> _Problem:
    """The checked arguments; weights are 0 for ignored examples, NaN for labels out of range."""
    operands = _checked_operands(*operands)
    hidden, V = operands["hidden"], operands["kernel"].shape[1]
    lead, dtype = hidden.shape[:-1], logits_dtype(operands)
    smoothing, z_loss, softcap = options
    options = checked_options(smoothing, z_loss)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"`logit_softcap` must be > 0 or None, got {softcap}")
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"`reduction` must be 'none', 'sum' or 'mean', got {reduction!r}")
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integers, got dtype {labels.dtype.name}")
    labels = integer_labels(labels, (*lead, V), len(lead))
    weights = _checked_weights(weights, hidden[..., :1].astype(dtype))
    if ignore_index is not None:
        ignored = labels == ignore_index
        labels, weights = jnp.where(ignored, 0, labels), jnp.where(ignored, 0, weights)
        operands["hidden"] = jnp.where(ignored, 0, hidden)
    if reduction == "mean":
        total = jnp.sum(weights)
        weights = weights * jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
    slices = 1 if axis_name is None else lax.axis_size(axis_name)
    inside = (labels >= 0) & (labels < slices * V)
    layout = _layout(V, labels.size, block_size, softcap, smoothing, axis_name)
    return _Problem(operands, labels, jnp.where(inside, weights, jnp.nan), Static(layout, options))


def _layout(V, N, block_size, softcap, smoothing, axis_name):
    if block_size is None:
        widest = min(_BLOCK_ELEMENTS // max(1, N), V // 16)
        blocks = -(-V // max(_NARROWEST, widest))
        block_size = max(1, V // blocks)
    elif not block_size >= 1:
        raise ValueError(f"`block_size` must be ≥ 1 or None, got {block_size}")
    size = min(block_size, V)
    count = (V - 1) // size
    return Layout(V - count * size, size, count, softcap, smoothing > 0, axis_name)


def _checked_operands(hidden, kernel, bias) -> Operands:
    hidden, kernel = as_real("hidden", hidden), as_real("kernel", kernel)
    if hidden.ndim < 1:
        raise ValueError(f"`hidden` must have shape [..., D], got {hidden.shape}")
    if kernel.ndim != 2 or kernel.shape[0] != hidden.shape[-1] or not kernel.shape[1]:
        raise ValueError(
            f"`kernel` must have shape ({hidden.shape[-1]}, V ≥ 1) for `hidden` of shape "
            f"{hidden.shape}, got {kernel.shape}"
        )
    operands = {"hidden": hidden, "kernel": kernel}
    if bias is not None:
        operands["bias"] = as_real("bias", bias)
        if operands["bias"].shape != kernel.shape[1:]:
            raise ValueError(
                f"`bias` must have shape {kernel.shape[1:]}, got {operands['bias'].shape}"
            )
    return operands


def _checked_weights(weights, column):
    lead, ones = column.shape[:-1], jnp.ones_like(column)  # split over devices as `hidden` is
    if weights is None:
        return ones
    weights = as_real("weights", weights).astype(column.dtype)
    if weights.shape not in (lead, ()):
        raise ValueError(f"`weights` must have shape {lead}, got {weights.shape}")
    return jnp.broadcast_to(weights, lead)[..., None] * ones


def _checked_tangents(tangents, operands: Operands) -> Operands:
    names = tuple(operands)
    if not isinstance(tangents, tuple | list) or len(tangents) != len(names):
        raise ValueError(f"`tangents` must be a tuple of {len(names)} arrays, for {names}")
    checked = {}
    for name, tangent in zip(names, tangents, strict=True):
        t = as_real(f"tangents ({name})", tangent).astype(operands[name].dtype)
        same_shape(f"tangents ({name})", t, name, operands[name])
        checked[name] = t
    return checked

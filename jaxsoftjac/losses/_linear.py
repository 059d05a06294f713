"""Cross-entropy of hidden @ kernel + bias in every mode and order, without the [N, V] logits.

>>> import jax, jax.numpy as jnp
>>> hidden, kernel = jnp.ones((2, 3)), jnp.zeros((3, 5))
>>> print(f"{linear_cross_entropy(hidden, kernel, 4, reduction='mean'):.4f}")      # log 5
1.6094
"""

from functools import partial
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_index, as_real, check_axis_name
from jaxsoftjac._rules import compiled
from jaxsoftjac.losses._arguments import (
    LossOptions,
    Reduction,
    check_reduction,
    checked_options,
    weighted,
)
from jaxsoftjac.losses._blocks import Operands
from jaxsoftjac.losses._linear_arguments import STATIC, LinearOptions, problem_of, without_ignored
from jaxsoftjac.losses._linear_losses import log_normalizer, loss
from jaxsoftjac.losses._linear_operands import (
    as_arrays,
    as_labels,
    over_vocabulary,
    vocabulary_axes,
)
from jaxsoftjac.losses._linear_target import LinearTarget
from jaxsoftjac.losses._vocabulary import row_terms


@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | LinearTarget,
    *,
    return_log_normalizer: Literal[False] = False,
    **options: Unpack[LinearOptions],
) -> jax.Array: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | LinearTarget,
    *,
    return_log_normalizer: Literal[True],
    **options: Unpack[LinearOptions],
) -> tuple[jax.Array, jax.Array]: ...
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | LinearTarget,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    logit_softcap: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "none",
    block_size: int | None = None,
    return_log_normalizer: bool = False,
    axis_name: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Cross-entropy of the logits z = hidden @ kernel + bias: w·(logsumexp z − z_label).

    As `cross_entropy`, exact in the tails, but the logits are computed in blocks of classes, of
    which one at a time is held, in every mode and order. A gradient takes four products of size
    N×D×V: three, with the logits of a tile of examples held at once, were measured to be no faster.

    Cost: O(N·D·V) time; O((N + V)·D + N·block) memory, in every mode and order.

    Args:
        hidden: real array [..., D]; N is the number of its rows.
        kernel: real array [D, V]; pass `embedding.T` for tied embeddings.
        labels: integers [...], or a `LinearTarget`: the probabilities of a teacher that has a
            hidden state and a kernel of its own, without `class_weights` and `ignore_index`.
        bias: real array [V]; −∞ excludes a class.
        weights: factors of the losses, [...].
        class_weights: w [V] in the target, as for `cross_entropy`; split over devices as `kernel`
            is, and not together with both `label_smoothing` and `logit_softcap`.
        label_smoothing: as for `cross_entropy`.
        z_loss: as for `cross_entropy`.
        logit_softcap: c > 0 replaces z by c·tanh(z/c), but for excluded classes; may be traced. A
            finite c above 2¹⁰⁰ counts as that.
        ignore_index: label whose examples have loss 0 and gradient 0, whatever their `hidden`.
        reduction: "none", "sum", or "mean": the sum over the sum of the weights of the examples
            that are not ignored, 0 if there are none.
        block_size: classes per block. By default all, where they are no more than 2²⁰ logits; or
            else so many that a block has no more, and at most V/16, but at least 128: a block of
            128 is no larger than `hidden` for D ≥ 128.
        return_log_normalizer: also return logsumexp z, [...], of ignored examples too.
        axis_name: mapped axis (`shard_map`, `vmap`) over which `kernel` and `bias` are split along
            V in equal slices; labels are global. Of the batch's size are the values communicated;
            the gradient of a `hidden` that all slices share is added over them once. A `kernel`
            that an Explicit mesh axis splits along V needs no name: it is found in its type. Under
            Auto axes without a name each block is gathered: V·D values in all, per product.

    Returns:
        Losses [...], or their sum or mean, in the working dtype: float32 for bfloat16 and float16.
        A label out of range gives NaN for its example, one on an excluded class +∞, as does a
        teacher's probability there.

    Raises:
        TypeError: `labels` are neither integers nor a `LinearTarget`, or another array is boolean
            or complex.
        ValueError: shapes do not fit, or an option is out of its range.

    >>> hidden, kernel = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.eye(2)
    >>> print(linear_cross_entropy(hidden, kernel, jnp.array([0, 1])).round(2))
    [0.31 0.13]
    """
    check_reduction(reduction)
    check_axis_name(axis_name)
    known, traced = checked_options(label_smoothing, z_loss).split()
    return _linear_cross_entropy(
        as_arrays(hidden, kernel, bias, logit_softcap),
        as_labels(labels),
        None if weights is None else as_real("weights", weights),
        None if class_weights is None else as_real("class_weights", class_weights),
        traced,
        known=known,
        ignore_index=None if ignore_index is None else as_index("ignore_index", ignore_index),
        reduction=reduction,
        block_size=None if block_size is None else as_index("block_size", block_size),
        return_log_normalizer=bool(return_log_normalizer),
        axis_name=axis_name,
    )


@compiled(*STATIC, "return_log_normalizer")
def _linear_cross_entropy(
    operands: Operands,
    labels: jax.Array | Operands,
    weights: jax.Array | None,
    class_weights: jax.Array | None,
    traced: LossOptions,
    *,
    return_log_normalizer: bool,
    **static: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    names = vocabulary_axes(operands, labels)
    if names and static["axis_name"] is None:
        loss_of = partial(
            _linear_cross_entropy,
            return_log_normalizer=return_log_normalizer,
            **static | {"axis_name": names},
        )
        return over_vocabulary(
            loss_of, names, P(), operands, labels, weights, class_weights, traced
        )
    problem = problem_of(operands, labels, weights, class_weights, traced, **static)
    rows = problem.weights.ndim - 1
    terms, constants = row_terms(without_ignored(problem), problem.labels, problem.layout)
    losses = loss(terms, constants, problem.options, problem.of_classes)
    losses = lax.squeeze(weighted(problem.weights, losses), (rows,))
    result = losses if static["reduction"] == "none" else jnp.sum(losses)
    if not return_log_normalizer:
        return result
    if problem.ignored is not None:
        terms, constants = row_terms(problem.operands, problem.labels, problem.layout)
    return result, lax.squeeze(log_normalizer(terms, constants), (rows,))

"""Cross-entropy of hidden @ kernel + bias in every mode and order, without the [N, V] logits.

>>> import jax, jax.numpy as jnp
>>> hidden, kernel = jnp.ones((2, 3)), jnp.zeros((3, 5))
>>> print(f"{linear_cross_entropy(hidden, kernel, 4, reduction='mean'):.4f}")      # log 5
1.6094
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_index, as_real, check_axis_name
from jaxsoftjac._rules import compiled
from jaxsoftjac._sharding import mesh_axes, over_mesh_slices
from jaxsoftjac.losses._arguments import (
    LossOptions,
    Reduction,
    check_reduction,
    checked_options,
    weighted,
)
from jaxsoftjac.losses._blocks import Head, Operands, Shared
from jaxsoftjac.losses._linear_arguments import (
    LinearOptions,
    as_arrays,
    checked_tangents,
    problem_of,
    without_ignored,
)
from jaxsoftjac.losses._linear_gradients import (
    gradient_pushforward,
    log_normalizer,
    loss,
    mass_of_target,
    weighted_sum,
)
from jaxsoftjac.losses._vocabulary import row_terms

_STATIC = "known", "ignore_index", "reduction", "block_size", "axis_name"


@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    return_log_normalizer: Literal[False] = False,
    **options: Unpack[LinearOptions],
) -> jax.Array: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    return_log_normalizer: Literal[True],
    **options: Unpack[LinearOptions],
) -> tuple[jax.Array, jax.Array]: ...
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
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
        class_weights: w [V] in the target, as for `cross_entropy`; split over devices as `kernel`
            is, and not together with both `label_smoothing` and `logit_softcap`.
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
            the gradient of a `hidden` that all slices share is added over them once. A `kernel`
            that an Explicit mesh axis splits along V needs no name: it is found in its type. Under
            Auto axes without a name each block is gathered: V·D values in all, per product.

    Returns:
        Losses [...], or their sum or mean, in the working dtype: float32 for bfloat16 and float16.
        A label out of range gives NaN for its example, one on an excluded class +∞.

    Raises:
        TypeError: `labels` are not integers, or another array is boolean or complex.
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
        as_array("labels", labels),
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


@compiled(*_STATIC, "return_log_normalizer")
def _linear_cross_entropy(
    operands: Operands,
    labels: jax.Array,
    weights: jax.Array | None,
    class_weights: jax.Array | None,
    traced: LossOptions,
    *,
    return_log_normalizer: bool,
    **static: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    names = mesh_axes(operands.head.kernel, 1)
    if names and static["axis_name"] is None:
        loss_of = partial(
            _linear_cross_entropy,
            return_log_normalizer=return_log_normalizer,
            **static | {"axis_name": names},
        )
        return _over_vocabulary(
            loss_of, names, P(), operands, labels, weights, class_weights, traced
        )
    problem = problem_of(operands, labels, weights, class_weights, traced, **static)
    (layout, options), rows = problem.static, problem.weights.ndim - 1
    is_total = static["reduction"] != "none" and static["axis_name"] is None
    is_total = is_total and problem.of_classes is None
    if is_total and not return_log_normalizer and options.is_static:
        operands = without_ignored(problem)
        return weighted_sum(operands, problem.labels, problem.weights, problem.static)
    terms, constants = row_terms(without_ignored(problem), problem.labels, layout)
    losses = loss(terms, constants, options, problem.of_classes)
    losses = lax.squeeze(weighted(problem.weights, losses), (rows,))
    result = losses if static["reduction"] == "none" else jnp.sum(losses)
    if not return_log_normalizer:
        return result
    if problem.ignored is not None:
        terms, constants = row_terms(problem.operands, problem.labels, layout)
    return result, lax.squeeze(log_normalizer(terms, constants), (rows,))


def linear_cross_entropy_gauss_newton(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    tangents: tuple[ArrayLike, ...],
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
        class_weights: w [V] in the target.
        label_smoothing: does not change the product but for class weights.
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

    >>> hidden, kernel = jnp.array([[1.0]]), jnp.zeros((1, 2))
    >>> along = jnp.zeros((1, 1)), jnp.array([[1.0, 0.0]])
    >>> print(linear_cross_entropy_gauss_newton(hidden, kernel, 0, along)[1])       # h·J·h
    [[ 0.25 -0.25]]
    """
    check_reduction(reduction)
    check_axis_name(axis_name)
    known, traced = checked_options(label_smoothing, z_loss).split()
    operands = as_arrays(hidden, kernel, bias, logit_softcap)
    return _gauss_newton(
        operands,
        checked_tangents(tangents, operands),
        as_array("labels", labels),
        None if weights is None else as_real("weights", weights),
        None if class_weights is None else as_real("class_weights", class_weights),
        traced,
        known=known,
        ignore_index=None if ignore_index is None else as_index("ignore_index", ignore_index),
        reduction=reduction,
        block_size=None if block_size is None else as_index("block_size", block_size),
        axis_name=axis_name,
    )


@compiled(*_STATIC)
def _gauss_newton(
    operands: Operands,
    moves: Operands,
    labels: jax.Array,
    weights: jax.Array | None,
    class_weights: jax.Array | None,
    traced: LossOptions,
    **static: Any,
) -> tuple[jax.Array, ...]:
    names = mesh_axes(operands.head.kernel, 1)
    if names and static["axis_name"] is None:
        product_of = partial(_gauss_newton, **static | {"axis_name": names})
        specs = (P(), P(None, names), P(names))[: 2 if operands.head.bias is None else 3]
        along = operands, moves, labels
        return _over_vocabulary(product_of, names, specs, *along, weights, class_weights, traced)
    problem = problem_of(operands, labels, weights, class_weights, traced, **static)
    weights, options = mass_of_target(problem.weights, problem.static.options, problem.of_classes)
    _, product = gradient_pushforward(
        without_ignored(problem._replace(operands=moves)),
        jnp.zeros_like(weights),
        without_ignored(problem),
        problem.labels,
        weights,
        problem.static._replace(options=options),
        hold=True,
    )
    return tuple(a for a in (product.shared.hidden, *product.head) if a is not None)


def _over_vocabulary(
    function: Callable[..., Any], names: tuple[str, ...], out_specs: Any, *arguments: Any
) -> Any:
    """`function` on slices of what is as long as the vocabulary, which is split over `names`."""
    of_operands = Operands(Shared(None), Head(1, 0))
    axes = [of_operands] * (len(arguments) - 4) + [None, None, 0, LossOptions(None, None)]
    return over_mesh_slices(function, names, arguments, axes, out_specs)

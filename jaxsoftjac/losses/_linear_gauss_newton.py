"""The Gauss–Newton product of the loss beneath a vocabulary, without the [N, V] logits."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_index, as_real, check_axis_name
from jaxsoftjac._rules import compiled
from jaxsoftjac._sharding import split_like
from jaxsoftjac.losses._arguments import LossOptions, Reduction, check_reduction, checked_options
from jaxsoftjac.losses._blocks import (
    Head,
    Operands,
    Start,
    at_tangents,
    block_of,
    both_logits,
    checkpointed,
    filled,
    logits_of,
    reduce_blocks,
    wide_shared,
)
from jaxsoftjac.losses._linear_arguments import (
    STATIC,
    Problem,
    problem_of,
    with_any_label,
    without_ignored,
)
from jaxsoftjac.losses._linear_losses import mass_of_target, slopes_by_terms
from jaxsoftjac.losses._linear_operands import (
    as_arrays,
    as_labels,
    checked_tangents,
    over_vocabulary,
    vocabulary_axes,
)
from jaxsoftjac.losses._linear_target import LinearTarget
from jaxsoftjac.losses._vocabulary import Constants, Terms, row_terms, slopes_of


def linear_cross_entropy_gauss_newton(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | LinearTarget,
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
        labels: integers [...], of which only the range matters without `ignore_index`; or a
            `LinearTarget`, of which nothing matters.
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
    hidden = as_real("hidden", hidden)
    operands = as_arrays(hidden, kernel, bias, logit_softcap)
    by_hidden, *by_head = _gauss_newton(
        operands,
        checked_tangents(tangents, operands),
        as_labels(labels),
        None if weights is None else as_real("weights", weights),
        None if class_weights is None else as_real("class_weights", class_weights),
        traced,
        known=known,
        ignore_index=None if ignore_index is None else as_index("ignore_index", ignore_index),
        reduction=reduction,
        block_size=None if block_size is None else as_index("block_size", block_size),
        axis_name=axis_name,
    )
    return split_like(by_hidden, hidden), *by_head


@compiled(*STATIC)
def _gauss_newton(
    operands: Operands,
    moves: Operands,
    labels: jax.Array | Operands,
    weights: jax.Array | None,
    class_weights: jax.Array | None,
    traced: LossOptions,
    **static: Any,
) -> tuple[jax.Array, ...]:
    names = vocabulary_axes(operands, labels)
    if names and static["axis_name"] is None:
        product_of = partial(_gauss_newton, **static | {"axis_name": names})
        specs = (P(), P(None, names), P(names))[: 2 if operands.head.bias is None else 3]
        along = operands, moves, labels
        return over_vocabulary(product_of, names, specs, *along, weights, class_weights, traced)
    problem = with_any_label(problem_of(operands, labels, weights, class_weights, traced, **static))
    moves = without_ignored(problem._replace(operands=moves))
    hidden, head = _product(moves, without_ignored(problem), problem)
    return tuple(a for a in (hidden, *head) if a is not None)


def _product(moves: Operands, operands: Operands, problem: Problem) -> tuple[jax.Array, Head]:
    """The gradient's derivative along `moves` where the Jacobian of the logits is held."""
    labels, layout = problem.labels, problem.layout
    weights, options = mass_of_target(problem.weights, problem.options, problem.of_classes)
    hidden = wide_shared(operands.shared, layout).hidden

    def at_terms(moved: Operands) -> tuple[tuple[Terms, Terms], Constants]:
        terms, constants = row_terms(filled(moved, operands), labels, layout)
        return (terms, slopes_by_terms(terms, constants, weights, options)), constants

    at = at_tangents(operands, moves)
    of_terms, of_terms_moves, constants = jax.jvp(at_terms, (at,), (moves,), has_aux=True)

    @checkpointed
    def visit(start: Start, size: int, moves_of_block: Head) -> tuple[Start, jax.Array, Head]:
        block, tangent = block_of(operands, start, size), Operands(moves.shared, moves_of_block)

        def gradient(moved: Operands, terms: Terms, by_terms: Terms) -> jax.Array:
            logits = both_logits(filled(moved, block))
            slopes = slopes_of(logits, start, labels, terms, constants, layout).student
            pairs = zip(by_terms, slopes, strict=True)
            parts = [weight * slope for weight, slope in pairs if weight is not None]
            return sum(parts, jnp.zeros_like(parts[0]))

        def logits_of_held(hidden: jax.Array, head: Head) -> jax.Array:
            return logits_of(Operands(operands.shared._replace(hidden=hidden), head))

        at = (at_tangents(block, tangent), *of_terms), (tangent, *of_terms_moves)
        _, pullback = jax.vjp(logits_of_held, hidden, block.head)
        return start, *pullback(jax.jvp(gradient, *at)[1])

    def added(
        total: tuple[jax.Array, Head], part: tuple[Start, jax.Array, Head]
    ) -> tuple[jax.Array, Head]:
        start, by_hidden, by_head = part

        def write(into: jax.Array, of_block: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(into, of_block, start, into.ndim - 1)

        return total[0] + by_hidden, jax.tree.map(write, total[1], by_head)

    zeros = jax.tree.map(jnp.zeros_like, (hidden, operands.head))
    by_hidden, by_head = reduce_blocks(visit, added, moves.head, layout, zeros)
    if layout.axis_name is not None:
        by_hidden = lax.psum(by_hidden, layout.axis_name)
    return by_hidden.astype(operands.shared.hidden.dtype), by_head

"""The gradient of a weighted sum of losses, made together with them, and its own derivative.

Every block of classes adds to the gradient by `hidden` and writes its part of the gradient by the
kernel into place, so that besides the results only one block of logits is held.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxsoftjac._checks import wide
from jaxsoftjac.losses._arguments import LossOptions, countable, counted, mixed, weighted
from jaxsoftjac.losses._blocks import (
    Head,
    Layout,
    Logits,
    Operands,
    Start,
    at_tangents,
    block_of,
    both_logits,
    checkpointed,
    filled,
    is_none,
    moving,
    reduce_blocks,
    wide_shared,
)
from jaxsoftjac.losses._running import log_sum
from jaxsoftjac.losses._vocabulary import Constants, Terms, row_terms, slopes_of


class Static(NamedTuple):
    """What is static of a loss."""

    layout: Layout
    options: LossOptions
    teaches: bool = False  # whether the gradient is wanted by the teacher too


class OfClasses(NamedTuple):
    """What class weights w make of the terms of the loss."""

    at_label: jax.Array  # w of the label, [..., 1]
    mean: jax.Array  # Σw over the classes that are not excluded, over their number
    mean_logits: jax.Array | None  # Σwz likewise, [..., 1]; None without smoothing


def log_normalizer(terms: Terms, constants: Constants) -> jax.Array:
    """The logsumexp of each example, [..., 1]; −∞ without classes."""
    value = terms.peak + log_sum(terms.rest, terms.tail)
    if constants.origin is not None:
        value = value + constants.origin
    return jnp.where(terms.rest < 0, -jnp.inf, value)


def loss(
    terms: Terms,
    constants: Constants,
    options: LossOptions,
    of_classes: OfClasses | None = None,
) -> jax.Array:
    """The loss of each example, [..., 1]."""
    surprise, uniform, lse = terms.surprise, None, None
    if options.has_z_loss:
        lse = log_normalizer(terms, constants)
    if of_classes is not None:
        surprise = weighted(of_classes.at_label, counted(surprise, options))
    if of_classes is not None and of_classes.mean_logits is not None:
        from_origin = log_normalizer(terms, constants._replace(origin=None))
        uniform = weighted(of_classes.mean, from_origin) - of_classes.mean_logits
    elif options.has_smoothing:
        moved = terms.peak - lax.stop_gradient(terms.peak)  # by which the top is ahead of its value
        uniform = (terms.descent + moved) + log_sum(terms.rest, terms.tail)
    return mixed(surprise, uniform, lse, options)


def mass_of_target(
    weights: jax.Array, options: LossOptions, of_classes: OfClasses | None
) -> tuple[jax.Array, LossOptions]:
    """Weights and options of a loss that has the same Gauss–Newton product, without `of_classes`.

    The logits' Hessian of Σt·(−log σ) is that of −log σ at any label, Σt times.
    """
    if of_classes is None:
        return weights, options._replace(label_smoothing=0.0)
    s = jnp.asarray(options.label_smoothing, weights.dtype)
    mass = (1 - s) * of_classes.at_label + s * of_classes.mean
    mass = jnp.where(mass == 0, 1e-30, mass)  # z_loss, which is not weighted by class, stays
    return weights * mass, LossOptions(0.0, jnp.asarray(options.z_loss, mass.dtype) / mass)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def weighted_sum(
    operands: Operands, labels: jax.Array | None, weights: jax.Array, static: Static
) -> jax.Array:
    """Σ w·loss; its derivative is a product with the gradient, which is made with the value."""
    terms, constants = row_terms(operands, labels, static.layout)
    return jnp.sum(weighted(weights, loss(terms, constants, static.options)))


@partial(weighted_sum.defjvp, symbolic_zeros=True)
def _weighted_sum_jvp(
    static: Static,
    primals: tuple[Operands, jax.Array | None, jax.Array],
    tangents: tuple[Any, Any, Any],
) -> tuple[jax.Array, jax.Array]:
    operands, labels, weights = primals
    moves = moving(tangents[0])
    static = static._replace(teaches=bool(jax.tree.leaves(moves.teacher)))
    losses, gradient = _value_and_gradient(operands, labels, weights, static)
    total = jnp.sum(weighted(weights, losses))
    products = jax.tree.map(
        lambda t, g: None if t is None else _inner_product(wide(g), wide(t)),
        _learning(moves, static),
        gradient,
        is_leaf=is_none,
    )
    pushed = sum(jax.tree.leaves(products), jnp.zeros_like(total))
    if not isinstance(tangents[2], SymbolicZero):
        pushed = pushed + jnp.sum(countable(weights, losses) * tangents[2])
    return total, pushed


def _inner_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum of a·b, row by row: what a compiler would keep of it otherwise has their size."""
    rows = jnp.einsum("...i,...i->...", *map(jnp.atleast_1d, (a, b)), precision="highest")
    return jnp.sum(rows)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _value_and_gradient(
    operands: Operands, labels: jax.Array | None, weights: jax.Array, static: Static
) -> tuple[jax.Array, Operands]:
    """Losses, and the gradient of Σ w·loss by the operands; by a teacher's only if it is wanted."""
    terms, constants = row_terms(operands, labels, static.layout)
    losses, by_terms = _loss_and_slopes(terms, constants, weights, static.options)

    def visit(start: Start, size: int, _: Head) -> tuple[Start, Operands]:
        block = block_of(operands, start, size)
        held = _learning(block, static)
        return start, _block_gradient(
            block, held, start, labels, terms, by_terms, constants, static.layout
        )

    learning = _learning(operands, static)
    return losses, _gradient_of_blocks(visit, learning, Head(None), static.layout)


def _learning(operands: Operands, static: Static) -> Operands:
    """The operands by which the gradient is wanted."""
    return operands if static.teaches else operands.student


@partial(_value_and_gradient.defjvp, symbolic_zeros=True)
def _value_and_gradient_jvp(
    static: Static,
    primals: tuple[Operands, jax.Array | None, jax.Array],
    tangents: tuple[Any, Any, Any],
) -> tuple[tuple[jax.Array, Operands], tuple[jax.Array, Operands]]:
    operands, labels, weights = primals
    along = tangents[2]
    if isinstance(along, SymbolicZero):
        along = jnp.zeros_like(weights)
    pushed = gradient_pushforward(moving(tangents[0]), along, operands, labels, weights, static)
    return _value_and_gradient(operands, labels, weights, static), pushed


def gradient_pushforward(
    moves: Operands,
    weights_tangent: jax.Array,
    operands: Operands,
    labels: jax.Array | None,
    weights: jax.Array,
    static: Static,
    *,
    hold: bool = False,
) -> tuple[jax.Array, Operands]:
    """The derivative of the losses and of the gradient along `moves`: a Hessian product.

    To `hold` the Jacobian of the logits makes it the Gauss–Newton product.
    """
    layout, options = static.layout, static.options

    def slopes(moved: Operands, weights: jax.Array) -> tuple[Any, ...]:
        terms, constants = row_terms(filled(moved, operands), labels, layout)
        return terms, _loss_and_slopes(terms, constants, weights, options), constants

    at = (at_tangents(operands, moves), weights)
    primal, tangent = jax.jvp(slopes, at, (moves, weights_tangent))
    terms, (_, by_terms), constants = primal
    terms_tangent, (losses_tangent, by_terms_tangent), _ = tangent

    @checkpointed
    def visit(start: Start, size: int, head: Head) -> tuple[Start, Operands]:
        block, tangent = block_of(operands, start, size), Operands(moves.shared, head)

        def gradient(moved: Operands, terms: Terms, by_terms: Terms) -> Operands:
            moved = filled(moved, block)
            held = _learning(block if hold else moved, static)
            return _block_gradient(moved, held, start, labels, terms, by_terms, constants, layout)

        at = (at_tangents(block, tangent), terms, by_terms)
        return start, jax.jvp(gradient, at, (tangent, terms_tangent, by_terms_tangent))[1]

    learning = _learning(operands, static)
    return losses_tangent, _gradient_of_blocks(visit, learning, moves.head, layout)


def _loss_and_slopes(
    terms: Terms, constants: Constants, weights: jax.Array, options: LossOptions
) -> tuple[jax.Array, Terms]:
    """The losses, and the derivatives of Σ w·loss by the terms; None by those it does not use."""
    losses, pullback = jax.vjp(lambda terms: loss(terms, constants, options), terms)
    by_terms = pullback(weights)[0]._replace(target=None)
    if options.is_plain:
        by_terms = by_terms._replace(tail=None, rest=None, peak=None)
    return losses, by_terms


def _block_gradient(
    block: Operands,
    held: Operands,
    start: Any,
    labels: jax.Array | None,
    terms: Terms,
    by_terms: Terms,
    constants: Constants,
    layout: Layout,
) -> Operands:
    """JᵀG of a block: G the gradient by its logits, J their Jacobian by the operands `held`.

    That by the teacher's logits is only made where its operands are among these.
    """
    slopes = slopes_of(both_logits(block), start, labels, terms, constants, layout)
    pairs = zip(by_terms, slopes.student, strict=True)
    by_student = sum(weight * slope for weight, slope in pairs if weight is not None)
    by_teacher = None if held.teacher is None else by_terms.surprise * slopes.teacher.surprise
    held = Operands(wide_shared(held.shared, layout), held.head)
    _, pullback = jax.vjp(both_logits, held)
    return pullback(Logits(by_student, by_teacher))[0]


def _gradient_of_blocks(
    visit: Callable[..., Any], operands: Operands, moves: Head, layout: Layout
) -> Operands:
    """Adds up the blocks' gradients by what is shared, and writes those by the head into place."""

    def written(gradient: Operands, part: tuple[Start, Operands]) -> Operands:
        start, block = part

        def write(into: jax.Array, of_block: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(into, of_block, start, into.ndim - 1)

        shared = jax.tree.map(jnp.add, gradient.shared, block.shared)
        return Operands(shared, jax.tree.map(write, gradient.head, block.head))

    widened = Operands(wide_shared(operands.shared, layout), operands.head)
    gradient = reduce_blocks(visit, written, moves, layout, jax.tree.map(jnp.zeros_like, widened))
    if layout.axis_name is not None:
        gradient = gradient._replace(shared=lax.psum(gradient.shared, layout.axis_name))
    return jax.tree.map(lambda g, a: g.astype(a.dtype), gradient, operands)

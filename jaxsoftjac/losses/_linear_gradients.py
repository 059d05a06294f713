"""The gradient of a weighted sum of losses, made together with them, and its own derivative.

Every block of classes adds to the gradient by `hidden` and writes its part of the gradient by the
kernel into place, so that besides the results only one block of logits is held.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxsoftjac._checks import wide
from jaxsoftjac.losses._arguments import LossOptions
from jaxsoftjac.losses._vocabulary import (
    Layout,
    Operands,
    Terms,
    block_of,
    checkpointed,
    logits_of,
    moving,
    reduce_blocks,
    row_terms,
    slopes_of,
    split,
    varying,
    wide_hidden,
)


class Static(NamedTuple):
    """What is static of a loss."""

    layout: Layout
    options: LossOptions


def loss(terms: Terms, options: LossOptions) -> jax.Array:
    """The loss of each example, [..., 1]."""
    s, z = options.label_smoothing, options.z_loss
    value = (1 - s) * terms.surprise
    if s:
        value = value + s * (terms.log_normalizer - terms.mean)
    return value + z * terms.log_normalizer**2 if z else value


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def weighted_sum(
    operands: Operands, labels: jax.Array, weights: jax.Array, static: Static
) -> jax.Array:
    """Σ w·loss; its derivative is a product with the gradient, which is made with the value."""
    return jnp.sum(weights * loss(row_terms(operands, labels, static.layout), static.options))


@partial(weighted_sum.defjvp, symbolic_zeros=True)
def _(static, primals, tangents):
    operands, labels, weights = primals
    losses, gradient = _value_and_gradient(operands, labels, weights, static)
    total = jnp.sum(weights * losses)
    pushed = jnp.zeros_like(total)
    for name, t in moving(tangents[0]).items():
        pushed = pushed + jnp.sum(wide(gradient[name]) * wide(t))
    if not isinstance(tangents[2], SymbolicZero):
        pushed = pushed + jnp.sum(losses * tangents[2])
    return total, pushed


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _value_and_gradient(
    operands: Operands, labels: jax.Array, weights: jax.Array, static: Static
) -> tuple[jax.Array, Operands]:
    """Losses, and the gradient of Σ w·loss by the operands."""
    terms = row_terms(operands, labels, static.layout)
    losses, by_terms = _loss_and_slopes(terms, weights, static.options)

    def visit(start, size, _):
        block = block_of(operands, start, size)
        return start, _block_gradient(block, start, labels, terms, by_terms, static.layout)

    return losses, _gradient_of_blocks(visit, operands, {}, static.layout)


@partial(_value_and_gradient.defjvp, symbolic_zeros=True)
def _(static, primals, tangents):
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
    labels: jax.Array,
    weights: jax.Array,
    static: Static,
    *,
    hold: bool = False,
) -> tuple[jax.Array, Operands]:
    """The derivative of the losses and of the gradient along `moves`: a Hessian product.

    To `hold` the Jacobian of the logits makes it the Gauss–Newton product.
    """

    def slopes(moved, weights):
        terms = row_terms({**operands, **moved}, labels, static.layout)
        return terms, _loss_and_slopes(terms, weights, static.options)

    at = ({k: operands[k] for k in moves}, weights)
    (terms, (_, by_terms)), (terms_tangent, (losses_tangent, by_terms_tangent)) = jax.jvp(
        slopes, at, (moves, weights_tangent)
    )
    hidden, head = split(moves)

    @checkpointed
    def visit(start, size, head_block):
        block, tangent = block_of(operands, start, size), {**hidden, **head_block}

        def gradient(moved, terms, by_terms):
            moved = {**block, **moved}
            held = block if hold else moved
            return _block_gradient(moved, start, labels, terms, by_terms, static.layout, held)

        at = ({k: block[k] for k in tangent}, terms, by_terms)
        return start, jax.jvp(gradient, at, (tangent, terms_tangent, by_terms_tangent))[1]

    return losses_tangent, _gradient_of_blocks(visit, operands, head, static.layout)


def _loss_and_slopes(terms, weights, options):
    """The losses, and the derivatives of Σ w·loss by the terms."""
    losses, pullback = jax.vjp(partial(loss, options=options), terms)
    return losses, pullback(weights)[0]


def _block_gradient(block, start, labels, terms, by_terms, layout, held=None):
    """JᵀG of a block: G the gradient by its logits, J their Jacobian by the operands `held`."""
    slopes = slopes_of(logits_of(block, layout.softcap), start, labels, terms, layout)
    by_logits = sum(jax.tree.leaves(jax.tree.map(jnp.multiply, by_terms, slopes)))
    held = wide_hidden(block if held is None else held)
    _, pullback = jax.vjp(partial(logits_of, softcap=layout.softcap), held)
    return pullback(by_logits)[0]


def _gradient_of_blocks(visit, operands, moves, layout):
    """Adds up the blocks' gradients by `hidden`, and writes those by the head into their place."""

    def written(gradient, part):
        start, block = part
        into = partial(lax.dynamic_update_slice_in_dim, start_index=start)
        head = {k: into(g, block[k], axis=g.ndim - 1) for k, g in gradient.items() if k != "hidden"}
        return {"hidden": gradient["hidden"] + block["hidden"], **head}

    zeros = jax.tree.map(jnp.zeros_like, wide_hidden(varying(operands, layout)))
    gradient = reduce_blocks(visit, written, moves, layout, zeros)
    if layout.axis_name is not None:
        gradient["hidden"] = lax.psum(gradient["hidden"], layout.axis_name)
    return jax.tree.map(lambda g, a: g.astype(a.dtype), gradient, operands)

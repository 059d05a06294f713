"""What a loss needs of the logits hidden @ kernel + bias, reduced to a few numbers per example.

The logits are computed a block at a time and forgotten. The derivative is a loop over the same
blocks, linear in the tangents.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._rows import LAST, exp_depth, statistics
from jaxsoftjac.losses._blocks import (
    Head,
    Layout,
    Operands,
    Start,
    at_label,
    at_tangents,
    block_of,
    checkpointed,
    filled,
    logits_of,
    moving,
    reduce_blocks,
    wide_shared,
)


class Terms(NamedTuple):
    """Numbers per example, [..., 1], from which every loss is built."""

    surprise: jax.Array  # −log σ at the label, a sum of terms ≥ 0
    tail: jax.Array  # −log σ at the top class where that has more than 0.6, else 0
    rest: jax.Array  # Σ exp(z − top) over all classes but the top one
    descent: Any  # top less the mean of the logits that are not −∞; None unless wanted


class Constants(NamedTuple):
    """Numbers per example, [..., 1], that a derivative takes as given."""

    top: jax.Array  # the largest logit
    count: Any  # of the logits that are not −∞; None unless wanted
    origin: Any  # what was taken from all logits, a number; None for 0


class _Summary(NamedTuple):
    top: jax.Array
    rest: jax.Array
    peak: jax.Array  # the top again, not a constant of differentiation
    at_label: jax.Array
    total: Any
    count: Any


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def row_terms(operands: Operands, labels: jax.Array, layout: Layout) -> tuple[Terms, Constants]:
    """The terms of each example; `labels` [..., 1] are global class numbers."""

    def visit(start: Start, size: int, _: Head) -> _Summary:
        z = logits_of(block_of(operands, start, size))
        return _summary(z, at_label(z, start, labels, layout), layout)

    summary = reduce_blocks(visit, _merged, Head(None), layout)
    return _terms(_across(summary, layout), operands.shared.origin, layout)


@partial(row_terms.defjvp, symbolic_zeros=True)
def _row_terms_jvp(
    layout: Layout, primals: tuple[Operands, jax.Array], tangents: tuple[Any, Any]
) -> tuple[tuple[Terms, Constants], tuple[Terms, Constants]]:
    operands, labels = primals
    terms, constants = row_terms(operands, labels, layout)
    pushed = _pushforward(moving(tangents[0]), operands, labels, terms, constants, layout)
    return (terms, constants), (pushed, jax.tree.map(jnp.zeros_like, constants))


def _pushforward(
    moves: Operands,
    operands: Operands,
    labels: jax.Array,
    terms: Terms,
    constants: Constants,
    layout: Layout,
) -> Terms:
    operands = Operands(wide_shared(operands.shared, layout), operands.head)
    shared = wide_shared(moves.shared, layout)

    @checkpointed
    def visit(start: Start, size: int, head: Head) -> Terms:
        block, tangent = block_of(operands, start, size), Operands(shared, head)
        z, v = jax.jvp(
            lambda moved: logits_of(filled(moved, block)),
            (at_tangents(block, tangent),),
            (tangent,),
        )
        slopes = slopes_of(z, start, labels, terms, constants, layout)
        return jax.tree.map(lambda slope: LAST.sum(slope * v), slopes)

    pushed = reduce_blocks(visit, partial(jax.tree.map, jnp.add), moves.head, layout)
    return pushed if layout.axis_name is None else lax.psum(pushed, layout.axis_name)


def slopes_of(
    z: jax.Array,
    start: Any,
    labels: jax.Array,
    terms: Terms,
    constants: Constants,
    layout: Layout,
) -> Terms:
    """Derivatives of the terms by the logits of a block, [..., block].

    Where a class has most of the row, its σ and σ − 1 come from `tail`, and at the label from
    `surprise`: their derivatives are sums over the other classes, which do not cancel.
    """
    kept = z != -jnp.inf
    unnormalized = exp_depth(z, constants.top)
    sigma = unnormalized / (1 + jnp.where(terms.rest < 0, 0, terms.rest))
    hot = lax.stop_gradient((sigma > 0.55) & (terms.tail > 0))
    sigma = jnp.where(hot, jnp.exp(-terms.tail), sigma)
    is_at_label = at_label(z, start, labels, layout) & kept
    return Terms(
        surprise=jnp.where(is_at_label, _less_one(terms.surprise), sigma),
        tail=jnp.where(terms.tail > 0, jnp.where(hot, jnp.expm1(-terms.tail), sigma), 0),
        rest=unnormalized,
        descent=jnp.where(kept, -1 / constants.count, 0) if layout.mean else None,
    )


def _less_one(surprise: jax.Array) -> jax.Array:
    """e^(−surprise) − 1, in a form whose derivative keeps its digits too."""
    small = jnp.expm1(-jnp.minimum(surprise, 0.5))
    return jnp.where(surprise < 0.5, small, jnp.exp(-surprise) - 1)


def _summary(z: jax.Array, is_at_label: jax.Array, layout: Layout) -> _Summary:
    kept = z != -jnp.inf
    return _Summary(
        *statistics(z, LAST),
        jnp.maximum(jnp.max(z, -1, keepdims=True), float(jnp.finfo(z.dtype).min)),
        LAST.sum(jnp.where(is_at_label, z, 0)),
        LAST.sum(jnp.where(kept, z, 0)) if layout.mean else None,
        LAST.sum(kept.astype(z.dtype)) if layout.mean else None,
    )


def _merged(a: _Summary, b: _Summary) -> _Summary:
    top = jnp.maximum(a.top, b.top)
    a_sum, b_sum = (1 + a.rest) * jnp.exp(a.top - top), (1 + b.rest) * jnp.exp(b.top - top)
    rest = jnp.where(a.top >= b.top, a.rest + b_sum, b.rest + a_sum)
    peak = jnp.where(a.top >= b.top, a.peak, b.peak)
    sums = jax.tree.map(jnp.add, a[3:], b[3:])
    return _Summary(top, rest, peak, *sums)


def _across(summary: _Summary, layout: Layout) -> _Summary:
    """The summary of all slices of the vocabulary; the first with the top class keeps its rest."""
    name = layout.axis_name
    if name is None:
        return summary
    index = lax.axis_index(name)
    top = lax.pmax(lax.stop_gradient(summary.top), name)
    holders = jnp.where(summary.top == top, index, lax.axis_size(name))
    is_holder = lax.pmin(lax.stop_gradient(holders), name) == index
    own = (1 + summary.rest) * jnp.exp(summary.top - top)
    rest = jnp.where(is_holder, summary.rest, own)
    peak = jnp.where(is_holder, summary.peak, 0)
    return _Summary(top, *lax.psum((rest, peak, *summary[3:]), name))


def _terms(summary: _Summary, origin: jax.Array | None, layout: Layout) -> tuple[Terms, Constants]:
    top, rest, peak, at_label, total, count = summary
    log_rest = jnp.log1p(jnp.where(rest < 0, 0, rest))
    tail = jnp.where(rest < 2 / 3, log_rest + (lax.stop_gradient(peak) - peak), 0)
    if not layout.mean:
        return Terms((top - at_label) + log_rest, tail, rest, None), Constants(top, None, origin)
    descent = jnp.where(count == 0, 0, top - total / jnp.maximum(count, 1))
    count = jnp.maximum(count, 1)
    return Terms((top - at_label) + log_rest, tail, rest, descent), Constants(top, count, origin)

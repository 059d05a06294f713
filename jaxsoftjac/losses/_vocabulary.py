"""What a loss needs of the logits hidden @ kernel + bias, reduced to a few numbers per example.

The logits are computed a block at a time and forgotten. The derivative is a loop over the same
blocks, linear in the tangents.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._row_functions import log1p_rest
from jaxsoftjac._rows import LAST
from jaxsoftjac.losses._blocks import (
    Head,
    Layout,
    Logits,
    Operands,
    Start,
    at_label,
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
from jaxsoftjac.losses._running import (
    Running,
    across,
    merged,
    peak_of,
    running,
    shares_of,
    tail_of,
    tail_slope,
)
from jaxsoftjac.losses._target_terms import (
    TargetSummary,
    merged_targets,
    slopes_by_student,
    slopes_by_teacher,
    target_across,
    target_summary,
    target_terms,
)


class Terms(NamedTuple):
    """Numbers per example, [..., 1], from which every loss is built."""

    surprise: jax.Array  # −Σ t·log σ of the target t, a sum of terms ≥ 0
    tail: Any  # −log σ at the top class where that has more than 0.6, else 0
    rest: Any  # Σ exp(z − top) over all classes but the top one
    peak: Any  # the largest logit; a constant of differentiation where there is no tail
    descent: Any  # top less the mean of the logits that are not −∞; None unless wanted
    target: Any = None  # the `TargetTerms`; None for labels


class Constants(NamedTuple):
    """Numbers per example, [..., 1], that a derivative takes as given."""

    top: jax.Array  # the largest logit
    count: Any  # of the logits that are not −∞; None unless wanted
    origin: Any  # what was taken from all logits, a number; None for 0
    target: Any = None  # the `TargetConstants`; None for labels


class _Sums(NamedTuple):
    at_label: Any  # None for a teacher
    total: Any  # of the logits, each times `Layout.share`
    count: Any


class _Summary(NamedTuple):
    row: Running
    sums: _Sums
    target: TargetSummary | None  # None for labels


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def row_terms(
    operands: Operands, labels: jax.Array | None, layout: Layout
) -> tuple[Terms, Constants]:
    """The terms of each example; `labels` [..., 1] are global class numbers, None for a teacher."""

    def visit(start: Start, size: int, _: Head) -> _Summary:
        return _summary(both_logits(block_of(operands, start, size)), start, labels, layout)

    summary = reduce_blocks(visit, partial(_merged, layout=layout), Head(None), layout)
    return _terms(_across(summary, layout), operands.shared.origin, layout)


@partial(row_terms.defjvp, symbolic_zeros=True)
def _row_terms_jvp(
    layout: Layout, primals: tuple[Operands, jax.Array | None], tangents: tuple[Any, Any]
) -> tuple[tuple[Terms, Constants], tuple[Terms, Constants]]:
    operands, labels = primals
    terms, constants = row_terms(operands, labels, layout)
    pushed = _pushforward(moving(tangents[0]), operands, labels, terms, constants, layout)
    return (terms, constants), (pushed, jax.tree.map(jnp.zeros_like, constants))


def _pushforward(
    moves: Operands,
    operands: Operands,
    labels: jax.Array | None,
    terms: Terms,
    constants: Constants,
    layout: Layout,
) -> Terms:
    operands = Operands(wide_shared(operands.shared, layout), operands.head)
    shared = wide_shared(moves.shared, layout)

    @checkpointed
    def visit(start: Start, size: int, head: Head) -> Terms:
        block, tangent = block_of(operands, start, size), Operands(shared, head)
        logits, along = jax.jvp(
            lambda moved: both_logits(filled(moved, block)),
            (at_tangents(block, tangent),),
            (tangent,),
        )
        does_move = [bool(jax.tree.leaves(part)) for part in (tangent.student, tangent.teacher)]
        along = Logits(*(v if moves else None for v, moves in zip(along, does_move, strict=True)))
        return _summed(slopes_of(logits, start, labels, terms, constants, layout), along)

    pushed = reduce_blocks(visit, partial(jax.tree.map, jnp.add), moves.head, layout)
    pushed = pushed if layout.axis_name is None else lax.psum(pushed, layout.axis_name)
    return filled(pushed, jax.tree.map(jnp.zeros_like, terms))


def _summed(slopes: Logits, along: Logits) -> Terms:
    """The terms' derivatives by the logits that move, along these; None where there is none."""

    def total(*by_logits: jax.Array | None) -> jax.Array | None:
        pairs = zip(by_logits, along, strict=False)
        found = [LAST.sum(slope * v) for slope, v in pairs if slope is not None and v is not None]
        return sum(found[1:], found[0]) if found else None

    by_logits = [terms for terms in slopes if terms is not None]
    return jax.tree.map(total, *by_logits, is_leaf=is_none)


def slopes_of(
    logits: Logits,
    start: Any,
    labels: Any,
    terms: Terms,
    constants: Constants,
    layout: Layout,
) -> Logits:
    """Derivatives of the terms by the student's and the teacher's logits of a block; None for 0.

    At the label the derivative of the surprise is −(1 − σ) from the surprise itself, whose own
    derivative is a sum over the other classes, which does not cancel.
    """
    z, t = logits
    kept, shares = z != -jnp.inf, shares_of(z, constants.top, terms.rest, terms.tail)
    target = by_teacher = None
    if terms.target is not None:
        of_target = terms.target, constants.target
        surprise, target = slopes_by_student(kept, shares, t, *of_target)
        by_t = slopes_by_teacher((z, t), constants.top, terms.rest, *of_target)
        by_teacher = Terms(by_t[0], None, None, None, None, by_t[1])
    else:
        is_at_label = at_label(z, start, labels, layout) & kept
        surprise = jnp.where(is_at_label, _less_one(terms.surprise), shares.sigma)
    by_student = Terms(
        surprise=surprise,
        tail=tail_slope(shares, terms.rest),
        rest=shares.unnormalized,
        peak=shares.is_hot.astype(z.dtype),
        descent=jnp.where(kept, -1 / constants.count, 0) if layout.mean else None,
        target=target,
    )
    return Logits(by_student, by_teacher)


def _less_one(surprise: jax.Array) -> jax.Array:
    """e^(−surprise) − 1, in a form whose derivative keeps its digits too."""
    small = jnp.expm1(-jnp.minimum(surprise, 0.5))
    return jnp.where(surprise < 0.5, small, jnp.exp(-surprise) - 1)


def _summary(logits: Logits, start: Any, labels: jax.Array | None, layout: Layout) -> _Summary:
    z, t = logits
    kept, row = z != -jnp.inf, running(z)
    sums = _Sums(
        None if labels is None else LAST.sum(jnp.where(at_label(z, start, labels, layout), z, 0)),
        LAST.sum(jnp.where(kept, layout.share * z, 0)) if layout.mean else None,
        LAST.sum(kept.astype(z.dtype)) if layout.mean else None,
    )
    return _Summary(row, sums, None if t is None else target_summary(z, t, row, layout.unit))


def _merged(a: _Summary, b: _Summary, layout: Layout) -> _Summary:
    row, target = merged(a.row, b.row), None
    if a.target is not None and b.target is not None:
        students = a.row, b.row
        target = merged_targets(a.target, b.target, students, row.top, layout.unit)
    return _Summary(row, jax.tree.map(jnp.add, a.sums, b.sums), target)


def _across(summary: _Summary, layout: Layout) -> _Summary:
    """The summary of all slices of the vocabulary."""
    name, target = layout.axis_name, summary.target
    if name is None:
        return summary
    row, _ = across(summary.row, name)
    if target is not None:
        target = target_across(target, summary.row, row.top, layout.unit, name)
    return _Summary(row, lax.psum(summary.sums, name), target)


def _terms(summary: _Summary, origin: jax.Array | None, layout: Layout) -> tuple[Terms, Constants]:
    (top, rest, _), (at_label, total, count), target = summary
    descent = of_target = constants = None
    if target is None:
        surprise = (top - at_label) + log1p_rest(rest)
    else:
        surprise, of_target, constants = target_terms(target, rest, layout.unit)
    if layout.mean:
        descent = jnp.where(count == 0, 0, top - total / (layout.share * jnp.maximum(count, 1)))
        count = jnp.maximum(count, 1)
    terms = Terms(surprise, tail_of(summary.row), rest, peak_of(summary.row), descent, of_target)
    return terms, Constants(top, count, origin, constants)

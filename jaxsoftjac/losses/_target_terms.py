"""What a target p that is a teacher's softmax makes of the logits z of a student.

The cross-entropy is Σ p (top − z) + log(1 + rest), a sum of terms ≥ 0. The sum is `fall`; it is
found in one pass over the blocks of both logits, from the largest of each so far: where the
student's rises by δ, the fall grows by δ times the mass of p.

By the teacher's logits the derivative is p·((top − z) − fall). Where the teacher is sure of one
class that difference cancels there, and is `−lead` instead: the lead is measured from the student's
logit of that class.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._row_functions import log1p_rest
from jaxsoftjac._rows import LAST, depth, exp_depth, half_depth
from jaxsoftjac.losses._running import (
    Running,
    Shares,
    across,
    has_tail,
    merged,
    running,
    shares_of,
    tail_of,
    tail_slope,
)


class TargetTerms(NamedTuple):
    """Numbers per example, [..., 1]."""

    tail: Any  # of the teacher's row, as of the student's; None for a derivative that is 0
    rest: Any
    fall: jax.Array  # Σ p (top − z) over the classes that the student keeps
    lead: jax.Array  # Σ p (z of the teacher's top class − z) where that is hot, else 0


class TargetConstants(NamedTuple):
    """Numbers per example, [..., 1], that a derivative takes as given."""

    top: jax.Array  # the teacher's largest logit
    lost: jax.Array  # Σ p over the classes that the student excludes


class _Sums(NamedTuple):
    """Fall and lead are in a unit in which sums of differences of logits are finite."""

    fall: jax.Array
    lead: jax.Array
    lost: jax.Array


class TargetSummary(NamedTuple):
    """Of the classes seen so far; its sums weigh a class by exp(t − top), t its teacher's logit."""

    row: Running  # the teacher's
    anchor: jax.Array  # the student's logit of the teacher's top class, in the same unit
    sums: _Sums


def target_summary(z: jax.Array, t: jax.Array, student: Running, unit: float) -> TargetSummary:
    """The summary of one block, whose statistics of z are `student`; numbers times `unit`.

    A class that will be hot is the only one near the top of its block. Otherwise the anchor, the
    mean of those that are, is a number like any other to measure from.
    """
    row, kept = running(t), z != -jnp.inf
    weight, finite = exp_depth(t, row.top), jnp.where(kept, unit * z, 0)
    is_near = lax.stop_gradient(weight > 0.75)
    count = LAST.sum(is_near.astype(z.dtype))
    anchor = LAST.sum(jnp.where(is_near, finite, 0)) / jnp.maximum(count, 1)
    of_kept = jnp.where(kept, weight, 0)
    fall = LAST.sum(of_kept * jnp.where(kept, -depth(unit * z, unit * student.top), 0))
    lead = LAST.sum(of_kept * jnp.where(is_near & (count == 1), 0, anchor - finite))
    return TargetSummary(row, anchor, _Sums(fall, lead, LAST.sum(jnp.where(kept, 0, weight))))


def merged_targets(
    a: TargetSummary,
    b: TargetSummary,
    students: tuple[Running, Running],
    top: jax.Array,
    unit: float,
) -> TargetSummary:
    """The summary of both, whose largest logit of the student is `top`."""
    row = merged(a.row, b.row)
    anchor = jnp.where(a.row.top >= b.row.top, a.anchor, b.anchor)
    parts = zip((a, b), students, strict=True)
    sums = (_measured_from(part, of_z, top, row.top, anchor, unit) for part, of_z in parts)
    return TargetSummary(row, anchor, jax.tree.map(jnp.add, *sums))


def target_across(
    target: TargetSummary, student: Running, top: jax.Array, unit: float, axis_name: str
) -> TargetSummary:
    """The summary of all slices of the vocabulary; `student` is that of this one."""
    row, is_holder = across(target.row, axis_name)
    anchor = lax.psum(jnp.where(is_holder, target.anchor, 0), axis_name)
    sums = _measured_from(target, student, top, row.top, anchor, unit)
    return TargetSummary(row, anchor, lax.psum(sums, axis_name))


def _measured_from(
    target: TargetSummary,
    student: Running,
    top: jax.Array,
    teacher_top: jax.Array,
    anchor: jax.Array,
    unit: float,
) -> _Sums:
    """The sums of a part of the classes, from the tops and the anchor of more of them."""
    fall, lead, lost = target.sums
    scale = jnp.exp(target.row.top - teacher_top)
    mass = scale * (1 + target.row.rest - lost)
    rise = jnp.where(student.rest < 0, 0, -depth(unit * student.top, unit * top))
    return _Sums(
        scale * fall + rise * mass,
        scale * lead + (anchor - target.anchor) * mass,
        scale * lost,
    )


def target_terms(
    target: TargetSummary, rest: jax.Array, unit: float
) -> tuple[jax.Array, TargetTerms, TargetConstants]:
    """The cross-entropy of a student of this `rest`, the terms and the constants."""
    row = target.row
    fall, lead, lost = (a / (1 + row.rest) for a in target.sums)
    fall, lead, lost = fall / unit, lead / unit, lax.stop_gradient(lost)
    surprise = fall + (1 - lost) * log1p_rest(rest) + jnp.where(lost > 0, jnp.inf, 0)
    lead = jnp.where(has_tail(row.rest), lead, 0)
    return surprise, TargetTerms(tail_of(row), row.rest, fall, lead), TargetConstants(row.top, lost)


def slopes_by_student(
    kept: jax.Array, student: Shares, t: jax.Array, terms: TargetTerms, constants: TargetConstants
) -> tuple[jax.Array, TargetTerms]:
    """The derivatives of the cross-entropy and of the terms by z; None for 0.

    Where both are sure of one class, σ − p is (σ − 1) − (p − 1), which keeps its digits.
    """
    p = shares_of(t, constants.top, terms.rest, terms.tail)
    are_hot = student.is_hot & p.is_hot
    apart = jnp.where(are_hot, student.less_one - p.less_one, student.sigma - p.sigma)
    surprise = jnp.where(kept, apart - constants.lost * student.sigma, 0)
    lead = jnp.where(has_tail(terms.rest), -jnp.where(p.is_hot, p.less_one, p.sigma), 0)
    fall = jnp.where(kept, -p.sigma, 0)
    return surprise, TargetTerms(None, None, fall, jnp.where(kept, lead, 0))


def slopes_by_teacher(
    logits: tuple[jax.Array, jax.Array],
    top: jax.Array,
    rest: jax.Array,
    terms: TargetTerms,
    constants: TargetConstants,
) -> tuple[jax.Array, TargetTerms]:
    """The derivatives of the cross-entropy and of the terms by t."""
    z, t = logits
    p, kept, lost = (
        shares_of(t, constants.top, terms.rest, terms.tail),
        z != -jnp.inf,
        constants.lost,
    )
    beyond = jnp.where(kept, -half_depth(z, top), 0) - 0.5 * terms.fall
    fall = 2 * (p.sigma * jnp.where(p.is_hot & (lost == 0), -0.5 * terms.lead, beyond))
    surprise = fall + p.sigma * log1p_rest(rest) * (lost - jnp.where(kept, 0, 1))
    lead = jnp.where(has_tail(terms.rest), fall, 0)
    return surprise, TargetTerms(tail_slope(p, terms.rest), p.unnormalized, fall, lead)

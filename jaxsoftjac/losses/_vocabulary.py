"""What a loss needs of the logits hidden @ kernel + bias, vocabulary block by vocabulary block.

The logits are computed a block at a time, reduced to a few numbers per example, and forgotten. The
derivative is a scan over the same blocks, linear in the tangents, its body under `jax.checkpoint`:
what JAX makes of it in any mode and order holds one block of logits as well.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxsoftjac._checks import wide, working_dtype
from jaxsoftjac._rows import LAST, exp_depth, first_class, is_label, statistics
from jaxsoftjac._rules import recomputed, varying

Start = int | jax.Array  # the first class of a block


class Shared(NamedTuple):
    """What all blocks of the vocabulary share; None for a tangent that is not there."""

    hidden: Any  # [..., D]
    softcap: Any = None  # a number, or None for no cap
    origin: Any = None  # a number from which the bias is measured, a constant; None for 0


class Head(NamedTuple):
    """The layer of which each block has its own part; its last axis is the vocabulary."""

    kernel: Any  # [D, V]
    bias: Any = None  # [V], or None


class Operands(NamedTuple):
    """What the logits are made of, or its tangents."""

    shared: Shared
    head: Head


class Layout(NamedTuple):
    """What is static: the vocabulary is cut into a first block, then `blocks` of equal size."""

    first: int
    size: int
    blocks: int
    mean: bool = False  # whether the mean of the logits is wanted
    axis_name: str | None = None  # mapped axis over which the vocabulary is split


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


def checkpointed(visit: Callable[..., Any]) -> Callable[..., Any]:
    """The visit of a block, computed again where it is differentiated.

    The size is bound first: `jax.checkpoint` keeps a function with static arguments for good, and
    with it the tracers that it has closed over.
    """

    def again(start: Start, size: int, head: Head) -> Any:
        return recomputed(lambda start, head: visit(start, size, head))(start, head)

    return again


def logits_dtype(operands: Operands) -> jnp.dtype:
    """The working dtype of the logits."""
    dtypes = operands.shared.hidden.dtype, operands.head.kernel.dtype
    return working_dtype(max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits))


def logits_of(operands: Operands) -> jax.Array:
    """Logits in the working dtype, c·tanh(y/c) if capped; −∞ where the bias is."""
    (hidden, softcap, origin), (kernel, bias) = operands
    dtype = logits_dtype(operands)
    if hidden.dtype != kernel.dtype:
        hidden, kernel = hidden.astype(dtype), kernel.astype(dtype)
    y = jnp.matmul(hidden, kernel, preferred_element_type=dtype)
    if bias is None:
        return _capped(y, softcap)
    bias = jnp.expand_dims(bias.astype(dtype), tuple(range(y.ndim - 1)))
    if softcap is None:
        return y + (bias if origin is None else bias - origin)
    is_excluded = bias == -jnp.inf
    return jnp.where(is_excluded, -jnp.inf, _capped(y + jnp.where(is_excluded, 0, bias), softcap))


def _capped(y: jax.Array, softcap: jax.Array | None) -> jax.Array:
    if softcap is None:
        return y
    softcap = softcap.astype(y.dtype)
    return softcap * jnp.tanh(y / softcap)


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


def moving(tangents: Operands) -> Operands:
    """The tangents, None for those that are known to be 0."""
    return jax.tree.map(
        lambda t: None if isinstance(t, SymbolicZero) else t,
        tangents,
        is_leaf=lambda t: isinstance(t, SymbolicZero),
    )


def at_tangents(operands: Any, moves: Any) -> Any:
    """The operands that move, None for the others."""
    return jax.tree.map(lambda t, a: None if t is None else a, moves, operands, is_leaf=_is_none)


def filled(moved: Any, operands: Any) -> Any:
    """The operands, those that move in their place."""
    return jax.tree.map(lambda m, a: a if m is None else m, moved, operands, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


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


def wide_shared(shared: Shared, layout: Layout) -> Shared:
    """In its working dtype and as a value of each slice: its cotangents are added up in that."""
    return jax.tree.map(lambda a: varying(wide(a), layout.axis_name), shared)


def block_of(operands: Operands, start: Any, size: int) -> Operands:
    """The operands of the logits of `size` classes from `start` on, read in place."""

    def take(a: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(a, start, size, a.ndim - 1)

    return Operands(operands.shared, jax.tree.map(take, operands.head))


def _less_one(surprise: jax.Array) -> jax.Array:
    """e^(−surprise) − 1, in a form whose derivative keeps its digits too."""
    small = jnp.expm1(-jnp.minimum(surprise, 0.5))
    return jnp.where(surprise < 0.5, small, jnp.exp(-surprise) - 1)


def reduce_blocks(
    visit: Callable[..., Any],
    combine: Callable[[Any, Any], Any],
    moving: Head,
    layout: Layout,
    init: Any = None,
) -> Any:
    """Combines visit(start, size, moving block) over all blocks of the classes, after `init`.

    `moving`, tangents of the head, is scanned over, so that its transpose writes each block once.
    """

    def step(total: Any, x: tuple[jax.Array, Head]) -> tuple[Any, None]:
        i, block = x
        return combine(total, visit(layout.first + i * layout.size, layout.size, block)), None

    total = visit(0, layout.first, jax.tree.map(lambda a: a[..., : layout.first], moving))
    total = total if init is None else combine(init, total)
    if not layout.blocks:
        return total
    stacked = jax.tree.map(lambda a: _stacked(a[..., layout.first :], layout), moving)
    return lax.scan(step, total, (jnp.arange(layout.blocks), stacked))[0]


def _stacked(a: jax.Array, layout: Layout) -> jax.Array:
    return jnp.moveaxis(a.reshape(*a.shape[:-1], layout.blocks, layout.size), -2, 0)


def at_label(z: jax.Array, start: Any, labels: jax.Array, layout: Layout) -> jax.Array:
    """Where the block of logits that starts at class `start` has the label."""
    slice_size = layout.first + layout.blocks * layout.size
    first = jnp.asarray(first_class(slice_size, layout.axis_name), labels.dtype)
    return is_label(labels, z, z.ndim - 1, first + jnp.asarray(start, labels.dtype))


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

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
from jaxsoftjac._rows import LAST, first_class, is_label
from jaxsoftjac._rules import recomputed
from jaxsoftjac._rules import varying as as_varying
from jaxsoftjac.functions import rest_of_sum

Operands = dict[str, jax.Array]  # hidden [..., D], kernel [D, V], and bias [V] if there is one


class Layout(NamedTuple):
    """What is static: the vocabulary is cut into a first block, then `count` of equal size."""

    first: int
    size: int
    count: int
    softcap: float | None = None
    mean: bool = False  # whether the mean of the logits is wanted
    axis_name: str | None = None  # mapped axis over which the vocabulary is split


class Terms(NamedTuple):
    """Numbers per example, [..., 1], from which every loss is built."""

    surprise: jax.Array  # −log σ at the label, a sum of terms ≥ 0
    tail: jax.Array  # −log σ at the top class where that has more than 0.6, else 0
    log_normalizer: jax.Array
    mean: Any  # of the logits that are not −∞, and their count; None unless wanted
    count: Any


class _Summary(NamedTuple):
    top: jax.Array
    rest: jax.Array  # Σ exp(z − top) over all classes but the top one
    at_label: jax.Array
    total: Any
    count: Any


# Recomputes a block where it is differentiated; the size of the block is static.
checkpointed = recomputed(static_argnums=(1,))


def logits_dtype(operands: Operands) -> jnp.dtype:
    """The working dtype of the logits."""
    dtypes = operands["hidden"].dtype, operands["kernel"].dtype
    return working_dtype(max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits))


def logits_of(operands: Operands, softcap: float | None) -> jax.Array:
    """Logits in the working dtype, c·tanh(y/c) if capped, of all classes in `operands`."""
    hidden, kernel, dtype = operands["hidden"], operands["kernel"], logits_dtype(operands)
    if hidden.dtype != kernel.dtype:
        hidden, kernel = hidden.astype(dtype), kernel.astype(dtype)
    y = jnp.matmul(hidden, kernel, preferred_element_type=dtype)
    if "bias" in operands:
        bias = operands["bias"].astype(y.dtype)
        y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
    return y if softcap is None else softcap * jnp.tanh(y / softcap)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def row_terms(operands: Operands, labels: jax.Array, layout: Layout) -> Terms:
    """The terms of each example; `labels` [..., 1] are global class numbers."""

    def visit(start, size, _):
        z = logits_of(block_of(operands, start, size), layout.softcap)
        return _summary(z, _at_label(z, start, labels, layout), layout)

    summary = reduce_blocks(visit, _merged, {}, layout)
    return _terms(_across(summary, layout), layout)


@partial(row_terms.defjvp, symbolic_zeros=True)
def _(layout, primals, tangents):
    operands, labels = primals
    terms = row_terms(operands, labels, layout)
    return terms, _pushforward(moving(tangents[0]), operands, labels, terms, layout)


def moving(tangents: Operands) -> Operands:
    """The tangents that are not known to be 0."""
    return {k: t for k, t in tangents.items() if not isinstance(t, SymbolicZero)}


def _pushforward(moves, operands, labels, terms, layout):
    operands = wide_hidden(varying(operands, layout))
    hidden, head = split(wide_hidden(varying(moves, layout)))

    @checkpointed
    def visit(start, size, head_block):
        block, tangent = block_of(operands, start, size), {**hidden, **head_block}
        z, v = jax.jvp(
            lambda moved: logits_of({**block, **moved}, layout.softcap),
            ({k: block[k] for k in tangent},),
            (tangent,),
        )
        slopes = slopes_of(z, start, labels, terms, layout)
        return jax.tree.map(lambda slope: LAST.sum(slope * v), slopes)

    pushed = reduce_blocks(visit, partial(jax.tree.map, jnp.add), head, layout)
    return pushed if layout.axis_name is None else lax.psum(pushed, layout.axis_name)


def slopes_of(z: jax.Array, start: Any, labels: jax.Array, terms: Terms, layout: Layout) -> Terms:
    """Derivatives of the terms by the logits of a block, [..., block].

    Where a class has most of the row, its σ and σ − 1 come from `tail`, and at the label from
    `surprise`: their derivatives are sums over the other classes, which do not cancel.
    """
    sigma = jnp.exp(z - terms.log_normalizer)
    hot = lax.stop_gradient((sigma > 0.55) & (terms.tail > 0))
    sigma = jnp.where(hot, jnp.exp(-terms.tail), sigma)
    at_label = _at_label(z, start, labels, layout)
    return Terms(
        surprise=jnp.where(at_label, _less_one(terms.surprise), sigma),
        tail=jnp.where(terms.tail > 0, jnp.where(hot, jnp.expm1(-terms.tail), sigma), 0),
        log_normalizer=sigma,
        mean=jnp.where(z == -jnp.inf, 0, 1 / terms.count) if layout.mean else None,
        count=jnp.zeros_like(z) if layout.mean else None,
    )


def split(operands: Operands) -> tuple[Operands, Operands]:
    """`hidden`, which all blocks share, and the head, of which each has its own."""
    hidden = {k: a for k, a in operands.items() if k == "hidden"}
    return hidden, {k: a for k, a in operands.items() if k != "hidden"}


def wide_hidden(operands: Operands) -> Operands:
    """`hidden` in its working dtype: what it shares with all blocks is added up in that."""
    return {k: wide(a) if k == "hidden" else a for k, a in operands.items()}


def block_of(operands: Operands, start: Any, size: int) -> Operands:
    """The operands of the logits of `size` classes from `start` on, read in place."""

    def take(a):
        return lax.dynamic_slice_in_dim(a, start, size, a.ndim - 1)

    return {k: a if k == "hidden" else take(a) for k, a in operands.items()}


def _less_one(surprise):
    """e^(−surprise) − 1, in a form whose derivative keeps its digits too."""
    small = jnp.expm1(-jnp.minimum(surprise, 0.5))
    return jnp.where(surprise < 0.5, small, jnp.exp(-surprise) - 1)


def reduce_blocks(
    visit: Callable, combine: Callable, moving: Operands, layout: Layout, init: Any = None
) -> Any:
    """Combines visit(start, size, moving block) over all blocks of the classes, after `init`.

    `moving`, tangents of the kernel and the bias, is scanned over, so that its transpose writes
    each block once.
    """

    def step(total, x):
        i, block = x
        return combine(total, visit(layout.first + i * layout.size, layout.size, block)), None

    total = visit(0, layout.first, {k: a[..., : layout.first] for k, a in moving.items()})
    total = total if init is None else combine(init, total)
    if not layout.count:
        return total
    stacked = {k: _stacked(a[..., layout.first :], layout) for k, a in moving.items()}
    return lax.scan(step, total, (jnp.arange(layout.count), stacked))[0]


def _stacked(a, layout):
    return jnp.moveaxis(a.reshape(*a.shape[:-1], layout.count, layout.size), -2, 0)


def _at_label(z: jax.Array, start: Any, labels: jax.Array, layout: Layout) -> jax.Array:
    """Where the block of logits that starts at class `start` has the label."""
    slice_size = layout.first + layout.count * layout.size
    return is_label(labels, z, z.ndim - 1, start + first_class(slice_size, layout.axis_name))


def _summary(z, at_label, layout):
    top = jnp.max(z, -1, keepdims=True)
    kept = z != -jnp.inf
    return _Summary(
        top,
        rest_of_sum(z - jnp.where(top == -jnp.inf, 0, top), LAST),
        LAST.sum(jnp.where(at_label, z, 0)),
        LAST.sum(jnp.where(kept, z, 0)) if layout.mean else None,
        LAST.sum(kept.astype(z.dtype)) if layout.mean else None,
    )


def _merged(a, b):
    top = jnp.maximum(a.top, b.top)
    shift = jnp.where(top == -jnp.inf, 0, top)
    a_scale, b_scale = jnp.exp(a.top - shift), jnp.exp(b.top - shift)
    rest = jnp.where(
        a.top >= b.top, a.rest + (1 + b.rest) * b_scale, b.rest + (1 + a.rest) * a_scale
    )
    sums = jax.tree.map(jnp.add, a[2:], b[2:])
    return _Summary(top, rest, *sums)


def _across(summary, layout):
    """The summary of all slices of the vocabulary; the first with the top class keeps its rest."""
    name = layout.axis_name
    if name is None:
        return summary
    index = lax.axis_index(name)
    top = lax.pmax(lax.stop_gradient(summary.top), name)
    holders = jnp.where(summary.top == top, index, lax.axis_size(name))
    is_holder = lax.pmin(lax.stop_gradient(holders), name) == index
    top = lax.psum(jnp.where(is_holder, summary.top, 0), name)
    scale = jnp.exp(summary.top - jnp.where(top == -jnp.inf, 0, top))
    rest = jnp.where(is_holder, summary.rest, (1 + summary.rest) * scale)
    return _Summary(top, *lax.psum((rest, *summary[2:]), name))


def _terms(summary, layout):
    top, rest, at_label, total, count = summary
    log_rest = jnp.log1p(rest)
    mean = total / jnp.maximum(count, 1) if layout.mean else None
    tail = jnp.where(rest < 2 / 3, log_rest, 0)
    return Terms((top - at_label) + log_rest, tail, top + log_rest, mean, count)


def varying(operands: Operands, layout: Layout) -> Operands:
    """`hidden` as a value of each slice: its cotangents are added over the slices once, at last."""
    if layout.axis_name is None or "hidden" not in operands:
        return operands
    return {**operands, "hidden": as_varying(operands["hidden"], layout.axis_name)}

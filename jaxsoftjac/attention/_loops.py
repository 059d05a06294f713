"""The loops of attention: over blocks of keys, inside one over blocks of queries."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxsoftjac._rules import recomputed
from jaxsoftjac.attention._layout import Group, Places, Plan, Sight, groups_of, joined

Carry = TypeVar("Carry")
Block = TypeVar("Block")


def over_keys(
    step: Callable[[Carry, Block, jax.Array | None, jax.Array], Carry],
    carry: Carry,
    blocks: Block,
    sight: Sight,
    places: Places,
    group: Group,
) -> Carry:
    """`step` over the blocks of keys, except those that no query sees.

    A derivative keeps nothing of a step and computes it again. The second checkpoint, inside the
    branch, keeps JAX from storing what the branch computes. A further branch, without a mask for
    blocks that all queries see, would gain little time and cost much compilation.
    """
    size, span = jax.tree.leaves(blocks)[0].shape[-2], sight.span
    xs = blocks, sight.mask, places.positions
    if group.reach < places.positions.shape[0]:
        first = sight.first_block
        xs = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, group.reach), xs)

    @recomputed
    def body(carry: Carry, x: tuple[Block, jax.Array | None, jax.Array]) -> tuple[Carry, None]:
        block, mask, position = x
        if span is None:
            return step(carry, block, mask, position), None
        visit = recomputed(partial(_step_in_span, step, size))
        if not group.skips:
            return visit(carry, block, mask, span, position), None
        sees = _anywhere(_sees(span, position, size))
        return lax.cond(sees, visit, _skip, carry, block, mask, span, position), None

    if xs[2].shape[0] == 1:  # one block needs no loop
        return body(carry, jax.tree.map(lambda x: x[0], xs))[0]
    return lax.scan(body, carry, xs)[0]


def _sees(span: tuple[jax.Array, jax.Array], position: jax.Array, size: int) -> jax.Array:
    """Whether any query sees any key of the block."""
    start, stop = span
    begin = jnp.min(jnp.where(start < stop, start, jnp.iinfo(start.dtype).max))
    return (begin < position + size) & (jnp.max(stop) > position)


@custom_vmap
def _anywhere(sees: jax.Array) -> jax.Array:
    """The condition itself; under vmap whether it holds for any example, the same for all.

    If it differed between examples, `lax.cond` would compute both branches, and its derivative
    would fail: JAX puts a stop_gradient there, which has no transpose.
    """
    return sees


@_anywhere.def_vmap
def _anywhere_vmap(size: int, is_mapped: list[bool], sees: jax.Array) -> tuple[jax.Array, bool]:
    return _anywhere(jnp.any(sees, 0)), False


def _skip(carry: Carry, *_: object) -> Carry:
    return carry


def _step_in_span(
    step: Callable[[Carry, Block, jax.Array | None, jax.Array], Carry],
    size: int,
    carry: Carry,
    block: Block,
    mask: jax.Array | None,
    span: tuple[jax.Array, jax.Array],
    position: jax.Array,
) -> Carry:
    """A step, in which a query sees the keys of its span only."""
    start, stop = span
    place = position + lax.broadcasted_iota(start.dtype, (1, 1, 1, 1, size), 4)
    seen = (place >= start) & (place < stop)
    return step(carry, block, seen if mask is None else seen & mask, position)


def over_queries(
    function: Callable[[Group, Block], tuple[jax.Array, ...]], blocks: Block, plan: Plan, size: int
) -> tuple[jax.Array, ...]:
    """`function` of every block of queries; its first result [B, T, N, D], the others [B, T, N]."""
    results = []
    for group in groups_of(plan, size):
        of_block = partial(function, group)
        part = jax.tree.map(lambda x, group=group: x[group.blocks], blocks)
        if 0 < plan.queries <= plan.query_block:
            one = of_block(jax.tree.map(lambda x: x[0], part))
            results.append(jax.tree.map(lambda x: x[None], one))
        else:
            results.append(lax.map(recomputed(of_block), part))
    output, *columns = (joined(jnp.concatenate(x), plan) for x in zip(*results, strict=True))
    return output, *(x[..., 0] for x in columns)

"""The loops of attention: over blocks of keys, inside one over blocks of queries."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxsoftjac._rules import recomputed
from jaxsoftjac.attention._layout import (
    Block,
    Group,
    Index,
    Places,
    Plan,
    Sight,
    groups_of,
    joined,
    tile,
)

Carry = TypeVar("Carry")
Moves = TypeVar("Moves")


def over_keys(
    step: Callable[[Carry, Index, Block, Moves, jax.Array | None], Carry],
    carry: Carry,
    sight: Sight,
    places: Places,
    group: Group,
    blocks: Callable[[Index], Block],
    moves: Callable[[Index], Moves],
) -> Carry:
    """`step` over the `blocks` of keys, except those that no query sees.

    A derivative keeps nothing of a step and computes it again. What the step is linear in, `moves`,
    is taken outside of that: there the transpose of a slice adds to its place. The second
    checkpoint, inside the branch, keeps JAX from storing what the branch computes. A further
    branch, without a mask for blocks that all queries see, would gain little time and cost much
    compilation.
    """

    @recomputed
    def visited(carry: Carry, i: Index, moved: Moves) -> Carry:
        block, mask = blocks(i), tile(sight.mask, i)
        if sight.span is None:
            return step(carry, i, block, moved, mask)
        visit = recomputed(partial(_step_in_span, step, places.size))
        if not group.skips:
            return visit(carry, i, block, moved, mask, sight.span)
        sees = _anywhere(_sees(sight.span, i * places.size, places.size))
        return lax.cond(sees, visit, _skip, carry, i, block, moved, mask, sight.span)

    def body(carry: Carry, i: Index) -> tuple[Carry, None]:
        return visited(carry, i, moves(i)), None

    if places.blocks == 0:
        return carry
    if places.blocks == 1:  # one block needs no loop
        return body(carry, 0)[0]
    numbers = jnp.arange(group.reach, dtype=jnp.int32)
    if group.reach < places.blocks:
        numbers = numbers + jnp.minimum(sight.first_block, places.blocks - group.reach)
    return lax.scan(body, carry, numbers)[0]


def _sees(span: tuple[jax.Array, jax.Array], position: Index, size: int) -> jax.Array:
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
    step: Callable[[Carry, Index, Block, Moves, jax.Array | None], Carry],
    size: int,
    carry: Carry,
    i: Index,
    block: Block,
    moved: Moves,
    mask: jax.Array | None,
    span: tuple[jax.Array, jax.Array],
) -> Carry:
    """A step, in which a query sees the keys of its span only."""
    start, stop = span
    place = i * size + lax.broadcasted_iota(start.dtype, (1, 1, 1, 1, size), 4)
    seen = (place >= start) & (place < stop)
    return step(carry, i, block, moved, seen if mask is None else seen & mask)


def over_queries(
    function: Callable[[Group, Index, Moves], tuple[jax.Array, ...]],
    moves: Callable[[Index], Moves],
    plan: Plan,
    size: int,
) -> tuple[jax.Array, ...]:
    """`function` of the numbers of the blocks of queries, and of the `moves` that it is linear in.

    Its first result becomes [B, T, N, D], the others [B, T, N].
    """
    results = []
    for group in groups_of(plan, size):
        of_block = recomputed(partial(function, group))

        def of_number(i: Index, of_block: Callable = of_block) -> tuple[jax.Array, ...]:
            return of_block(i, moves(i))

        if plan.queries <= plan.query_block:
            results.append(jax.tree.map(lambda x: x[None], of_number(0)))
        else:
            results.append(lax.map(of_number, jnp.arange(group.blocks.start, group.blocks.stop)))
    output, *columns = (joined(jnp.concatenate(x), plan) for x in zip(*results, strict=True))
    return output, *(x[..., 0] for x in columns)

"""The loops of attention, over the tiles that some query sees."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxsoftjac._rules import recomputed
from jaxsoftjac.attention._layout import Index, Plan, Sight, map_at, rows_at, tiles_of

Carry = TypeVar("Carry")


def over_tiles(
    step: Callable[[Carry, Index, Index, bool], Carry], carry: Carry, plan: Plan, size: int
) -> Carry:
    """`step` over tiles, by the numbers of their queries and keys and whether all see all."""
    for pairs, is_whole in zip(tiles_of(plan, size), (True, False), strict=True):

        def body(
            carry: Carry, pair: tuple[Index, Index], is_whole: bool = is_whole
        ) -> tuple[Carry, None]:
            return step(carry, *pair, is_whole), None

        if len(pairs) == 1:  # one tile needs no loop
            carry = body(carry, tuple(pairs[0].tolist()))[0]
        elif len(pairs):
            carry = lax.scan(body, carry, tuple(jnp.asarray(pairs.T, jnp.int32)))[0]
    return carry


def in_sight(
    function: Callable[..., Any],
    nothing: Callable[..., Any],
    sight: Sight,
    plan: Plan,
    size: int,
) -> Callable[..., Any]:
    """`function` of a tile's numbers, which keys are seen there (None for all) and more arrays.

    It is `nothing` of these arrays where no query sees any key. A derivative keeps of it these
    arrays only, and computes the rest again. The second checkpoint, inside the branch, keeps JAX
    from storing what the branch computes.
    """

    def visit(is_whole: bool, i: Index, j: Index, *x: Any) -> Any:
        mask = map_at(sight.mask, i, j, plan)
        if is_whole or sight.span is None:
            return function(i, j, mask, *x)
        start, stop = span = rows_at(sight.span, i, plan)

        def within(*x: Any) -> Any:
            place = j * size + lax.broadcasted_iota(start.dtype, (1, 1, 1, 1, size), 4)
            seen = (place >= start) & (place < stop)
            return function(i, j, seen if mask is None else seen & mask, *x)

        if not plan.has_lengths and plan.axis_name is None:
            return within(*x)
        return lax.cond(_anywhere(_sees(span, j * size, size)), recomputed(within), nothing, *x)

    return lambda is_whole, *x: recomputed(partial(visit, is_whole))(*x)


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

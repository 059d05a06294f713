"""Attention of checked arrays, tile by tile: the primal, and the tangent program of every mode.

Both are loops over tiles, a block of queries with a block of keys, so that no array holds a number
per query and key. The tangent program is linear in the tangents and computes the probabilities
again from two numbers per query, exp(score − top) / total: the logarithm of their product would
lose what the size of the scores eats. Its transpose, by JAX, is the backward pass.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, G = N / K, H and D features.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._rows import soft_capped
from jaxsoftjac._rules import recomputed
from jaxsoftjac.attention._dropout import dropped
from jaxsoftjac.attention._layout import (
    Blocks,
    Fixed,
    Index,
    Operands,
    Plan,
    Sight,
    added,
    by_head,
    by_query,
    joined,
    operand_blocks,
    put,
    rows_at,
    sight_of,
    tile_of,
)
from jaxsoftjac.attention._loops import in_sight, over_tiles

_Arrays = tuple[jax.Array, ...]


class Rows(NamedTuple):
    """What is known of each query's row of scores; `total` is 0 where the query sees no key."""

    output: jax.Array  # Σⱼ pⱼ(vⱼ − origin), [B, T, N, D]
    total: jax.Array  # Σⱼ exp(scoreⱼ − top), [B, T, N]
    top: jax.Array  # the greatest score, [B, T, N]; a constant to every derivative


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def attend(operands: Operands, fixed: Fixed, plan: Plan) -> Rows:
    """The rows of all queries, by an online softmax."""
    size = plan.key_blocks[0]
    blocks, sight = operand_blocks(operands, plan, size), sight_of(fixed, plan, size)

    def function(i: Index, j: Index, seen: jax.Array | None, top: jax.Array) -> _Arrays:
        """The top score now, what earlier sums are worth, Σp, and Σp(v − origin)."""
        s, v = _scores(tile_of(blocks, i, j, plan, size), sight, seen, plan)
        new_top = lax.stop_gradient(jnp.maximum(top, jnp.max(s, -1, keepdims=True)))
        p = jnp.exp(s - new_top)
        kept, total = jnp.exp(top - new_top), jnp.sum(p, -1, keepdims=True)
        return new_top, kept, total, _mix(_kept(p, sight, i, j, plan, size), v, plan)

    def nothing(top: jax.Array) -> _Arrays:
        return top, jnp.ones_like(top), *_zeros(rows_at(blocks.query, 0, plan), blocks.value)

    visited = in_sight(function, nothing, sight, plan, size)

    def step(carry: _Arrays, i: Index, j: Index, is_whole: bool) -> _Arrays:
        top, *sums = rows_at(carry, i, plan)
        new_top, kept, *parts = visited(is_whole, i, j, top)
        new = new_top, *(x * kept + part for x, part in zip(sums, parts, strict=True))
        return tuple(put(x, part, i, plan) for x, part in zip(carry, new, strict=True))

    zero, zeros = _zeros(blocks.query, blocks.value)
    carry = zero + float(jnp.finfo(zero.dtype).min), zero, zeros
    top, total, acc = over_tiles(step, carry, plan, size)
    return Rows(*_joined((acc / _nonzero(total), total, top), plan))


@attend.defjvp
def _attend_jvp(
    plan: Plan, primals: tuple[Operands, Fixed], tangents: tuple[Operands, Fixed]
) -> tuple[Rows, Rows]:
    rows = attend(*primals, plan)
    output, total = _push(tangents[0], *primals, rows, plan)
    return rows, Rows(output, total, jnp.zeros_like(rows.top))


@recomputed(static_argnums=(4,))
def _push(pushed: Operands, operands: Operands, fixed: Fixed, done: Rows, plan: Plan) -> _Arrays:
    """Tangents of output and total, linear in `pushed`, the tangents of the operands.

    ȯ = Σ p(ṡ − s̄)(v − o) + Σ p v̇, and total·s̄, where s̄ = Σpṡ. The softmax part is PᵀDP with
    P = I − 1pᵀ, D = diag(p), in this direction and in the transpose. Sums are of e = p·total, which
    is at most 1, and are divided by the total once per query.
    """
    size = plan.key_blocks[1]
    blocks, moves = (operand_blocks(x, plan, size) for x in (operands, pushed))
    sight = sight_of(fixed, plan, size)
    # What fills up a block of queries has no scores near its top, so that it weighs nothing.
    highest = float(jnp.finfo(done.top.dtype).max)
    columns = (done.output, 0), (done.total[..., None], 0), (done.top[..., None], highest)
    output, total, top = (by_query(by_head(x, plan), plan, fill) for x, fill in columns)
    share = 1 / _nonzero(total)
    is_one_block = plan.keys <= size  # its mean is that of all, found without a loop of its own

    def pushed_scores(i: Index, j: Index, seen: jax.Array | None) -> _Arrays:
        scores = partial(_scores, sight=sight, seen=seen, plan=plan)
        tile, moved = (tile_of(x, i, j, plan, size) for x in (blocks, moves))
        (s, v), (s_tangent, v_tangent) = jax.jvp(scores, (tile,), (moved,))
        return jnp.exp(s - rows_at(top, i, plan)), s_tangent, v, v_tangent

    def mean_of(e: jax.Array, s_tangent: jax.Array, i: Index) -> jax.Array:
        return rows_at(share, i, plan) * jnp.sum(e * s_tangent, -1, keepdims=True)

    def part_of_mean(i: Index, j: Index, seen: jax.Array | None) -> _Arrays:
        e, s_tangent, _, _ = pushed_scores(i, j, seen)
        return (mean_of(e, s_tangent, i),)

    def centred(i: Index, j: Index, seen: jax.Array | None) -> _Arrays:
        """Σw and Σ(wv + ev̇), and the mean of ṡ where it is found here."""
        e, s_tangent, v, v_tangent = pushed_scores(i, j, seen)
        of_tile = mean_of(e, s_tangent, i) if is_one_block else rows_at(mean, i, plan)
        w = e * (s_tangent - of_tile)
        rest = jnp.sum(w, -1, keepdims=True)
        w, e = (_kept(x, sight, i, j, plan, size) for x in (w, e))
        acc = _mix(w, v, plan) + _mix(e, v_tangent, plan)
        return (rest, acc, of_tile) if is_one_block else (rest, acc)

    def over_all(function: Callable[..., _Arrays], sums: _Arrays) -> _Arrays:
        def nothing() -> _Arrays:
            return jax.tree.map(jnp.zeros_like, rows_at(sums, 0, plan))

        visited = in_sight(function, nothing, sight, plan, size)

        def step(sums: _Arrays, i: Index, j: Index, is_whole: bool) -> _Arrays:
            pairs = zip(sums, visited(is_whole, i, j), strict=True)
            return tuple(added(x, part, i, plan) for x, part in pairs)

        return over_tiles(step, sums, plan, size)

    zero, zeros = _zeros(blocks.query, blocks.value)
    if is_one_block:
        rest, acc, mean = over_all(centred, (zero, zeros, zero))
    else:
        (mean,) = over_all(part_of_mean, (zero,))
        rest, acc = over_all(centred, (zero, zeros))
    return _joined((share * (acc - rest * output), total * mean + rest), plan)


def _joined(rows: _Arrays, plan: Plan) -> _Arrays:
    """An array per query and feature, and others per query, which lose their last axis."""
    output, *columns = (joined(x, plan) for x in rows)
    return output, *(x[..., 0] for x in columns)


def _nonzero(total: jax.Array) -> jax.Array:
    """1 for a row without keys, whose other sums are 0."""
    return jnp.where(total == 0, 1, total)


# Of one tile: q [B, K, G, T, H], k [B, K, S, H], v [B, K, S, D] and scores [B, K, G, T, S].


def _scores(
    tile: Blocks, sight: Sight, seen: jax.Array | None, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """Scores, −∞ where a key is not seen, and the values, from their origins.

    Where some keys are not seen, in this tile or another, what is NaN or ∞ in a query, key or value
    is moved into its scores as ∞: what is multiplied by p = 0 stays finite, and a query that does
    see it is NaN.
    """
    q = tile.query * plan.scale
    k, v = tile.key - sight.key_origin, tile.value - sight.value_origin
    poison = None
    if sight.mask is not None or sight.span is not None:
        poison = _poison(q) + jnp.swapaxes(_poison(k) + _poison(v), 2, 3)[:, :, None]
        q, k, v = _finite(q), _finite(k), _finite(v)
    s = jnp.einsum("bkgth,bksh->bkgts", q, k, precision=plan.precision)
    cap = plan.softcap if tile.softcap is None else tile.softcap
    if cap is not None:
        s = soft_capped(s, cap)
    if tile.bias is not None:
        s = s + tile.bias
    if poison is not None:
        s = s + poison
    return s if seen is None else jnp.where(seen, s, -jnp.inf), v


def _kept(p: jax.Array, sight: Sight, i: Index, j: Index, plan: Plan, size: int) -> jax.Array:
    """The weights that dropout keeps."""
    return dropped(p, sight.dropout, rows_at(sight.bits, i, plan), j * size)


def _mix(p: jax.Array, v: jax.Array, plan: Plan) -> jax.Array:
    return jnp.einsum("bkgts,bksd->bkgtd", p, v, precision=plan.precision)


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _poison(x: jax.Array) -> jax.Array:
    """∞ where a vector is not finite, else 0."""
    return jnp.where(jnp.all(jnp.isfinite(x), -1, keepdims=True), 0, jnp.inf).astype(x.dtype)


def _zeros(q: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Zeros per query, and per query and feature of the values, sharded as q."""
    zero = jnp.zeros_like(q[..., :1])
    return zero, jnp.broadcast_to(zero, (*zero.shape[:-1], v.shape[-1]))

"""Attention of checked arrays, block by block: the primal, and the tangent program of every mode.

Both are scans over blocks of keys inside a map over blocks of queries, so that no array holds a
number per query and key. The tangent program is linear in the tangents and computes the
probabilities again from two numbers per query, exp(score − top) / total: the logarithm of their
product would lose what the size of the scores eats. Its transpose, by JAX, is the backward pass.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, G = N / K, H and D features.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._rows import soft_capped
from jaxsoftjac._rules import recomputed
from jaxsoftjac.attention._dropout import dropped
from jaxsoftjac.attention._layout import (
    Fixed,
    Group,
    Index,
    KeyBlock,
    Keys,
    Operands,
    Places,
    Plan,
    QueryBlock,
    Sight,
    by_head,
    by_query,
    fixed_blocks,
    operand_blocks,
    query_block,
)
from jaxsoftjac.attention._loops import over_keys, over_queries

_Sums = tuple[jax.Array, jax.Array, jax.Array]  # the top, Σp and Σp(v − origin) so far
_Centred = tuple[jax.Array, jax.Array, jax.Array]  # the mean of ṡ, Σw and Σ(wv + ev̇) so far


class Rows(NamedTuple):
    """What is known of each query's row of scores; `total` is 0 where the query sees no key."""

    output: jax.Array  # Σⱼ pⱼ(vⱼ − origin), [B, T, N, D]
    total: jax.Array  # Σⱼ exp(scoreⱼ − top), [B, T, N]
    top: jax.Array  # the greatest score, [B, T, N]; a constant to every derivative


class Queries(NamedTuple):
    """A block of queries times `scale`, and what is added to the scores of those with NaN or ∞."""

    query: jax.Array  # [B, K, G, T, H]
    poison: jax.Array | None  # 0, or ∞ where a query is not finite; None where all keys are seen


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def attend(operands: Operands, fixed: Fixed, plan: Plan) -> Rows:
    """The rows of all queries, by an online softmax."""
    size = plan.key_blocks[0]
    rows, keys = operand_blocks(operands, plan, size)
    sight, places = fixed_blocks(fixed, plan, size)

    def function(group: Group, i: Index, _: None) -> Rows:
        of_block = query_block((rows, sight), i, plan)
        return _softmax_rows(*of_block, keys, places, plan, group)

    return Rows(*over_queries(function, lambda _: None, plan, size))


@attend.defjvp
def _attend_jvp(
    plan: Plan, primals: tuple[Operands, Fixed], tangents: tuple[Operands, Fixed]
) -> tuple[Rows, Rows]:
    rows = attend(*primals, plan)
    output, total = _push(tangents[0], *primals, rows, plan)
    return rows, Rows(output, total, jnp.zeros_like(rows.top))


@recomputed(static_argnums=(4,))
def _push(
    pushed: Operands, operands: Operands, fixed: Fixed, done: Rows, plan: Plan
) -> tuple[jax.Array, ...]:
    """Tangents of output and total, linear in `pushed`, the tangents of the operands."""
    size = plan.key_blocks[1]
    primals, tangents = (operand_blocks(x, plan, size) for x in (operands, pushed))
    sight, places = fixed_blocks(fixed, plan, size)
    # What fills up a block of queries has no scores near its top, so that it weighs nothing.
    highest = float(jnp.finfo(done.top.dtype).max)
    columns = (done.output, 0), (done.total[..., None], 0), (done.top[..., None], highest)
    done = Rows(*(by_query(by_head(x, plan), plan, fill) for x, fill in columns))
    keys = primals[1], tangents[1]

    def function(group: Group, i: Index, moved: QueryBlock) -> tuple[jax.Array, jax.Array]:
        rows, of_rows, of_sight = query_block((primals[0], done, sight), i, plan)
        return _push_rows(rows, moved, of_rows, of_sight, keys, places, plan, group)

    return over_queries(function, lambda i: query_block(tangents[0], i, plan), plan, size)


# One block of queries, q [B, K, G, T, H], over blocks of keys [B, K, S, H]: scores [B, K, G, T, S].


def _softmax_rows(
    rows: QueryBlock, sight: Sight, keys: Keys, places: Places, plan: Plan, group: Group
) -> Rows:
    """The top score so far, and Σp and Σp(v − origin) relative to it."""
    queries = _scaled(rows.query, sight, plan)

    def step(carry: _Sums, i: Index, block: KeyBlock, _: None, seen: jax.Array | None) -> _Sums:
        top, total, acc = carry
        s, v = _scores(queries, block, keys.softcap, seen, places, plan)
        new_top = lax.stop_gradient(jnp.maximum(top, jnp.max(s, -1, keepdims=True)))
        p, kept = jnp.exp(s - new_top), jnp.exp(top - new_top)
        total = total * kept + jnp.sum(p, -1, keepdims=True)
        p = dropped(p, places.dropout, sight.bits, i * places.size)
        return new_top, total, acc * kept + _mix(p, v, plan)

    zero, zeros = _zeros(queries.query, keys.value)
    carry = zero + float(jnp.finfo(zero.dtype).min), zero, zeros
    top, total, acc = over_keys(
        step, carry, sight, places, group, partial(keys.block, places.size, rows), lambda _: None
    )
    return Rows(acc / _nonzero(total), total, top)


def _push_rows(
    rows: QueryBlock,
    pushed: QueryBlock,
    done: Rows,
    sight: Sight,
    keys: tuple[Keys, Keys],
    places: Places,
    plan: Plan,
    group: Group,
) -> tuple[jax.Array, jax.Array]:
    """ȯ = Σ p(ṡ − s̄)(v − o) + Σ p v̇, and total·s̄, where s̄ = Σpṡ.

    The softmax part is PᵀDP with P = I − 1pᵀ, D = diag(p), in this direction and in the transpose.
    Sums are of e = p·total, which is at most 1, and are divided by the total once per query.
    """
    scaled = partial(_scaled, sight=sight, plan=plan)
    queries, pushed_queries = jax.jvp(scaled, (rows.query,), (pushed.query,))
    share = 1 / _nonzero(done.total)

    def pushed_scores(
        block: KeyBlock, moved: KeyBlock, seen: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        scores = partial(_scores, seen=seen, places=places, plan=plan)
        primals = queries, block, keys[0].softcap
        (s, v), (s_tangent, v_tangent) = jax.jvp(
            scores, primals, (pushed_queries, moved, keys[1].softcap)
        )
        return jnp.exp(s - done.top), s_tangent, v, v_tangent

    def add_mean(
        mean: jax.Array, _: Index, block: KeyBlock, moved: KeyBlock, seen: jax.Array | None
    ) -> jax.Array:
        e, s_tangent, _, _ = pushed_scores(block, moved, seen)
        return mean + jnp.sum(e * s_tangent, -1, keepdims=True)

    def add_centred(
        carry: _Centred, i: Index, block: KeyBlock, moved: KeyBlock, seen: jax.Array | None
    ) -> _Centred:
        mean, rest, acc = carry
        e, s_tangent, v, v_tangent = pushed_scores(block, moved, seen)
        if is_one_block:  # its mean is that of all, found without a loop of its own
            mean = share * jnp.sum(e * s_tangent, -1, keepdims=True)
        w = e * (s_tangent - mean)
        rest = rest + jnp.sum(w, -1, keepdims=True)
        w, e = (dropped(x, places.dropout, sight.bits, i * places.size) for x in (w, e))
        return mean, rest, acc + _mix(w, v, plan) + _mix(e, v_tangent, plan)

    over_blocks = partial(
        over_keys,
        sight=sight,
        places=places,
        group=group,
        blocks=partial(keys[0].block, places.size, rows),
        moves=partial(keys[1].block, places.size, pushed),
    )
    zero, zeros = _zeros(queries.query, keys[0].value)
    is_one_block = group.reach == 1
    mean = zero if is_one_block else share * over_blocks(add_mean, zero)
    mean, rest, acc = over_blocks(add_centred, (mean, zero, zeros))
    return share * (acc - rest * done.output), done.total * mean + rest


def _nonzero(total: jax.Array) -> jax.Array:
    """1 for a row without keys, whose other sums are 0."""
    return jnp.where(total == 0, 1, total)


def _scaled(q: jax.Array, sight: Sight, plan: Plan) -> Queries:
    """The scaled queries. Under a mask those with NaN or ∞ become 0, and their scores poisoned."""
    q = q * plan.scale
    if sight.mask is None and sight.span is None:
        return Queries(q, None)
    return Queries(_finite(q), _poison(q))


def _scores(
    queries: Queries,
    block: KeyBlock,
    softcap: jax.Array | None,
    seen: jax.Array | None,
    places: Places,
    plan: Plan,
) -> tuple[jax.Array, jax.Array]:
    """Scores, −∞ where a key is not seen, and the values, from their origins.

    Where some keys are not seen, a NaN or ∞ of a key or value is moved into its scores as ∞: what
    is multiplied by p = 0 stays finite, and a query that does see it is NaN.
    """
    k, v = block.key - places.key_origin, block.value - places.value_origin
    poison = queries.poison
    if seen is not None:
        of_keys = jnp.swapaxes(_poison(k) + _poison(v), 2, 3)[:, :, None]
        poison = of_keys if poison is None else poison + of_keys
        k, v = _finite(k), _finite(v)
    s = jnp.einsum("bkgth,bksh->bkgts", queries.query, k, precision=plan.precision)
    cap = plan.softcap if softcap is None else softcap
    if cap is not None:
        s = soft_capped(s, cap)
    if block.bias is not None:
        s = s + block.bias
    if poison is not None:
        s = s + poison
    return s if seen is None else jnp.where(seen, s, -jnp.inf), v


def _mix(p: jax.Array, v: jax.Array, plan: Plan) -> jax.Array:
    return jnp.einsum("bkgts,bksd->bkgtd", p, v, precision=plan.precision)


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _poison(x: jax.Array) -> jax.Array:
    """∞ where a vector is not finite, else 0."""
    return jnp.where(jnp.all(jnp.isfinite(x), -1, keepdims=True), 0, jnp.inf).astype(x.dtype)


def _zeros(q: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Zeros [B, K, G, T, 1] and [B, K, G, T, D], sharded as q."""
    zero = jnp.zeros_like(q[..., :1])
    return zero, jnp.broadcast_to(zero, (*zero.shape[:-1], v.shape[-1]))

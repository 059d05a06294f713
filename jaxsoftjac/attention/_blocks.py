"""Attention of checked arrays, block by block: the primal, and the tangent program of every mode.

Both are scans over blocks of keys inside a map over blocks of queries, so that no array holds a
number per query and key. The tangent program is linear in the tangents and computes the
probabilities again from the log-sum-exp; its transpose, by JAX, is the backward pass.

Letters in shapes: B batch, T queries, S keys, N heads, K key heads, G = N / K, H and D features.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxsoftjac._rules import recomputed
from jaxsoftjac.attention._layout import (
    Fixed,
    Operands,
    Plan,
    by_head,
    by_query,
    groups_of,
    in_blocks,
    joined,
    operand_blocks,
)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def attend(operands: Operands, fixed: Fixed, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Σⱼ pⱼ(vⱼ − origin), [B, T, N, D], and logsumexpⱼ of the scores, [B, T, N].

    A query that sees no key gets 0 and −∞.
    """
    size = plan.key_blocks[0]
    return _map(_softmax_rows, *in_blocks(operands, fixed, plan, size), plan, size)


@attend.defjvp
def _(plan, primals, tangents):
    (operands, fixed), (pushed, _) = primals, tangents
    result = attend(operands, fixed, plan)
    return result, _push(pushed, operands, fixed, result, plan)


@recomputed(static_argnums=(4,))
def _push(pushed, operands, fixed, result, plan):
    """Tangents of the result, linear in `pushed`, the tangents of the operands."""
    size = plan.key_blocks[1]
    rows, keys = in_blocks(operands, fixed, plan, size)
    row_tangents, key_tangents = operand_blocks(pushed, plan, size)
    o, lse = result
    done = tuple(by_query(by_head(x, plan), plan) for x in (o, lse[..., None]))
    rows, keys = (rows, done, row_tangents), (keys, key_tangents)
    return _map(_push_rows, rows, keys, plan, size)


# One block of queries, q [B, K, G, T, H], over blocks of keys [B, K, S, H]: scores [B, K, G, T, S].


def _softmax_rows(rows, keys, plan, reach):
    """The online softmax: the top score so far, and Σp and Σp(v − origin) relative to it."""
    (q, bias), limits = rows
    (k, v), positions, origins = keys
    queries = _scaled(q, limits, plan)

    def step(carry, operands, seen):
        top, total, acc = carry
        s, v = _scores(queries, operands, seen, origins, plan)
        new_top = jnp.maximum(top, jnp.max(s, -1, keepdims=True))
        p, kept = jnp.exp(s - new_top), jnp.exp(top - new_top)
        total = total * kept + jnp.sum(p, -1, keepdims=True)
        return new_top, total, acc * kept + _mix(p, v)

    zero, zeros = _zeros(queries[0], v)
    carry = zero + float(jnp.finfo(zero.dtype).min), zero, zeros
    top, total, acc = _scan(step, carry, (k, v, bias), limits, positions, reach)
    return acc / jnp.where(total == 0, 1, total), top + jnp.log(total)


def _push_rows(rows, keys, plan, reach):
    """ȯ = Σ p(ṡ − s̄)(v − o) + Σ p v̇ and the mean s̄ = Σpṡ, which is the tangent of logsumexp.

    The softmax part is PᵀDP with P = I − 1pᵀ, D = diag(p), in this direction and in the transpose.
    """
    ((q, bias), limits), (o, lse), (q_tangent, bias_tangent) = rows
    ((k, v), positions, origins), (k_tangent, v_tangent) = keys
    queries, queries_tangent = jax.jvp(lambda q: _scaled(q, limits, plan), (q,), (q_tangent,))
    lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)  # p = 0 where no key is seen

    def pushed_scores(block, seen):
        scores = partial(_scores, seen=seen, origins=origins, plan=plan)
        primals, tangents = (queries, block[0]), (queries_tangent, block[1])
        (s, v), (s_tangent, v_tangent) = jax.jvp(scores, primals, tangents)
        return jnp.exp(s - lse), s_tangent, v, v_tangent

    def add_mean(mean, block, seen):
        p, s_tangent, _, _ = pushed_scores(block, seen)
        return mean + jnp.sum(p * s_tangent, -1, keepdims=True)

    def add_centred(carry, block, seen):
        p, s_tangent, v, v_tangent = pushed_scores(block, seen)
        w = p * (s_tangent - mean)
        return carry[0] + jnp.sum(w, -1, keepdims=True), carry[1] + _mix(w, v) + _mix(p, v_tangent)

    zero, zeros = _zeros(queries[0], v)
    blocks = (k, v, bias), (k_tangent, v_tangent, bias_tangent)
    mean = _scan(add_mean, zero, blocks, limits, positions, reach)
    rest, acc = _scan(add_centred, (zero, zeros), blocks, limits, positions, reach)
    return acc - rest * o, mean + rest


def _scaled(q, limits, plan):
    """The queries times `scale`; in presence of masks 0 for those with NaN or ∞, and which."""
    mask, span, _ = limits
    q = q * plan.scale
    return (q, None) if mask is None and span is None else (_finite(q), _spoilt(q))


def _scores(queries, operands, seen, origins, plan):
    """Scores, −∞ where a key is not seen, and the values, from their origins.

    Where some keys are not seen, a NaN or ∞ of a key or value is moved into its scores: what is
    multiplied by p = 0 stays finite, and a query that does see it is NaN.
    """
    (q, spoilt), (k, v, bias) = queries, operands
    k, v = k - origins[0], v - origins[1]
    if seen is not None:
        spoilt = spoilt + jnp.swapaxes(_spoilt(k) + _spoilt(v), 2, 3)[:, :, None]
        k, v = _finite(k), _finite(v)
    s = jnp.einsum("bkgth,bksh->bkgts", q, k)
    if plan.softcap is not None:
        s = plan.softcap * jnp.tanh(s / plan.softcap)
    if bias is not None:
        s = s + bias
    if spoilt is not None:
        s = s + spoilt
    return s if seen is None else jnp.where(seen, s, -jnp.inf), v


def _mix(p, v):
    return jnp.einsum("bkgts,bksd->bkgtd", p, v)


def _finite(x):
    return jnp.where(jnp.isfinite(x), x, 0)


def _spoilt(x):
    """NaN where a vector is not finite, else 0."""
    return jnp.where(jnp.all(jnp.isfinite(x), -1, keepdims=True), 0, jnp.nan).astype(x.dtype)


def _zeros(q, v):
    """Zeros [B, K, G, T, 1] and [B, K, G, T, D], sharded as q."""
    zero = jnp.zeros_like(q[..., :1])
    return zero, jnp.broadcast_to(zero, (*zero.shape[:-1], v.shape[-1]))


def _scan(step, carry, blocks, limits, positions, reach) -> Any:
    """`step` over the blocks of keys, except those that no query sees.

    Nothing of a step is kept for a derivative, which computes it again. The second checkpoint, in
    the branch, keeps JAX from handing on what it computes. Another branch, without a mask for
    blocks that all queries see, gains 1 % of time on a CPU and costs much compilation.
    """
    mask, span, first = limits
    size = jax.tree.leaves(blocks)[0].shape[-2]
    xs = blocks, mask, positions
    if reach < positions.shape[0]:
        xs = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, reach), xs)

    @recomputed
    def body(carry, x):
        block, mask, position = x
        if span is None:
            return step(carry, block, mask), None
        visit = recomputed(partial(_step_in_span, step, size))
        sees = _anywhere(_sees(span, position, size))
        return lax.cond(sees, visit, _skip, carry, block, mask, span, position), None

    return lax.scan(body, carry, xs)[0]


def _sees(span, position, size):
    """Whether any query sees any key of the block."""
    start, stop = span
    begin = jnp.min(jnp.where(start < stop, start, jnp.iinfo(start.dtype).max))
    return (begin < position + size) & (jnp.max(stop) > position)


@custom_vmap
def _anywhere(sees):
    """A truth that is one for all examples under vmap.

    By one that differs `lax.cond` would compute both branches, and its derivative would fail: JAX
    puts a stop_gradient there, which has no transpose.
    """
    return sees


@_anywhere.def_vmap
def _(size, is_mapped, sees):
    return _anywhere(jnp.any(sees, 0)), False


def _skip(carry, *_):
    return carry


def _step_in_span(step, size, carry, block, mask, span, position):
    start, stop = span
    place = position + lax.broadcasted_iota(start.dtype, (1, 1, 1, 1, size), 4)
    seen = (place >= start) & (place < stop)
    return step(carry, block, seen if mask is None else seen & mask)


def _map(function, rows, keys, plan, size):
    """`function` of every block of queries; its two results as [B, T, N, D] and [B, T, N]."""
    results = []
    for group, reach in groups_of(plan, size):
        of_block = partial(lambda reach, row: function(row, keys, plan, reach), reach)
        blocks = jax.tree.map(lambda x, group=group: x[group], rows)
        if 0 < plan.queries <= plan.query_block:
            one = of_block(jax.tree.map(lambda x: x[0], blocks))
            results.append(jax.tree.map(lambda x: x[None], one))
        else:
            results.append(lax.map(recomputed(of_block), blocks))
    o, lse = jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)
    return joined(o, plan), joined(lse, plan)[..., 0]

"""`dot_product_attention`: arguments in, blocks through, results put together."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, wide
from jaxsoftjac.attention._arguments import (
    band_of,
    broadcastable,
    check_operands,
    checked_sink,
    plan_of,
    span_of,
)
from jaxsoftjac.attention._blocks import attend
from jaxsoftjac.attention._layout import Fixed, Operands


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | jax.Array | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    logit_softcap: float | None = None,
    block_size: int | tuple[int, int] | None = None,
    return_residual: bool = False,
    sink: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Any:
    """Attention of each head: softmax(QKᵀ·scale + bias) V, as jax.nn.dot_product_attention.

    The scores exist in blocks only: memory is O(T + S) in jvp, vjp and every nesting, and blocks
    that `is_causal`, the window or the lengths empty are not computed. The softmax part of the
    derivatives is PᵀDP with P = I − 1pᵀ, D = diag(p), on keys and values from which their mean is
    taken: their common part costs no digits.

    Cost: O(T·S·H) time. Bias and its gradient are as large as the bias that is given.

    Args:
        query: shape [B, T, N, H] or [T, N, H].
        key: shape [B, S, K, H] or [S, K, H]; each key head serves N / K heads.
        value: shape [B, S, K, D] or [S, K, D].
        bias: added to the scores, after `logit_softcap`; its four axes broadcast to [B, N, T, S].
        mask: boolean, likewise; True where a query sees a key.
        scale: factor of QKᵀ, 1/√H by default.
        is_causal: query t sees keys 0 … t.
        query_seq_lengths: integers [B]; queries from there on give 0.
        key_value_seq_lengths: integers [B]; keys from there on are not seen.
        local_window_size: (l, r), or one int for both: query t sees keys t − l … t + r.
        logit_softcap: c > 0 makes the scores c·tanh(QKᵀ·scale / c).
        block_size: queries and keys of a block, (b, c) or one int; by default suited to caches.
        return_residual: also return the logsumexp of each query's scores.
        sink: [N], one more score per head, whose probability goes to no value.
        axis_name: mapped axis (`shard_map`, `vmap`) over which keys, values, bias and mask are
            split in equal slices along S; each device holds all queries, and lengths and places
            are global. Only arrays of the size of the queries are communicated.

    Returns:
        Array [B, T, N, D] (or [T, N, D]) in the dtype of `query`; with `return_residual` a pair
        with logsumexp [B, T, N], differentiable too. A query that sees no key gives 0 and −∞, with
        gradient 0. Keys and values that no query sees are ignored, NaN included; a NaN or ∞ that a
        query sees makes its row NaN.

    Raises:
        TypeError: an array is boolean or complex, the dtypes of query, key and value differ,
            `mask` is not boolean, or lengths are not integers.
        ValueError: shapes do not fit each other, or an option is out of range.
    """
    q, k, v = (as_real(n, x) for n, x in (("query", query), ("key", key), ("value", value)))
    check_operands(q, k, v)
    unbatched, dtype = q.ndim == 3, q.dtype
    if unbatched:
        q, k, v = q[None], k[None], v[None]
    B, T, N, H = q.shape
    shape = B, N, T, k.shape[1]
    q, k, v = wide(q), wide(k), wide(v)  # here, so that their derivatives are rounded but once
    if not isinstance(scale, int | float | None):  # learned: JAX differentiates by it here
        q, scale = q * scale, 1.0
    band = band_of(is_causal, local_window_size, 2**30)
    plan = plan_of(q, k, scale, logit_softcap, block_size, band, axis_name is not None)
    span = span_of(plan, query_seq_lengths, key_value_seq_lengths, B, axis_name)
    origins = _mean(k, axis_name), _mean(v, axis_name)
    if logit_softcap is not None:  # the capped scores are not moved along by the keys' origin
        origins = jnp.zeros_like(origins[0]), origins[1]
    bias = broadcastable("bias", bias, shape)
    bias = None if bias is None else bias.astype(q.dtype)
    sink = None if sink is None else checked_sink(sink, N).astype(q.dtype)
    operands = Operands(q, k, v, bias)
    fixed = Fixed(broadcastable("mask", mask, shape), span, *origins)
    o, lse = attend(_varying(operands, fixed), fixed, plan)
    key_origin, value_origin = (_per_head(x, N) for x in origins)
    lse = _where_seen(lse, lse + plan.scale * jnp.sum(q * key_origin, -1), -jnp.inf)
    if axis_name is not None:
        o, lse = _over_slices(o, lse, axis_name)
    o = _where_seen(lse[..., None], o + value_origin, 0)
    if sink is not None:
        o, lse = _with_sink(o, lse, sink)
    o, lse = o.astype(dtype), lse.astype(dtype)
    if unbatched:
        o, lse = o[0], lse[0]
    return (o, lse) if return_residual else o


def _varying(operands, fixed):
    """The operands, varying over each mapped axis that anything varies over.

    The sum over devices, which is the transpose of that, then stands before the loops over blocks
    and not inside them.
    """
    dtype = operands.query.dtype
    first, *rest = (lax.full_like(x, 0, dtype, ()) for x in jax.tree.leaves((operands, fixed)))
    zero = sum(rest, first)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), operands)


def _where_seen(lse, x, otherwise):
    return jnp.where(lse == -jnp.inf, otherwise, x)


def _mean(x, axis_name):
    """Mean over the sequence, [B, 1, K, D], without what is not finite; a constant."""
    x = lax.stop_gradient(x)
    x = jnp.where(jnp.isfinite(x), x, 0)
    mean = jnp.sum(x, 1, keepdims=True) / max(x.shape[1], 1)
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def _per_head(x, heads):
    """[B, 1, K, D] → [B, 1, N, D]."""
    B, one, K, D = x.shape
    return jnp.broadcast_to(x[:, :, :, None], (B, one, K, heads // K, D)).reshape(B, one, heads, D)


def _over_slices(o, lse, axis_name):
    """The results of all keys from those of each device's keys."""
    top = lax.pmax(lax.stop_gradient(lse), axis_name)
    top = _where_seen(top, top, 0)
    weight = jnp.exp(lse - top)
    total = lax.psum(weight, axis_name)
    divisor = jnp.where(total == 0, 1, total)
    o = lax.psum(o * weight[..., None], axis_name) / divisor[..., None]
    return o, jnp.where(total == 0, -jnp.inf, top + jnp.log(divisor))


def _with_sink(o, lse, sink):
    """One more score per head, whose value is 0."""
    total = jnp.logaddexp(lse, sink[None, None])
    kept = jnp.exp(_where_seen(lse, lse - total, -jnp.inf))
    return o * kept[..., None], total

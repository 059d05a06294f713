"""`dot_product_attention`: arguments in, blocks through, results put together."""

import math
from functools import partial
from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxsoftjac._checks import AxisName, check_axis_name, wide
from jaxsoftjac._sharding import mesh_axes, over_mesh_slices
from jaxsoftjac.attention._arguments import (
    broadcastable,
    checked_dropout,
    checked_lengths,
    checked_operands,
    checked_sink,
    flag,
    scalar,
)
from jaxsoftjac.attention._blocks import attend
from jaxsoftjac.attention._dropout import dropout_of
from jaxsoftjac.attention._layout import Fixed, Operands, Plan
from jaxsoftjac.attention._plan import (
    band_of,
    first_key,
    plan_of,
    slice_of,
    slices_of,
    softcap_of,
    span_of,
)
from jaxsoftjac.attention._results import (
    from_origin,
    logsumexp,
    origin_of,
    over_slices,
    per_head,
    shift_of,
    with_sink,
)

Causal = bool | Literal["bottom_right"]


class AttentionOptions(TypedDict, total=False):
    """The options of `dot_product_attention` less `return_residual`, which decides its type."""

    scale: ArrayLike | None
    is_causal: Causal
    query_seq_lengths: ArrayLike | None
    key_value_seq_lengths: ArrayLike | None
    local_window_size: int | tuple[int, int] | None
    implementation: Literal["xla"] | None
    logit_softcap: ArrayLike | None
    sink: ArrayLike | None
    dropout_rate: ArrayLike
    dropout_key: jax.Array | None
    broadcast_dropout: bool
    block_size: int | tuple[int, int] | None
    precision: lax.PrecisionLike
    axis_name: AxisName | None


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    return_residual: Literal[False] = False,
    **options: Unpack[AttentionOptions],
) -> jax.Array: ...


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    return_residual: Literal[True],
    **options: Unpack[AttentionOptions],
) -> tuple[jax.Array, jax.Array]: ...


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    return_residual: bool,
    **options: Unpack[AttentionOptions],
) -> jax.Array | tuple[jax.Array, jax.Array]: ...


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: ArrayLike | None = None,
    is_causal: Causal = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla"] | None = None,
    return_residual: bool = False,
    logit_softcap: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    dropout_rate: ArrayLike = 0.0,
    dropout_key: jax.Array | None = None,
    broadcast_dropout: bool = False,
    block_size: int | tuple[int, int] | None = None,
    precision: lax.PrecisionLike = None,
    axis_name: AxisName | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Attention of each head: softmax(QKᵀ·scale + bias) V, as jax.nn.dot_product_attention.

    The scores exist in blocks only: memory is O(T + S) in jvp, vjp and every nesting. Blocks that
    no query can see, by `is_causal`, the window or the lengths, are skipped. The softmax part of
    the derivatives is PᵀDP with P = I − 1pᵀ, D = diag(p), on keys and values less what is common to
    all of them: that costs no digits.

    Cost: O(T·S·H) time. Bias and its gradient are as large as the bias that is given. A call
    outside `jit` is compiled once for each set of shapes and options, of which `scale` and
    `logit_softcap` may be arrays. `jax.export` takes a symbolic B, not T or S.

    Args:
        query: shape [B, T, N, H] or [T, N, H].
        key: shape [B, S, K, H] or [S, K, H]; each key head serves N / K heads.
        value: shape [B, S, K, D] or [S, K, D].
        bias: added to the scores, after `logit_softcap`; its four axes broadcast to [B, N, T, S].
        mask: a boolean that broadcasts to [B, N, T, S]; True where a query sees a key.
        scale: a scalar, the factor of QKᵀ, 1/√H by default; as a JAX array, differentiable.
        is_causal: True: query t sees keys 0 … t. "bottom_right": the last query sees all keys, and
            query t keys 0 … t + S − T, as in decoding after a cache of S − T keys.
        query_seq_lengths: integers [B]; queries from there on give 0.
        key_value_seq_lengths: integers [B]; keys from there on are not seen.
        local_window_size: (l, r), or one int for both: query t sees keys t − l … t + r, or these
            places moved by S − T where `is_causal` is "bottom_right".
        implementation: None or "xla", as jax.nn's; there is one implementation.
        return_residual: also return the logsumexp of each query's scores.
        logit_softcap: a scalar c > 0 makes the scores c·tanh(QKᵀ·scale / c); as a JAX array,
            differentiable. A finite c above 2¹⁰⁰ counts as that.
        sink: [N], one more score per head, whose probability goes to no value.
        dropout_rate: from 0 to below 1: each probability is set to 0 with this chance, and the
            others are divided by 1 − rate. Which ones depends on `dropout_key` and on
            the places of query, key, head and example alone, not on the mode or the block size.
        dropout_key: a random key; the same one on all devices that share an `axis_name`.
        broadcast_dropout: whether all examples and heads drop the same places.
        block_size: queries and keys of a block, (b, c) or one int; by default suited to caches, and
            all keys where all queries see them and a block of queries has at most 2²¹ scores.
        precision: of the products of matrices, as jnp.einsum's.
        axis_name: mapped axis (`shard_map`, `vmap`) over which keys, values, bias and mask are
            split in equal slices along S; each device holds all queries, and lengths and places
            are global. Only arrays of the size of the queries are communicated. Keys that Explicit
            mesh axes split need no name: it is found in their type.

    Returns:
        Array [B, T, N, D] (or [T, N, D]) in the dtype of `query`; with `return_residual` a pair
        with logsumexp [B, T, N], differentiable too, in float32 or wider. A query that sees no key
        gives 0 and −∞, with gradient 0. Keys and values that no query sees are ignored, NaN
        included; a NaN that a query sees makes its row NaN, and so does an ∞ where not all keys are
        seen.

    Raises:
        TypeError: an array is boolean or complex, the dtypes of query, key and value differ,
            `mask` is not boolean, lengths are not integers, or an option is of another kind.
        ValueError: shapes do not fit each other, or an option is out of range.

    Examples:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4))
        >>> o, lse = dot_product_attention(q, k, v, is_causal=True, return_residual=True)
        >>> print(o.shape, lse.shape, jnp.allclose(o[:, 0], v[:, 0], atol=1e-6))
        (1, 8, 2, 4) (1, 8, 2) True
    """
    q, k, v = checked_operands(query, key, value)
    if implementation not in (None, "xla"):
        raise ValueError(f"`implementation` must be None or 'xla', got {implementation!r}")
    B, (T, N), S = 1 if q.ndim == 3 else q.shape[0], q.shape[-3:-1], k.shape[-3]
    scale = None if scale is None else scalar("scale", scale)
    check_axis_name(axis_name)
    softcap = softcap_of(logit_softcap)
    plan = plan_of(
        q,
        k,
        scale=scale,
        softcap=softcap,
        block_size=block_size,
        band=band_of(is_causal, local_window_size, slices_of(axis_name) * S - T),
        has_lengths=query_seq_lengths is not None or key_value_seq_lengths is not None,
        axis_name=axis_name,
        precision=precision,
    )
    arrays = _Arrays(
        *(q, k, v),
        bias=broadcastable("bias", bias, (B, N, T, S)),
        mask=broadcastable("mask", mask, (B, N, T, S)),
        query_lengths=checked_lengths("query_seq_lengths", query_seq_lengths, B),
        key_lengths=checked_lengths("key_value_seq_lengths", key_value_seq_lengths, B),
        scale=scale if isinstance(scale, jax.Array) else None,
        softcap=softcap if isinstance(softcap, jax.Array) else None,
        sink=checked_sink(sink, N),
        dropout=checked_dropout(dropout_rate, dropout_key),
    )
    o, lse = _attention(arrays, plan, flag("broadcast_dropout", broadcast_dropout))
    return (o, lse) if flag("return_residual", return_residual) else o


class _Arrays(NamedTuple):
    """All arrays, as they are given."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    bias: jax.Array | None
    mask: jax.Array | None
    query_lengths: jax.Array | None
    key_lengths: jax.Array | None
    scale: jax.Array | None
    softcap: jax.Array | None
    sink: jax.Array | None
    dropout: tuple[float | jax.Array, jax.Array] | None


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def _attention(x: _Arrays, plan: Plan, broadcast_dropout: bool) -> tuple[jax.Array, jax.Array]:
    """Output and logsumexp: compiled once for calls outside `jit`, inlined into those under it."""
    names = mesh_axes(x.key, x.key.ndim - 3)
    if names and plan.axis_name is None:
        return _over_keys(x, plan, broadcast_dropout, names)
    unbatched, dtype = x.query.ndim == 3, x.query.dtype
    q, k, v = (wide(a[None] if unbatched else a) for a in (x.query, x.key, x.value))
    B, T, N, _ = q.shape
    if x.scale is not None:
        q = q * x.scale.astype(q.dtype)
    bias, softcap, sink = (
        None if a is None else a.astype(q.dtype) for a in (x.bias, x.softcap, x.sink)
    )
    span = span_of(plan, x.query_lengths, x.key_lengths)
    origins = origin_of(k, span, plan.axis_name), origin_of(v, span, plan.axis_name)
    if plan.softcap is not None or softcap is not None:
        origins = jnp.zeros_like(origins[0]), origins[1]  # capped scores do not move with it
    dropout = None
    if x.dropout is not None:
        rate, random_key = x.dropout
        shape = (1, T, 1) if broadcast_dropout else (B, T, N)
        dropout = dropout_of(random_key, rate, shape, first_key(plan), q.dtype)
        origins = origins[0], jnp.zeros_like(origins[1])  # the weights do not add up to 1
    fixed = Fixed(x.mask, span, *origins, dropout)
    operands = _varying(Operands(q, k, v, bias, softcap), fixed)
    rows = attend(operands, fixed, plan)
    if plan.axis_name is not None:
        rows = over_slices(rows, plan.axis_name)
    key_origin, value_origin = (per_head(a, N) for a in origins)
    shift = shift_of(rows, q, key_origin, plan.scale)
    rows = from_origin(rows, value_origin)
    if sink is not None:
        rows = with_sink(rows, sink, shift)
    o, lse = rows.output.astype(dtype), logsumexp(rows, shift)
    return (o[0], lse[0]) if unbatched else (o, lse)


def _over_keys(
    x: _Arrays, plan: Plan, broadcast_dropout: bool, names: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """The same of keys that Explicit mesh axes split."""
    sizes = jax.typeof(x.key).sharding.mesh.shape
    plan = slice_of(plan, names, math.prod(sizes[name] for name in names))
    of_scores = [None if a is None or a.shape[3] == 1 else 3 for a in (x.bias, x.mask)]
    dropout = None if x.dropout is None else (None, None)
    axes = (None, x.key.ndim - 3, x.value.ndim - 3, *of_scores, *[None] * 5, dropout)
    return over_mesh_slices(
        lambda *x: _attention(_Arrays(*x), plan, broadcast_dropout), names, x, axes, P()
    )


def _varying(operands: Operands, fixed: Fixed) -> Operands:
    """The operands, varying over each mapped axis that anything varies over.

    The sum over devices, which is the transpose of that, then stands before the loops over blocks
    and not inside them.
    """
    dtype = operands.query.dtype
    first, *rest = (lax.full_like(x, 0, dtype, ()) for x in jax.tree.leaves((operands, fixed)))
    zero = sum(rest, first)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), operands)

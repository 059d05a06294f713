"""Gradient flow through the rows of an attention map, from queries and keys: no map is formed.

A model is read, without being changed, by interception of the attention that it calls. Flax NNX
calls `jax.nn.dot_product_attention` once per layer; return the flows from where it is traced:

>>> import jax, jax.numpy as jnp
>>> from unittest import mock
>>> from flax import nnx
>>> attend = jax.nn.dot_product_attention
>>> def attention_flows(model, *inputs, **options):
...     flows = []
...     def watched(query, key, value, bias=None, mask=None, **kinds):
...         flows.append(attention_flow(query, key, bias, mask, **kinds))
...         return attend(query, key, value, bias, mask, **kinds)
...     with mock.patch.object(jax.nn, "dot_product_attention", watched):
...         model(*inputs, **options)
...     return flows
>>> model = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0))
>>> x, causal = jnp.ones((3, 5, 8), "float32"), jnp.tril(jnp.ones((1, 1, 5, 5), bool))
>>> (flow,) = nnx.jit(attention_flows)(model, x, mask=causal)
>>> print(flow.entropy.shape, flow.classes[0, 0])
(3, 2, 5) [1 2 3 4 5]

Equinox hands its heads to a hook:

>>> import equinox as eqx
>>> attend_heads, flows = eqx.nn.MultiheadAttention.__call__, []
>>> def watched_call(self, query, key_, value, mask=None, **options):
...     def heads(q, k, v):
...         flows.append(attention_flow(q, k, mask=mask))
...         return q, k, v
...     return attend_heads(self, query, key_, value, mask, process_heads=heads, **options)
>>> model = eqx.nn.MultiheadAttention(2, 8, dtype="float32", key=jax.random.key(0))
>>> with mock.patch.object(eqx.nn.MultiheadAttention, "__call__", watched_call):
...     y = model(x[0], x[0], x[0])
>>> print(flows[0].classes[0])
[5 5 5 5 5]

Where a model forms its own map, `jax.nn.softmax` can be watched in the same way, by `gradient_flow`
with `where=x > jnp.finfo(x.dtype).min / 2`: masked logits are huge negative numbers there.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_count, as_real, wide
from jaxsoftjac._rows import soft_capped
from jaxsoftjac._rules import compiled
from jaxsoftjac.attention._arguments import flag, scalar
from jaxsoftjac.attention._plan import softcap_of, two_ints
from jaxsoftjac.diagnostics._flow import GradientFlow, gradient_flow
from jaxsoftjac.sparse._functions import alpha_in_range, parts_of, whole_of

_BLOCK_ELEMENTS = 2**20  # of logits at a time, where one query of all heads has fewer


def attention_flow(
    query: ArrayLike,
    key: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    logit_softcap: float | None = None,
    alpha: ArrayLike = 1.0,
    block_size: int | None = None,
) -> GradientFlow:
    """The gradient flow through each row of softmax(scale·QKᵀ + bias), by blocks of queries.

    The options mean what they mean in jax.nn.dot_product_attention, and `alpha` is that of the
    `entmax` that stands in place of softmax; stacked layers may be leading axes. A query that may
    attend to fewer than two keys passes no gradient: see `summarize`.

    Cost: O(TSH) time per head; memory for the logits of one block of queries, never [T, S].

    Args:
        query: [..., T, N, H].
        key: [..., S, G, H], N a multiple of G.
        bias: added to the logits, broadcast to [..., N, T, S].
        mask: boolean, broadcast to [..., N, T, S]: which keys a query may attend to.
        scale: factor of the logits; 1/√H if None.
        is_causal: query t attends to keys s ≤ t.
        query_seq_lengths: integers [...]: queries from there on attend to nothing.
        key_value_seq_lengths: integers [...]: keys from there on are not attended to.
        local_window_size: (l, r): query t attends to t − l ≤ s ≤ t + r; an integer is both.
        logit_softcap: c > 0: logits become c·tanh(logits/c), before bias and mask.
        alpha: α in [1, 4], a number, or an array that broadcasts to [..., N, 1].
        block_size: queries at a time; as many as have 2²⁰ logits over all heads if None.

    Returns:
        Measurements of shape [..., N, T].

    Raises:
        TypeError: `query`, `key`, `bias` or `alpha` is boolean or complex, or `mask` is not
            boolean.
        ValueError: shapes do not fit, `logit_softcap` or `block_size` is not positive, or `alpha`
            is out of range.

    Examples:
        >>> q, k = jax.random.normal(jax.random.key(0), (2, 6, 2, 4))  # 6 places, 2 heads
        >>> flow = attention_flow(q, k, is_causal=True)
        >>> print(flow.entropy_share.shape, flow.classes[0])
        (2, 6) [1 2 3 4 5 6]
    """
    q, k = _heads(query, key)
    lead, (T, N, H), S = q.shape[:-3], q.shape[-3:], k.shape[-3]
    bias = None if bias is None else _like_map("bias", as_real("bias", bias), (*lead, N, T, S))
    mask = None if mask is None else _like_map("mask", as_array("mask", mask), (*lead, N, T, S))
    lengths = (
        _lengths("query_seq_lengths", query_seq_lengths, lead),
        _lengths("key_value_seq_lengths", key_value_seq_lengths, lead),
    )
    softcap, is_causal = softcap_of(logit_softcap), flag("is_causal", is_causal)
    factor = 1 / math.sqrt(H) if scale is None else scalar("scale", scale)
    block_size = None if block_size is None else as_count("block_size", block_size, 1)
    window = local_window_size
    window = None if window is None else two_ints("local_window_size", window, 0)
    if jnp.ndim(alpha) and jnp.shape(alpha)[-1] != 1:
        raise ValueError(f"`alpha` must have shape () or [..., N, 1], got {jnp.shape(alpha)}")
    known, traced = parts_of(alpha_in_range(alpha))
    size = min(T, block_size or max(1, _BLOCK_ELEMENTS // max(1, math.prod(lead) * N * S)))
    numbers = jnp.asarray(factor, wide(q).dtype), softcap
    return _flow_of_blocks(
        (q, k),
        (bias, mask),
        lengths,
        numbers,
        traced,
        size=size,
        is_causal=is_causal,
        window=window,
        alpha=known,
    )


@compiled("size", "is_causal", "window", "alpha")
def _flow_of_blocks(
    heads: tuple[jax.Array, jax.Array],
    maps: tuple[jax.Array | None, jax.Array | None],
    lengths: tuple[jax.Array | None, jax.Array | None],
    numbers: tuple[jax.Array, float | jax.Array | None],
    traced: jax.Array | None,
    *,
    size: int,
    is_causal: bool,
    window: tuple[int, int] | None,
    alpha: float | None,
) -> GradientFlow:
    (q, k), (bias, mask), (factor, softcap) = heads, maps, numbers
    T, S = q.shape[-3], k.shape[-3]
    of_rows = whole_of(alpha, traced)

    def block(start: jax.Array) -> GradientFlow:
        t = jnp.minimum(start + jnp.arange(size), T - 1)
        logits = factor * _products(jnp.take(q, t, axis=-3), k)
        if softcap is not None:
            logits = soft_capped(logits, softcap)
        if bias is not None:
            logits += jnp.broadcast_to(_at(t, bias), logits.shape).astype(logits.dtype)
        where = jnp.ones(logits.shape, bool)
        for condition in _conditions(t, S, mask, is_causal, window, *lengths):
            where &= jnp.broadcast_to(condition, where.shape)
        return gradient_flow(logits, where=where, alpha=of_rows)

    blocks = lax.map(block, jnp.arange(0, T, size))
    return jax.tree.map(lambda a: _joined(a)[..., :T], blocks)


def _products(q: jax.Array, k: jax.Array) -> jax.Array:
    """QKᵀ of each head, [..., N, T, S]; N/G query heads share a key head."""
    shared = q.reshape(*q.shape[:-2], k.shape[-2], -1, q.shape[-1])
    products = jnp.einsum(
        "...tgmh,...sgh->...gmts", shared, k, preferred_element_type=wide(q).dtype
    )
    return products.reshape(*q.shape[:-3], q.shape[-2], *products.shape[-2:])


def _conditions(
    t: jax.Array,
    S: int,
    mask: jax.Array | None,
    is_causal: bool,
    window: tuple[int, int] | None,
    query_lengths: jax.Array | None,
    key_lengths: jax.Array | None,
) -> Iterator[jax.Array]:
    """What the options demand of queries t and all keys, each broadcastable to [..., N, T, S]."""
    rows, columns = t[:, None], jnp.arange(S)[None, :]
    if mask is not None:
        yield _at(t, mask)
    if is_causal:
        yield columns <= rows
    if window is not None:
        left, right = window
        yield (columns >= rows - left) & (columns <= rows + right)
    if query_lengths is not None:
        yield jnp.less(*jnp.broadcast_arrays(rows, query_lengths))
    if key_lengths is not None:
        yield jnp.less(*jnp.broadcast_arrays(columns, key_lengths))


def _at(t: jax.Array, a: jax.Array) -> jax.Array:
    """The rows t of what broadcasts to [..., T, S]."""
    return a if a.shape[-2] == 1 else jnp.take(a, t, axis=-2)


def _joined(blocks: jax.Array) -> jax.Array:
    """[n, ..., size] as [..., n·size]."""
    blocks = jnp.moveaxis(blocks, 0, -2)
    return blocks.reshape(*blocks.shape[:-2], -1)


def _heads(query: ArrayLike, key: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Queries and keys of one dtype, their shapes checked."""
    q, k = as_real("query", query), as_real("key", key)
    if q.ndim < 3 or 0 in q.shape:
        raise ValueError(f"`query` must have shape [..., T, N, H], none of them 0, got {q.shape}")
    fits = k.ndim == q.ndim and k.shape == (*q.shape[:-3], *k.shape[-3:-1], q.shape[-1])
    if not fits or 0 in k.shape or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"`key` must have shape [..., S, G, H], G a divisor of N, to fit the `query` "
            f"{q.shape}, got {k.shape}"
        )
    dtype = jnp.promote_types(q.dtype, k.dtype)
    return q.astype(dtype), k.astype(dtype)


def _like_map(name: str, a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`a` with at least two axes, if it broadcasts to the map's `shape`."""
    if name == "mask" and a.dtype != jnp.bool_:
        raise TypeError(f"`mask` must be boolean, got dtype {a.dtype.name}")
    try:
        fits = jnp.broadcast_shapes(a.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"`{name}` must broadcast to [..., N, T, S] = {shape}, got {a.shape}")
    return jnp.atleast_2d(a)


def _lengths(name: str, lengths: ArrayLike | None, lead: tuple[int, ...]) -> jax.Array | None:
    """Sequence lengths as [..., 1, 1, 1]."""
    if lengths is None:
        return None
    lengths = as_array(name, lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integers, got dtype {lengths.dtype.name}")
    if lengths.shape != lead:
        raise ValueError(f"`{name}` must have shape {lead}, got {lengths.shape}")
    return lengths.astype(jnp.result_type(int))[..., None, None, None]

"""Attention under the call convention of Flax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxsoftjac._checks import as_array, as_real, checked_key
from jaxsoftjac.attention._attention import Causal, dot_product_attention


def as_flax_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    module: Any = None,
    is_causal: Causal = False,
) -> jax.Array:
    """`dot_product_attention` as the `attention_fn` of Flax's attention layers, NNX and Linen.

    It trains with dropout and decodes with a cache, as Flax's own function does, and never forms
    the map of weights. Two things differ: a query that sees no key gives 0, not the mean of all
    values, and the same `dropout_rng` drops other weights.

    Cost: O(T·S·H) time, O(T + S) memory.

    Args:
        query: shape [..., T, N, H], with any number of batch axes.
        key: shape [..., S, K, H]; each key head serves N / K heads.
        value: shape [..., S, K, D].
        bias: added to the scores; broadcasts to [..., N, T, S].
        mask: boolean, or numbers, 0 where a query does not see a key; broadcasts as `bias` does.
        broadcast_dropout: whether all examples and heads drop the same places.
        dropout_rng: a random key, needed where weights are dropped.
        dropout_rate: the chance of a weight to be dropped.
        deterministic: drop nothing.
        dtype: of query, key and value, and of the result; by default their common one.
        precision: of the products of matrices, as jnp.einsum's.
        module: None. The weights that Flax would store in a module (`sow_weights`) do not exist.
        is_causal: as in `dot_product_attention`.

    Returns:
        Array [..., T, N, D].

    Raises:
        TypeError, ValueError: as `dot_product_attention`; ValueError for a `module`.

    Examples:
        >>> from flax import nnx
        >>> options = dict(num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0))
        >>> layer = nnx.MultiHeadAttention(**options, attention_fn=as_flax_attention)
        >>> print(layer(jnp.ones((3, 5, 8), "float32")).shape)
        (3, 5, 8)
    """
    if module is not None:
        raise ValueError(
            "`module` must be None (`sow_weights=False`): attention weights are never formed, "
            f"got {type(module).__name__}"
        )
    q, k, v = (as_real(n, x) for n, x in (("query", query), ("key", key), ("value", value)))
    if q.ndim < 3 or k.ndim != q.ndim or v.ndim != q.ndim:
        raise ValueError(
            "`query`, `key` and `value` must have as many axes as each other, 3 or more, "
            f"got {q.shape}, {k.shape} and {v.shape}"
        )
    if dropout_rng is not None:
        dropout_rng = checked_key("dropout_rng", dropout_rng)
    dtype = jnp.result_type(q, k, v) if dtype is None else dtype
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    mask = None if mask is None else as_array("mask", mask).astype(bool)
    batch = q.shape[:-3]
    q, k, v = (x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]) for x in (q, k, v))
    o = dot_product_attention(
        *(q, k, v),
        _in_one_batch("bias", bias, batch),
        _in_one_batch("mask", mask, batch),
        is_causal=is_causal,
        dropout_rate=0.0 if deterministic else dropout_rate,
        dropout_key=dropout_rng,
        broadcast_dropout=broadcast_dropout,
        precision=precision,
    )
    return o.reshape(*batch, *o.shape[1:])


def _in_one_batch(name: str, x: ArrayLike | None, batch: tuple[int, ...]) -> jax.Array | None:
    """[..., n, t, s] with the batch axes as one, of length 1 where each of them has length 1."""
    if x is None:
        return None
    x = as_array(name, x)
    shape = (1,) * (len(batch) + 3 - x.ndim) + x.shape
    own = shape[:-3]
    if len(own) != len(batch) or any(n not in (1, m) for n, m in zip(own, batch, strict=True)):
        expected = f"[..., N, T, S] with batch axes {batch}"
        raise ValueError(f"`{name}` must broadcast to {expected}, got {x.shape}")
    x = x.reshape(shape)
    if math.prod(own) > 1:
        x = jnp.broadcast_to(x, (*batch, *shape[-3:]))
    return x.reshape(math.prod(x.shape[:-3]), *shape[-3:])

"""A small transformer whose embedding, tied to its output, is split over devices by vocabulary.

Everything here is what one device computes of its share inside `jax.shard_map`: `tokens` are its
part of the batch, the embedding is its slice of the vocabulary, all else is whole.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

import jaxsoftjac as jsj

Params = dict[str, Any]


def initial_params(key: jax.Array, vocabulary: int, width: int, layers: int) -> Params:
    embedding, *keys = jax.random.split(key, 1 + layers)
    return {
        "embedding": jax.random.normal(embedding, (vocabulary, width)) / width**0.5,
        "layers": [_initial_layer(k, width) for k in keys],
    }


def _initial_layer(key: jax.Array, width: int) -> Params:
    shapes = {
        "attention": (width, 3 * width),
        "mixed": (width, width),
        "wide": (width, 4 * width),
        "narrow": (4 * width, width),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) / shape[0] ** 0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def spec_of(path: Any, leaf: Any) -> P:
    """Where a parameter is, or an array of the optimizer's that belongs to it."""
    return P("vocabulary") if "embedding" in jax.tree_util.keystr(path) else P()


def mean_loss(params: Params, tokens: jax.Array, heads: int) -> jax.Array:
    """Mean loss of predicting tokens [B, T + 1] from those before, over all devices."""
    table = params["embedding"]
    hidden = _embedded(table, tokens[:, :-1])
    for layer in params["layers"]:
        hidden = hidden + _attended(layer, _normalized(hidden), heads)
        wide = jax.nn.gelu(_normalized(hidden) @ layer["wide"])
        hidden = hidden + wide @ layer["narrow"]
    losses = jsj.linear_cross_entropy(
        _normalized(hidden), table.T, tokens[:, 1:], axis_name="vocabulary"
    )
    return lax.pmean(jnp.mean(losses), "data")


def _embedded(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a table of which each device has a slice: those of its own, added over slices."""
    index = tokens - lax.axis_index("vocabulary") * len(table)
    is_own = (index >= 0) & (index < len(table))
    rows = table[jnp.where(is_own, index, 0)]
    return lax.psum(jnp.where(is_own[..., None], rows, 0), "vocabulary") * table.shape[1] ** 0.5


def _attended(layer: Params, hidden: jax.Array, heads: int) -> jax.Array:
    B, T, width = hidden.shape
    q, k, v = jnp.split(hidden @ layer["attention"], 3, axis=-1)
    q, k, v = (a.reshape(B, T, heads, width // heads) for a in (_rotated(q), _rotated(k), v))
    mixed = jsj.dot_product_attention(q, k, v, is_causal=True)
    return mixed.reshape(hidden.shape) @ layer["mixed"]


def _rotated(x: jax.Array) -> jax.Array:
    """Pairs of entries turned by angles that grow with the position, so that order is seen."""
    T, half = x.shape[-2], x.shape[-1] // 2
    rates = 1e-4 ** (jnp.arange(half, dtype=x.dtype) / half)
    angles = jnp.arange(T, dtype=x.dtype)[:, None] * rates[None]
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles)[None], jnp.sin(angles)[None]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _normalized(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

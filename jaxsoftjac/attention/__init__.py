"""Attention without the T×S map, differentiable in every mode and to any order in linear memory.

>>> import jax, jax.numpy as jnp
>>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 256, 2, 16))
>>> attend = lambda q: dot_product_attention(q, k, v, is_causal=True)
>>> loss = lambda q: jnp.sum(jax.jvp(attend, (q,), (jnp.cos(q),))[1] ** 2)
>>> print(jax.jit(jax.grad(loss))(q).shape)  # reverse over forward, as in MeanFlow
(1, 256, 2, 16)
"""

from jaxsoftjac.attention._attention import dot_product_attention
from jaxsoftjac.attention._flax import as_flax_attention

__all__ = [
    "as_flax_attention",
    "dot_product_attention",
]

"""Losses of softmax, exact in the tails, in every mode and order; with a kernel, without [N, V].

>>> import jax, jax.numpy as jnp
>>> loss = lambda x: cross_entropy(x, 0)
>>> x = jnp.array([40.0, 0.0], jnp.float32)
>>> print(f"{loss(x):.3e} {jax.grad(loss)(x)[0]:.3e}")      # 0 and 0 elsewhere
4.248e-18 -4.248e-18
"""

from jaxsoftjac.losses._cross_entropy import cross_entropy
from jaxsoftjac.losses._divergences import entropy, kl_divergence
from jaxsoftjac.losses._entmax import entmax_loss
from jaxsoftjac.losses._linear import linear_cross_entropy
from jaxsoftjac.losses._linear_gauss_newton import linear_cross_entropy_gauss_newton
from jaxsoftjac.losses._linear_target import LinearTarget

__all__ = [
    "LinearTarget",
    "cross_entropy",
    "entmax_loss",
    "entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_cross_entropy_gauss_newton",
]

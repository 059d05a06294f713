"""Sparse members of softmax's family: sparsemax and α-entmax, which give exact zeros.

On its support each has the Jacobian diag(s) − ssᵀ/Σs, s = p^{2−α}: Σs times the Jacobian of softmax
at σ = s/Σs. So the products of softmax serve them all, in every mode and to every order.

>>> import jax, jax.numpy as jnp
>>> print(sparsemax(jnp.array([1.0, 0.5, -1.0])), jax.jacfwd(sparsemax)(jnp.array([1.0, 0.5])))
[0.75 0.25 0.  ] [[ 0.5 -0.5]
 [-0.5  0.5]]
"""

from jaxsoftjac.sparse._functions import entmax, sparsemax

__all__ = [
    "entmax",
    "sparsemax",
]

"""The Jacobians of softmax and α-entmax as operators: products, solves, roots, spectrum.

>>> import jax.numpy as jnp
>>> J = SoftmaxJacobian(jnp.array([0.5, 0.25, 0.25]))
>>> print(J @ jnp.array([1.0, 0.0, 0.0]), J.eigvalsh(), J.trace())
[ 0.25  -0.125 -0.125] [0.    0.25  0.375] 0.625
"""

from jaxsoftjac.operators._entmax import EntmaxJacobian
from jaxsoftjac.operators._operator import SoftmaxJacobian
from jaxsoftjac.operators._secular import Eigh

__all__ = [
    "Eigh",
    "EntmaxJacobian",
    "SoftmaxJacobian",
]

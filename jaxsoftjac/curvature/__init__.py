"""Gauss–Newton and Fisher products of models that end in a softmax, exact, sampled or diagonal.

The Hessian of the mean loss of a model z(θ) is JᵀHJ, J = ∂z/∂θ and H = ∂²loss/∂z², plus a term in
∂²z/∂θ². The first part is the Gauss–Newton matrix G: positive semi-definite, and never formed.

>>> import jax.numpy as jnp
>>> product = gauss_newton_product(lambda kernel, inputs: inputs @ kernel)
>>> inputs, labels, kernel = jnp.ones((1, 1)), jnp.array([0]), jnp.zeros((1, 2))
>>> print(product(kernel, inputs, labels, jnp.array([[1.0, 0.0]])))
[[ 0.25 -0.25]]
"""

from jaxsoftjac.curvature._gauss_newton import fisher_product, gauss_newton_product
from jaxsoftjac.curvature._sampled import gauss_newton_diagonal, sampled_fisher_product

__all__ = [
    "fisher_product",
    "gauss_newton_diagonal",
    "gauss_newton_product",
    "sampled_fisher_product",
]

"""Second-order optimizers for models that end in a softmax, as optax transformations.

They take the batch as extra arguments: `update(gradients, state, params, inputs=…, labels=…)`.

>>> import jax, jax.numpy as jnp, optax
>>> model = lambda kernel, inputs: inputs @ kernel
>>> batch = {"inputs": jnp.array([[1.0], [-1.0]]), "labels": jnp.array([0, 1])}
>>> kernel, gradient = jnp.zeros((1, 2)), jnp.array([[-0.5, 0.5]])
>>> optimizer = gauss_newton_cg(model, damping=0.5, precondition=False)
>>> print(optimizer.update(gradient, optimizer.init(kernel), kernel, **batch)[0])
[[ 0.5 -0.5]]

`optax.inject_hyperparams` takes every function for a schedule, unless it is told that it is static;
`natural_gradient` and `diagonal_gauss_newton` have no `loss`:

>>> static = "model", "loss", "head", "samples", "ignore_index"
>>> tuned = optax.inject_hyperparams(gauss_newton_cg, static)(model, damping=0.5)
>>> print(tuned.init(kernel).hyperparams["damping"])
0.5
"""

from jaxsoftjac.optimizers._diagonal import DiagonalState, diagonal_gauss_newton
from jaxsoftjac.optimizers._gauss_newton import gauss_newton_cg
from jaxsoftjac.optimizers._natural_gradient import natural_gradient
from jaxsoftjac.optimizers._trust_region import CurvatureState

__all__ = [
    "CurvatureState",
    "DiagonalState",
    "diagonal_gauss_newton",
    "gauss_newton_cg",
    "natural_gradient",
]

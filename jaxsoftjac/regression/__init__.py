"""Softmax regression: a kernel and a bias fitted to data by the structure of their Hessian.

>>> import jax.numpy as jnp
>>> fit = fit_softmax_regression(jnp.array([[0.0], [1.0], [2.0], [3.0]]), [0, 1, 0, 1], l2=0.01)
>>> print(fit.converged, fit.kernel.shape, f"{fit.loss:.2f}")
True (1, 2) 0.59
"""

from jaxsoftjac.regression._fit import FittedRegression as FittedRegression
from jaxsoftjac.regression._fit import fit_softmax_regression as fit_softmax_regression

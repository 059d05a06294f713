"""Softmax regression: a kernel and a bias fitted to data by the structure of their Hessian.

`SoftmaxRegression` is the same as a scikit-learn classifier, and needs that package.

>>> import jax.numpy as jnp
>>> fit = fit_softmax_regression(jnp.array([[0.0], [1.0], [2.0], [3.0]]), [0, 1, 0, 1], l2=0.01)
>>> print(fit.converged, fit.kernel.shape, f"{fit.loss:.2f}")
True (1, 2) 0.59
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from jaxsoftjac.regression._fit import FittedRegression as FittedRegression
from jaxsoftjac.regression._fit import fit_softmax_regression as fit_softmax_regression
from jaxsoftjac.regression._fit import softmax_regression_path as softmax_regression_path
from jaxsoftjac.regression._summary import RegressionSummary as RegressionSummary
from jaxsoftjac.regression._summary import (
    summarise_softmax_regression as summarise_softmax_regression,
)

if _TYPE_CHECKING:
    from jaxsoftjac.regression._estimator import SoftmaxRegression as SoftmaxRegression


def __getattr__(name: str) -> _Any:
    """The classifier, imported where it is asked for."""
    if name != "SoftmaxRegression":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from jaxsoftjac.regression._estimator import SoftmaxRegression
    except ImportError as error:
        raise ImportError("`SoftmaxRegression` needs the package scikit-learn ≥ 1.6") from error
    return SoftmaxRegression

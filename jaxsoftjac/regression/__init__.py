"""Softmax regression: a kernel and a bias fitted to data by the structure of their Hessian.

`SoftmaxRegression` is the same as a scikit-learn classifier, and needs that package.

>>> import jax.numpy as jnp
>>> fit = fit_softmax_regression(jnp.array([[0.0], [1.0], [2.0], [3.0]]), [0, 1, 0, 1], l2=0.01)
>>> print(fit.converged, fit.kernel.shape, f"{fit.loss:.2f}")
True (1, 2) 0.59
"""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from jaxsoftjac.regression._fit import fit_softmax_regression, softmax_regression_path
from jaxsoftjac.regression._fitted import FittedRegression
from jaxsoftjac.regression._intervals import PredictionIntervals, softmax_regression_intervals
from jaxsoftjac.regression._summary import RegressionSummary, summarise_softmax_regression

__all__ = [
    "FittedRegression",
    "PredictionIntervals",
    "RegressionSummary",
    "fit_softmax_regression",
    "softmax_regression_intervals",
    "softmax_regression_path",
    "summarise_softmax_regression",
]

# Importing scikit-learn takes longer than a small fit, so that it waits until it is asked for; pdoc
# asks by looking into the module.
if _TYPE_CHECKING or "pdoc" in _sys.modules:
    from jaxsoftjac.regression._estimator import SoftmaxRegression as SoftmaxRegression

    __all__ += ["SoftmaxRegression"]


def __dir__() -> list[str]:
    """Every name, the classifier too."""
    return sorted({*globals(), "SoftmaxRegression"})


def __getattr__(name: str) -> _Any:
    """The classifier, imported where it is asked for."""
    if name != "SoftmaxRegression":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from jaxsoftjac.regression._estimator import SoftmaxRegression
    except ImportError as error:
        raise ImportError("`SoftmaxRegression` needs the package scikit-learn ≥ 1.6") from error
    return SoftmaxRegression

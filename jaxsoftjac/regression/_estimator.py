"""Softmax regression as a scikit-learn classifier: `fit_softmax_regression` in float64."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from jaxsoftjac._checks import as_count, checked_number
from jaxsoftjac.functions import log_softmax
from jaxsoftjac.regression._arguments import Solver
from jaxsoftjac.regression._fit import fit_softmax_regression
from jaxsoftjac.regression._fitted import FittedRegression


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression with the conventions of scikit-learn.

    As `sklearn.linear_model.LogisticRegression` it minimises C·Σ w·loss + ‖coef_‖²/2, the intercept
    unpenalised; `l2`, if given, says the same by Σ w·loss/Σw + l2/2·‖coef_‖²: l2 = 1/(C·Σw). For
    two classes `coef_` has one row, that of the second, as there. A fit that has not converged
    warns, as there; there is always an intercept.

    It computes in float64 whatever JAX's configuration is, and needs the package scikit-learn.

    Args:
        C: inverse of the penalty, > 0; infinity for none.
        l2: penalty ≥ 0 in place of `C`.
        class_weight: None, a dictionary from classes to factors of the weights, or "balanced": the
            factors are then Σw over K times the sum of a class's weights.
        solver: as for `fit_softmax_regression`.
        tol: as for `fit_softmax_regression`.
        max_iter: greatest number of steps; None for the solver's own.
        random_state: not used: the fit is deterministic.

    Attributes:
        classes_: the labels, sorted.
        coef_: [K, D], or [1, D] for two classes.
        intercept_: [K], or [1].
        n_iter_: number of steps, [1].
        converged_: whether `tol` was reached at a minimiser.
        separated_: whether there is none: separable classes, and no penalty.
        fit_: the `FittedRegression`, of NumPy arrays, for summaries and intervals; its labels are
            places in `classes_`.
        n_features_in_: D.
        feature_names_in_: the names of the columns, if they have any.

    Examples:
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [3.0], [4.0]], ["a", "a", "b", "b"])
        >>> print(model.predict([[0.5], [3.5]]))
        ['a' 'b']
    """

    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray
    n_iter_: np.ndarray
    converged_: bool
    separated_: bool
    fit_: FittedRegression
    set_fit_request: Any
    """Whether `fit` is to get `sample_weight` from a meta-estimator, by metadata routing."""
    set_score_request: Any
    """Whether `score` is to get `sample_weight` from a meta-estimator, by metadata routing."""

    def __init__(
        self,
        C: float = 1.0,
        *,
        l2: float | None = None,
        class_weight: Any = None,
        solver: Solver = "newton-cg",
        tol: float | None = None,
        max_iter: int | None = None,
        random_state: Any = None,
    ):
        """Stores the options; `fit` checks them."""
        self.C = C
        self.l2 = l2
        self.class_weight = class_weight
        self.solver: Solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SoftmaxRegression":
        """Fits the coefficients.

        Args:
            X: features [N, D].
            y: labels [N], of any type that scikit-learn takes for classes.
            sample_weight: factors ≥ 0 of the examples, [N].
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        K = len(self.classes_)
        if K < 2:
            raise ValueError(f"`y` must have at least 2 classes, got {K} class")
        if self.max_iter is not None:
            as_count("max_iter", self.max_iter, 0)
        weights = self._weights(y, labels, sample_weight)
        X, labels, padded = _padded(X, labels, weights)
        with jax.enable_x64(True):
            fit = fit_softmax_regression(
                X,
                labels,
                l2=self._penalty(K, weights),
                num_classes=K,
                weights=padded,
                solver=self.solver,
                tol=self.tol,
                max_iterations=self.max_iter,
            )
        self.fit_ = jax.tree.map(np.asarray, fit)
        coefficients, intercept = self.fit_.kernel.T, self.fit_.bias
        if K == 2:
            coefficients, intercept = (a[1:] - a[:1] for a in (coefficients, intercept))
        self.coef_, self.intercept_ = coefficients, intercept
        self.n_iter_ = np.array([int(fit.iterations)])
        self.converged_, self.separated_ = bool(fit.converged), bool(fit.separated)
        if not self.converged_:
            warnings.warn(self._why(), ConvergenceWarning, stacklevel=2)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits [N, K], or for two classes that of the second, [N]."""
        logits = self._logits(X)
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Log-probabilities [N, K]."""
        logits = self._logits(X)
        if len(self.classes_) == 2:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        padded = np.pad(logits, ((0, _padding(len(logits))), (0, 0)))
        with jax.enable_x64(True):
            return np.asarray(log_softmax(padded, axis=1))[: len(logits)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [N, K]."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each example, [N]."""
        logits = self._logits(X)
        chosen = logits[:, 0] > 0 if len(self.classes_) == 2 else np.argmax(logits, axis=1)
        return self.classes_[np.asarray(chosen, int)]

    def _why(self) -> str:
        """Why the fit has not converged."""
        if self.separated_:
            return "the classes are separable: without a penalty there is no best fit"
        return f"`tol` was not reached in {self.n_iter_[0]} steps: a larger `max_iter` may"

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_.T + self.intercept_

    def _weights(self, y: np.ndarray, labels: np.ndarray, sample_weight: Any) -> np.ndarray:
        if sample_weight is None or np.isscalar(sample_weight):
            number: Any = 1.0 if sample_weight is None else sample_weight
            known = checked_number("sample_weight", number, "be ≥ 0 and finite", _is_weight)
            weights = np.full(y.shape, float(known))
        else:
            real: Any = np.float64
            weights = check_array(
                sample_weight, ensure_2d=False, dtype=real, input_name="sample_weight"
            )
        if weights.shape != y.shape:
            raise ValueError(f"`sample_weight` must have shape {y.shape}, got {weights.shape}")
        if np.any(weights < 0):
            raise ValueError(f"`sample_weight` must be ≥ 0, got {np.min(weights)}")
        if self.class_weight is None:
            return weights
        if not isinstance(self.class_weight, Mapping | str):
            kind = type(self.class_weight).__name__
            raise TypeError(f'`class_weight` must be a dictionary, "balanced" or None, got {kind}')
        if self.class_weight == "balanced":
            totals = np.bincount(labels, weights=weights)
            factors = np.sum(totals) / (len(totals) * np.where(totals > 0, totals, 1))
        else:
            factors = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        return weights * factors[labels]

    def _penalty(self, K: int, weights: np.ndarray) -> float:
        """The penalty of ‖kernel‖², which for two classes is half of ‖coef_‖²."""
        if self.l2 is None:
            C = checked_number("C", self.C, "be > 0", lambda C: C > 0)
            penalty = 1 / (C * max(np.sum(weights), np.finfo(float).tiny))
        else:
            penalty = self.l2
        return float(2 * penalty if K == 2 else penalty)


def _is_weight(number: float) -> bool:
    return 0 <= number < np.inf


def _padded(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The data with examples of weight 0 at their end."""
    more = _padding(len(labels))
    rows = np.concatenate([features, np.repeat(features[:1], more, axis=0)])
    labels = np.append(labels, np.repeat(labels[:1], more))
    return rows, labels, np.append(weights, np.zeros(more))


def _padding(count: int) -> int:
    """How many rows to add, so that nearly as many, as in folds, share one compiled program."""
    return -count % max(64, 2 ** max(0, count.bit_length() - 3))

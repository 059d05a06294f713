"""How sure a fit is of the probabilities that it predicts, by the delta method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real
from jaxsoftjac.functions import logsumexp, softmax
from jaxsoftjac.regression._fitted import FittedRegression, checked_fit
from jaxsoftjac.regression._scaling import Scaling, scaled
from jaxsoftjac.regression._standard_errors import Covariance, covariance_of
from jaxsoftjac.regression._steps import class_differences


class PredictionIntervals(NamedTuple):
    """Probabilities [M, K], and intervals of each by itself.

    The `standard_errors` are those of the log-odds log p − log(1 − p), in which the intervals are
    symmetric. A probability's own is about p·(1 − p) times that.

    >>> print(PredictionIntervals(*(jnp.full((1, 2), 0.5),) * 4).probabilities)
    [[0.5 0.5]]
    """

    probabilities: jax.Array
    standard_errors: jax.Array  # of the log-odds
    lower: jax.Array
    upper: jax.Array


def softmax_regression_intervals(
    fit: FittedRegression,
    features: ArrayLike,
    labels: ArrayLike,
    new_features: ArrayLike,
    *,
    l2: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
) -> PredictionIntervals:
    """Intervals of the probabilities that a fit predicts, by the delta method on the logit scale.

    The log-odds ηₖ = zₖ − logsumexp of the other logits have the gradient gₖ = eₖ − softmax of the
    others, and so the variance (gₖ⊗x)ᵀ C (gₖ⊗x), C the covariance of the coefficients. The interval
    is η ± q·√variance as probabilities, which lies in (0, 1). It is that of pₖ, not of a label.

    Cost: the Hessian's O(N·D²·K²) time and O((D·K)²) memory, and its eigenvectors; O(D²·K³) for
    each new row.

    Args:
        fit: of the data that follow.
        features: [N, D].
        labels: as for `fit_softmax_regression`.
        new_features: [M, D], the rows to predict.
        l2: a penalty other than that of the fit.
        weights: those that the fit had; the sum of them counts as the number of examples.
        confidence: probability of an interval.

    Returns:
        Probabilities and bounds [M, K]; from 0 to 1 where the data leave the logits open, as where
        a feature that was constant has another value, or the fit is `separated`.

    Raises:
        TypeError: as `fit_softmax_regression`.
        ValueError: as `fit_softmax_regression`, an option is out of range, or the fit is a
            path, of other features, or of weights with another sum.

    Examples:
        >>> from jaxsoftjac.regression import fit_softmax_regression
        >>> x, labels = jnp.array([[0.0], [1.0], [2.0], [3.0]]), [0, 1, 0, 1]
        >>> fit = fit_softmax_regression(x, labels, l2=0.1)
        >>> likely = softmax_regression_intervals(fit, x, labels, [[1.5], [3.0]])
        >>> for p, low, high in zip(*(a[:, 1] for a in (likely[0], *likely[2:]))):
        ...     print(f"{p:.2f} from {low:.2f} to {high:.2f}")
        0.50 from 0.11 to 0.89
        0.75 from 0.09 to 0.99
    """
    x, *of_fit = checked_fit(fit, features, labels, weights, l2, confidence)
    rows = as_real("new_features", new_features).astype(x.dtype)
    if rows.ndim != 2 or rows.shape[1] != x.shape[1]:
        raise ValueError(f"`new_features` must have shape (M, {x.shape[1]}), got {rows.shape}")
    return _intervals(x, *of_fit, rows, confidence)


@jax.jit
def _intervals(
    x: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    l2: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    separated: jax.Array,
    rows: jax.Array,
    confidence: float,
) -> PredictionIntervals:
    K, total = bias.shape[0], jnp.sum(weights)
    problem, scaling = scaled(x, labels, weights / total, l2, K)
    theta = scaling.theta(kernel, bias)
    covariance, basis = covariance_of(problem, theta, total), class_differences(theta)
    held = jnp.where(l2 > 0, 1 / jnp.where(l2 > 0, total * l2, 1), jnp.inf)

    def at(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = row @ kernel + bias
        others = jnp.broadcast_to(z[None], (K, K))
        is_other = ~jnp.eye(K, dtype=bool)
        log_odds = z - logsumexp(others, axis=1, where=is_other)
        g = jnp.eye(K, dtype=z.dtype) - softmax(others, axis=1, where=is_other)
        return log_odds, _deviations(g @ basis.T, row, scaling, covariance, held)

    log_odds, errors = lax.map(at, rows)
    errors = jnp.where(separated, jnp.inf, errors)
    half = ndtri((1 + jnp.asarray(confidence, x.dtype)) / 2) * errors
    bounds = sigmoid(log_odds - half), sigmoid(log_odds + half)
    return PredictionIntervals(sigmoid(log_odds), errors, *bounds)


def _deviations(
    g: jax.Array, row: jax.Array, scaling: Scaling, covariance: Covariance, held: jax.Array
) -> jax.Array:
    """Standard deviations of gₖ⊗row, g in `class_differences`, with those of constant features."""
    away, varies = row - scaling.mean, scaling.varies
    scaled_row = jnp.append(jnp.where(varies, away * scaling.factor, 0), scaling.bias_factor)
    along_row = jnp.einsum("d,adm->am", scaled_row, covariance.vectors, precision="highest")
    functionals = jnp.dot(g, along_row, precision="highest")
    sizes = jnp.linalg.norm(g, axis=1)
    errors = covariance.deviations(functionals, sizes * jnp.linalg.norm(scaled_row))
    apart = jnp.where(varies, 0, away)
    distance = jnp.sum(apart**2)
    return jnp.sqrt(errors**2 + sizes**2 * jnp.where(distance > 0, distance * held, 0))

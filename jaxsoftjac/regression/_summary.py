"""The table of a fit's coefficients: standard errors, z, p and confidence intervals."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc, ndtri
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_index
from jaxsoftjac.regression._fitted import FittedRegression, checked_fit
from jaxsoftjac.regression._scaling import scaled
from jaxsoftjac.regression._standard_errors import standard_errors


class RegressionSummary(NamedTuple):
    """Figures of each coefficient, [D + 1, M]: the features, then the bias, of M classes.

    They are those of all K classes, or of the K − 1 others less those of a `reference`.

    >>> nothing = jnp.zeros((2, 1))
    >>> print(RegressionSummary(*(nothing,) * 6, reference=0).table(["age"], ["no", "yes"]))
    class feature   estimate std. error          z          p      lower      upper
      yes     age          0          0          0          0          0          0
      yes    bias          0          0          0          0          0          0
    less those of class no
    """

    estimates: jax.Array
    standard_errors: jax.Array
    z: jax.Array
    p_values: jax.Array  # two-sided
    lower: jax.Array
    upper: jax.Array
    reference: int | jax.Array | None = None  # the class that has no column; None for none

    def table(
        self, features: Sequence[str] | None = None, classes: Sequence[str] | None = None
    ) -> str:
        """The figures as text, a line for each coefficient; the last names the reference.

        Args:
            features: names of the D features.
            classes: names of all K classes, that of the reference too.

        Raises:
            ValueError: there are more or fewer names.
        """
        rows, M = self.estimates.shape
        K, reference = M, None
        if self.reference is not None:
            K, reference = M + 1, int(self.reference)
        names = [*_names("features", features, [f"x{i}" for i in range(rows - 1)]), "bias"]
        classes = _names("classes", classes, [str(k) for k in range(K)])
        others = [name for k, name in enumerate(classes) if k != reference]
        of_class, of_feature = (
            max(map(len, column)) for column in (["class", *others], ["feature", *names])
        )
        figures = {
            "estimate": self.estimates,
            "std. error": self.standard_errors,
            "z": self.z,
            "p": self.p_values,
            "lower": self.lower,
            "upper": self.upper,
        }
        lines = [["class", "feature", *figures]]
        for m, of in enumerate(others):
            for d, name in enumerate(names):
                lines.append([of, name, *(f"{float(a[d, m]):.4g}" for a in figures.values())])
        widths = of_class, of_feature, *(10,) * len(figures)
        text = [
            " ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
            for line in lines
        ]
        if reference is not None:
            text.append(f"less those of class {classes[reference]}")
        return "\n".join(text)


def _names(of: str, given: Sequence[str] | None, default: list[str]) -> list[str]:
    """The names as text, of the number of the `default`."""
    if given is None:
        return default
    names = [str(name) for name in given]
    if len(names) != len(default):
        raise ValueError(f"`{of}` must be {len(default)} names, got {len(names)}")
    return names


def summarise_softmax_regression(
    fit: FittedRegression,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    l2: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reference: int | None = 0,
    confidence: float = 0.95,
) -> RegressionSummary:
    """Standard errors, z, p and confidence intervals of a fit's coefficients.

    They are those of maximum likelihood for l2 = 0; with a penalty the intervals are those of the
    penalised curvature, which is narrower, around estimates that are shrunk.

    Cost: the Hessian's O(N·D²·K²) time and O((D·K)²) memory, and its eigenvectors.

    Args:
        fit: of the data that follow.
        features: [N, D].
        labels: as for `fit_softmax_regression`.
        l2: a penalty other than that of the fit.
        weights: those that the fit had; the sum of them counts as the number of examples.
        reference: class whose coefficients are subtracted from those of the others, which are the
            M = K − 1 columns; None for those of sum 0 over the classes, M = K.
        confidence: probability of an interval.

    Returns:
        Figures [D + 1, M], the bias last; ∞ where the data leave a coefficient open, and all of
        them where the fit is `separated`.

    Raises:
        TypeError: as `fit_softmax_regression`.
        ValueError: as `fit_softmax_regression`, an option is out of range, or the fit is a
            path, of other features, or of weights with another sum.

    Examples:
        >>> x, labels = jnp.array([[0.0], [1.0], [2.0], [3.0]]), [0, 1, 0, 1]
        >>> from jaxsoftjac.regression import fit_softmax_regression
        >>> fit = fit_softmax_regression(x, labels, l2=0.0)
        >>> print(summarise_softmax_regression(fit, x, labels).z.shape)
        (2, 1)
    """
    of_fit = checked_fit(fit, features, labels, weights, l2, confidence)
    K = fit.bias.shape[0]
    reference = None if reference is None else as_index("reference", reference)
    if reference is not None and not 0 <= reference < K:
        raise ValueError(f"`reference` must lie in [0, {K}) or be None, got {reference}")
    summary = _figures(*of_fit, confidence, reference=reference)
    return summary._replace(reference=reference)  # a Python number outside of jit


@partial(jax.jit, static_argnames=("reference",))
def _figures(
    x: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    l2: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    separated: jax.Array,
    confidence: float,
    *,
    reference: int | None,
) -> RegressionSummary:
    K, total = bias.shape[0], jnp.sum(weights)
    contrasts = jnp.eye(K, dtype=x.dtype)
    if reference is not None:
        others = jnp.delete(contrasts, reference, axis=1)
        contrasts = others - contrasts[:, [reference]]
    problem, scaling = scaled(x, labels, weights / total, l2, K)
    theta = scaling.theta(kernel, bias)
    errors = jnp.concatenate(
        [jnp.atleast_2d(a) for a in standard_errors(problem, scaling, theta, total, l2, contrasts)]
    )
    errors = jnp.where(separated, jnp.inf, errors)
    estimates = jnp.concatenate([kernel, bias[None]]) @ contrasts
    z = estimates / errors
    half = ndtri((1 + jnp.asarray(confidence, x.dtype)) / 2) * errors
    p_values = erfc(jnp.abs(z) / jnp.sqrt(jnp.asarray(2, x.dtype)))
    return RegressionSummary(estimates, errors, z, p_values, estimates - half, estimates + half)

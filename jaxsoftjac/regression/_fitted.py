"""What a fit returns, and the checks of what is asked of it afterwards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, checked_number
from jaxsoftjac.functions import log_softmax
from jaxsoftjac.regression._arguments import checked_data, is_known

Coefficients = tuple[jax.Array, jax.Array]  # kernel [D, K] and bias [K]

_SAME = 1e-4  # relative difference of sums of weights that rounding can make


class FittedRegression(NamedTuple):
    """A fitted model of log p = log_softmax(features @ kernel + bias).

    >>> from jaxsoftjac.regression import fit_softmax_regression
    >>> fit = fit_softmax_regression(jnp.arange(4.0)[:, None], [0, 1, 0, 1], l2=0.1)
    >>> print(fit.converged, fit.separated, fit.kernel.shape)
    True False (1, 2)
    """

    kernel: jax.Array  # [D, K], with sum 0 over the classes
    bias: jax.Array  # [K], with sum 0
    loss: jax.Array  # mean cross-entropy + l2/2·‖kernel‖²
    gradient_norm: jax.Array  # of the loss by (kernel, bias)
    iterations: jax.Array
    converged: jax.Array  # at a minimiser
    standard_errors: tuple[jax.Array, jax.Array] | None  # of kernel and bias
    separated: jax.Array  # whether classes can be separated and no penalty holds the coefficients
    l2: jax.Array | float = 0.0  # the penalty
    weight: jax.Array | None = None  # Σw of the examples

    def predict_log_proba(self, features: ArrayLike) -> jax.Array:
        """Log-probabilities [..., K] of features [..., D].

        >>> from jaxsoftjac.regression import fit_softmax_regression
        >>> fit = fit_softmax_regression(jnp.arange(4.0)[:, None], [0, 1, 0, 1], l2=0.1)
        >>> log_p = fit.predict_log_proba([[3.0]])
        >>> print(f"{jnp.exp(log_p[0, 1]):.2f}")
        0.75
        """
        x = as_real("features", features).astype(self.kernel.dtype)
        D = self.kernel.shape[0]
        if not x.ndim or x.shape[-1] != D:
            raise ValueError(f"`features` must have shape [..., {D}], got {x.shape}")
        logits = x @ self.kernel
        return log_softmax(logits + jnp.broadcast_to(self.bias, logits.shape))


def checked_start(start: Any, D: int, K: int, dtype: jnp.dtype) -> Coefficients | None:
    """The coefficients of a fit from which to start."""
    if start is None:
        return None
    if not isinstance(start, FittedRegression):
        got = type(start).__name__
        raise TypeError(f"`start` must be what `fit_softmax_regression` returns, got {got}")
    shapes = start.kernel.shape, start.bias.shape
    if shapes != ((D, K), (K,)):
        raise ValueError(
            f"`start` must be one fit of {D} features and {K} classes, with a kernel {(D, K)}, "
            f"got {shapes[0]}"
        )
    return jnp.asarray(start.kernel, dtype), jnp.asarray(start.bias, dtype)


def checked_fit(
    fit: Any,
    features: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    l2: ArrayLike | None,
    confidence: float,
) -> tuple[jax.Array, ...]:
    """The data of a fit, its penalty, kernel and bias in their dtype, and whether `separated`."""
    if not isinstance(fit, FittedRegression):
        got = type(fit).__name__
        raise TypeError(f"`fit` must be what `fit_softmax_regression` returns, got {got}")
    if np.ndim(fit.bias) != 1:
        raise ValueError(
            f"`fit` must be one fit, with a kernel [D, K], got {np.shape(fit.kernel)}: take one of "
            "a path by `jax.tree.map(lambda a: a[i], path)`"
        )
    D, K = fit.kernel.shape
    x, labels, weights, _ = checked_data(features, labels, weights, K)
    if x.shape[1] != D:
        raise ValueError(f"`features` must have shape (N, {D}) for this `fit`, got {x.shape}")
    if fit.weight is not None and is_known(fit.weight) and is_known(weights):
        total, of_fit = float(jnp.sum(weights)), float(fit.weight)
        if not abs(total - of_fit) <= _SAME * of_fit:
            raise ValueError(
                f"`weights` and examples must be those of the `fit`, whose weights have the sum "
                f"{of_fit:g}, got the sum {total:g}"
            )
    checked_number("confidence", confidence, "lie in (0, 1)", lambda p: 0 < p < 1)
    l2 = fit.l2 if l2 is None else l2
    checked_number("l2", l2, "be ≥ 0 and finite", lambda l2: 0 <= l2 < float("inf"))
    numbers = (jnp.asarray(a, x.dtype) for a in (l2, fit.kernel, fit.bias))
    return x, labels, weights, *numbers, jnp.asarray(fit.separated)

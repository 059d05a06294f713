"""Entropy of a row and divergence of two rows of logits, exact near one-hot and near equality.

>>> import jax.numpy as jnp
>>> print(f"{entropy(jnp.array([0.0, 0.0], jnp.float32)):.4f}")      # log 2
0.6931
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import wide
from jaxsoftjac._rows import ClassAxes, class_logits, has_classes
from jaxsoftjac._rules import recomputed
from jaxsoftjac.functions import log_softmax_rows, softmax_rows
from jaxsoftjac.products import centre, softmax_product, where_positive


def entropy(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    """Entropy of the softmax of each row, in nats: H = −Σ σ log σ.

    A sum of terms ≥ 0, exact near one-hot; its gradient is −J log σ. Excluded classes and −∞
    logits contribute 0, with gradient 0.

    Cost: O(K) per row, in every mode and order.

    Args:
        logits: real array with the classes on `axis`.
        axis: the class axis.
        where: boolean, broadcast to `logits`: the classes to keep.

    Returns:
        Array of the shape of `logits` without `axis`.

    Raises:
        TypeError: `logits` is boolean or complex, or `where` is not boolean.
        ValueError: `axis` is out of range, or `where` does not broadcast to `logits`.
    """
    x, classes = class_logits("logits", logits, axis, where)
    return lax.squeeze(_entropy(x, classes), classes.axes)


def kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """KL divergence of the model from the target, KL(p‖q) = Σ p (log p − log q), in nats.

    p = softmax(target_logits), q = softmax(logits); differentiable in both. Computed as
    Σ p·(e^Δ − 1 − Δ), Δ = log q − log p, whose terms are ≥ 0: nearly equal rows keep their digits.

    Cost: O(K) per row, in every mode and order.

    Args:
        logits: real array with the classes on `axis`: the model.
        target_logits: the target, of the same shape.
        axis: the class axis.
        where: boolean, broadcast to `logits`: the classes to keep.

    Returns:
        Array of the shape of `logits` without `axis`; +∞ where the model excludes a class that the
        target has.

    Raises:
        TypeError: logits are boolean or complex, or `where` is not boolean.
        ValueError: the shapes differ, `axis` is out of range, or `where` does not broadcast.
    """
    x, classes = class_logits("logits", logits, axis, where)
    y, _ = class_logits("target_logits", target_logits, axis, where)
    if x.shape != y.shape:
        raise ValueError(
            f"`target_logits` must have the shape of `logits`, {x.shape}, got {y.shape}"
        )
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return lax.squeeze(_kl(x.astype(dtype), y.astype(dtype), classes), classes.axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entropy(x: jax.Array, classes: ClassAxes) -> jax.Array:
    sigma, surprise = _distribution(wide(x), classes)
    return classes.sum(sigma * surprise).astype(x.dtype)


@_entropy.defjvp
def _(classes, primals, tangents):
    (x,), (tangent,) = primals, tangents
    return _entropy(x, classes), _entropy_pushforward(tangent, x, None, classes)


@recomputed(static_argnums=(3,))
def _entropy_pushforward(tangent, x, _, classes):
    sigma, surprise = _distribution(wide(x), classes)
    # H = Σ σ·(−log σ), and Σ σ d(log σ) = 0: only dσ counts.
    return classes.sum(softmax_product(wide(tangent), sigma, classes) * surprise).astype(
        tangent.dtype
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl(x: jax.Array, y: jax.Array, classes: ClassAxes) -> jax.Array:
    q, _ = _distribution(wide(x), classes)
    p, _ = _distribution(wide(y), classes)
    delta = _log_ratio(wide(x), wide(y), classes)
    small = jnp.where(jnp.abs(delta) < 0.5, delta, 0)
    terms = jnp.where(
        jnp.abs(delta) < 0.5, p * _excess_of_exp(small), (q - p) - where_positive(delta, p) * p
    )
    return classes.sum(terms).astype(x.dtype)


@_kl.defjvp
def _(classes, primals, tangents):
    x, y = primals
    return _kl(x, y, classes), _kl_pushforward(tangents, x, y, classes)


@recomputed(static_argnums=(3,))
def _kl_pushforward(tangents, x, y, classes):
    x_tangent, y_tangent = map(wide, tangents)
    q, _ = _distribution(wide(x), classes)
    p, _ = _distribution(wide(y), classes)
    delta = _log_ratio(wide(x), wide(y), classes)
    # q − p has its exact derivatives as it stands; its value is p·(e^Δ − 1) where that is exact.
    near = jnp.abs(delta) < 0.5
    exact = jnp.where(near, p * jnp.expm1(jnp.where(near, delta, 0)), q - p)
    difference = (q - p) + lax.stop_gradient(exact - (q - p))
    along_model = classes.sum(difference * where_positive(x_tangent, difference))
    product = softmax_product(y_tangent, p, classes)
    return (along_model - classes.sum(product * where_positive(delta, p))).astype(tangents[0].dtype)


def _log_ratio(x, y, classes):
    """Δ = log q − log p. Where x − y is nearly constant, from the difference of the logits."""
    both = (x != -jnp.inf) & (y != -jnp.inf)
    p, _ = _distribution(y, classes)
    d = jnp.where(both, x - y, 0)
    d = centre(d, jnp.where(both, p, 0), classes)
    apart = classes.max(jnp.where(both, jnp.abs(d), jnp.where(x != y, jnp.inf, 0)))
    close = jnp.where(apart < 0.5, d, 0)
    from_difference = close - jnp.log1p(classes.sum(p * jnp.expm1(close)))
    from_logs = log_softmax_rows(x, classes) - log_softmax_rows(y, classes)
    return jnp.where(apart < 0.5, from_difference, from_logs)


def _excess_of_exp(delta):
    """e^Δ − 1 − Δ for |Δ| < 1/2 without cancellation, by its Taylor series."""
    series = jnp.zeros_like(delta)
    for n in range(_TERMS[jnp.dtype(delta.dtype).name], 1, -1):
        series = (1 + series) * delta / n
    return series * delta


_TERMS = {"float32": 9, "float64": 17}


def _distribution(x, classes):
    """σ and −log σ; both 0 for −∞ logits and for rows without any other."""
    moves = has_classes(x, classes) & (x != -jnp.inf)
    sigma = jnp.where(moves, softmax_rows(x, classes), 0)
    return sigma, jnp.where(moves, -log_softmax_rows(x, classes), 0)

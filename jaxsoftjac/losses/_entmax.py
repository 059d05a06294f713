"""The Fenchel–Young losses of α-entmax: convex, of gradient p − y, 0 once a margin is reached.

With log_β p = (p^β − 1)/β, β = α − 1, the loss is Σ b(yᵢ, pᵢ) over the support, b the divergence of
two numbers, and linear in the logits outside of it. Every b is ≥ 0 and made without differences of
what is nearly equal, so that small losses keep their digits.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_index, as_real, canonical_axes, wide
from jaxsoftjac._pivots import where_positive
from jaxsoftjac._rows import ClassAxes, depth, in_range, is_label, largest, nan_unless, top_of
from jaxsoftjac._rules import compiled, recomputed
from jaxsoftjac.losses._arguments import checked_arguments
from jaxsoftjac.sparse._functions import checked_alpha, family_rows, parts_of, whole_of
from jaxsoftjac.sparse._powers import (
    Beta,
    deformed,
    deformed_log,
    deformed_slope,
    is_number,
    power,
    safe_log,
)


def entmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> jax.Array:
    """Fenchel–Young loss of α-entmax for each example: max_p ⟨p − y, x⟩ + H(p) − H(y).

    H is the Tsallis entropy Σ(p − p^α)/(α(α − 1)), the maximum is at p = entmax(x). Convex in the
    logits, with gradient p − y and Hessian `EntmaxJacobian`. With an integer label it is
    `cross_entropy` at α = 1, and for α > 1 exactly 0 once the label is 1/(α − 1) ahead of all
    others; with probabilities y it is KL(y‖p) at α = 1, ½‖y − p‖² on the support at α = 2.

    Cost: O(K) per example, in every mode and order, and the root finder of `entmax`.

    Args:
        logits: real array; the classes are on `axis`, −∞ excludes a class.
        labels: integers, of the shape of `logits` without `axis` (or broadcast to it), or
            probabilities of the shape of `logits`, Σy = 1 (the caller's promise; derivatives by
            them are along Σẏ = 0).
        alpha: α in [1, 4], a number, or an array that broadcasts to the shape of the losses, which
            may be traced and has a derivative; entries out of range give NaN.
        axis: the class axis.
        where: boolean, broadcast to `logits`: the classes to keep. It is no mask of examples.
        ignore_index: label whose examples have loss 0 and gradient 0, whatever their logits.

    Returns:
        Array of the shape of `logits` without `axis`. A label out of range gives NaN, in value and
        gradient, for that example; a label on an excluded class gives +∞.

    Raises:
        TypeError: `logits`, `labels` or `alpha` is boolean or complex, or `where` is not boolean.
        ValueError: the shape of `labels` or `alpha`, or `axis` or `alpha` is wrong, or
            `ignore_index` comes with probabilities.

    Reference: Blondel, Martins and Niculae 2020.

    >>> x = jnp.array([3.0, 0.5, 0.0])
    >>> print(entmax_loss(x, 0), entmax_loss(x, 1, alpha=2))
    0.0 2.5
    """
    x = as_real("logits", logits)
    axes = canonical_axes(as_index("axis", axis), x.ndim)
    known, traced = parts_of(checked_alpha(alpha, x, ClassAxes(axes)))
    return _entmax_loss(
        x,
        as_array("labels", labels),
        None if where is None else as_array("where", where),
        traced,
        alpha=known,
        axis=axes[0],
        ignore_index=None if ignore_index is None else as_index("ignore_index", ignore_index),
    )


@compiled("alpha", "axis", "ignore_index")
def _entmax_loss(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    traced: jax.Array | None,
    *,
    alpha: float | None,
    axis: int,
    ignore_index: int | None,
) -> jax.Array:
    x, labels, ignored, classes = checked_arguments(logits, labels, axis, where, ignore_index)
    family = _Family(alpha, classes)
    row = wide(x)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        loss = _label_loss(row, labels, traced, family) * in_range(labels, row, classes)
    else:
        loss = _target_loss(row, labels, traced, family)
    loss = loss + 0 * nan_unless(largest(x, classes) < jnp.inf, row.dtype)
    if traced is not None:
        loss = loss + 0 * lax.stop_gradient(traced)  # NaN out of range
    loss = (loss if ignored is None else jnp.where(ignored, 0, loss)).astype(x.dtype)
    return lax.squeeze(loss, classes.axes)


class _Family(NamedTuple):
    """α if it is a Python number, and where the classes are."""

    alpha: float | None
    classes: ClassAxes

    def alpha_of(self, traced: jax.Array | None) -> Beta:
        """α, the number or the array."""
        return whole_of(self.alpha, traced)


# Integer labels.


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _label_loss(
    x: jax.Array, labels: jax.Array, traced: jax.Array | None, family: _Family
) -> jax.Array:
    """Σ_{j≠c} pⱼ^α/α + b(1, p_c) where the label has more than half, else by definition."""
    alpha, classes = family.alpha_of(traced), family.classes
    p = family_rows(x, alpha, classes)
    label = is_label(labels, x, classes.axes[0])
    others = jnp.where(label, 0, p)
    missing = classes.sum(others)
    likely = classes.sum(power(others, alpha)) + _of_certain(missing, alpha - 1)
    d = depth(x, top_of(x, classes))
    mean = classes.sum(p * where_positive(d, p)) - classes.sum(jnp.where(label, d, 0))
    unlikely = mean + _entropy(p, alpha, classes)
    return jnp.where(classes.sum(jnp.where(label, p, 0)) > 0.5, likely / alpha, unlikely)


@_label_loss.defjvp
def _label_loss_jvp(
    family: _Family,
    primals: tuple[jax.Array, jax.Array, jax.Array | None],
    tangents: tuple[Any, Any, Any],
) -> tuple[jax.Array, jax.Array]:
    x, labels, traced = primals
    loss = _label_loss(x, labels, traced, family)
    return loss, _label_pushforward((tangents[0], tangents[2]), x, labels, traced, family)


@recomputed(static_argnums=(4,))
def _label_pushforward(
    tangents: tuple[jax.Array, jax.Array | None],
    x: jax.Array,
    labels: jax.Array,
    traced: jax.Array | None,
    family: _Family,
) -> jax.Array:
    """⟨p − y, ẋ⟩, p − 1 at the label as minus the sum of the others, and ∂H(p)/∂α·α̇."""
    alpha, classes = family.alpha_of(traced), family.classes
    p = family_rows(x, alpha, classes)
    label = is_label(labels, x, classes.axes[0])
    others = jnp.where(label, 0, p)
    at_label = jnp.where(label & (x != -jnp.inf), classes.sum(others), 0)
    gradient = others - at_label
    pushed = classes.sum(gradient * where_positive(tangents[0], gradient, p))
    if tangents[1] is None:
        return pushed
    return pushed + tangents[1] * _entropy_slope(p, alpha, classes)


# Probabilities as labels.


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _target_loss(
    x: jax.Array, target: jax.Array, traced: jax.Array | None, family: _Family
) -> jax.Array:
    alpha, classes = family.alpha_of(traced), family.classes
    p = family_rows(x, alpha, classes)
    outside = target * (_surprise(x, p, target, alpha, classes) + _log(target, alpha) / alpha)
    inside = _divergence(target, jnp.where(p > 0, p, 1), alpha)
    terms = jnp.where(p > 0, inside, outside - target / alpha)
    return classes.sum(jnp.where((p > 0) | (target != 0), terms, 0))


@_target_loss.defjvp
def _target_loss_jvp(
    family: _Family,
    primals: tuple[jax.Array, jax.Array, jax.Array | None],
    tangents: tuple[Any, Any, Any],
) -> tuple[jax.Array, jax.Array]:
    return _target_loss(*primals, family), _target_pushforward(tangents, *primals, family)


@recomputed(static_argnums=(4,))
def _target_pushforward(
    tangents: tuple[jax.Array, jax.Array, jax.Array | None],
    x: jax.Array,
    target: jax.Array,
    traced: jax.Array | None,
    family: _Family,
) -> jax.Array:
    """⟨p − y, ẋ⟩ + ⟨log_β y − log_β p, ẏ⟩ + (∂H(p)/∂α − ∂H(y)/∂α)·α̇."""
    alpha, classes = family.alpha_of(traced), family.classes
    p = family_rows(x, alpha, classes)
    x_tangent, target_tangent, alpha_tangent = tangents
    gradient = _less_target(p, jnp.where(x == -jnp.inf, 0, target), classes)
    of_target = _surprise(x, p, target, alpha, classes) + _log(target, alpha)
    pushed = classes.sum(gradient * where_positive(x_tangent, gradient, p))
    pushed = pushed + classes.sum(jnp.where(jnp.isfinite(of_target), of_target, 0) * target_tangent)
    if alpha_tangent is None:
        return pushed
    slopes = [_entropy_slope(a, alpha, classes) for a in (p, target)]
    return pushed + alpha_tangent * (slopes[0] - slopes[1])


def _less_target(p: jax.Array, target: jax.Array, classes: ClassAxes) -> jax.Array:
    """The difference p − y; where p has more than half, from the others: (1 − Σy) − Σ(p − y)."""
    is_hot = lax.stop_gradient(p > 0.5)
    others = jnp.where(is_hot, 0, p - target)
    at_hot = (1 - classes.sum(target)) - classes.sum(others)
    return jnp.where(is_hot, at_hot, others)


def _surprise(
    x: jax.Array, p: jax.Array, target: jax.Array, alpha: Beta, classes: ClassAxes
) -> jax.Array:
    """−log_β p on the support, and what continues it outside: θ − x, where x = θ + log_β p."""
    d = depth(x, top_of(x, classes))
    theta = classes.sum(p * (where_positive(d, p) - deformed_log(p, alpha - 1)))
    matters = (p > 0) | (target != 0) | (d != -jnp.inf)
    return jnp.where(p > 0, -deformed_log(p, alpha - 1), theta - jnp.where(matters, d, 0))


# Powers: divergences and entropies of numbers and rows.


def _divergence(y: jax.Array, p: jax.Array, alpha: Beta) -> jax.Array:
    """b(y, p) = y^α/(αβ) + p^α/α − yp^β/β ≥ 0: p^α times a function of y/p, or the reverse."""
    if is_number(alpha, 2):
        return (y - p) ** 2 / 2
    excess = (y - p) / p
    is_near, is_below = jnp.abs(excess) <= 0.25, y < p
    near = power(p, alpha) * _series(jnp.where(is_near, excess, 0), 0.5, alpha)
    low = jnp.where(is_below & ~is_near, y / p, 0)
    below = power(p, alpha) * (1 + low * (deformed_log(low, alpha - 1) - 1)) / alpha
    high = jnp.where(is_below | is_near, 1, p / jnp.where(y > 0, y, 1))
    above = (power(high, alpha) - 1) / alpha - deformed_log(high, alpha - 1)
    above = power(jnp.where(is_below | is_near, 0, y), alpha) * above
    return jnp.where(is_near, near, jnp.where(is_below, below, above))


def _of_certain(missing: jax.Array, beta: Beta) -> jax.Array:
    """αb(1, 1 − ε) = L(1 + βε) − ε with L = −log_β(1 − ε), without its cancellation."""
    if is_number(beta, 1):
        return missing * missing
    is_small = missing <= 0.25
    small, large = jnp.where(is_small, missing, 0), jnp.where(is_small, 0, missing)
    excess = _series(-small, (1 - beta) / 2, beta)
    near = excess + beta * small * (small + excess)
    surprise = -deformed_log(jnp.maximum(1 - large, 0), beta)
    return jnp.where(is_small, near, surprise * (1 + beta * large) - large)


def _series(e: jax.Array, first: Beta, exponent: Beta) -> jax.Array:
    """e²·Σ aₙeⁿ of a binomial series, a₀ = `first`, aₙ = aₙ₋₁(exponent − n − 1)/(n + 2)."""
    count = 12 if e.dtype == jnp.float32 else 26
    coefficients = [first]
    for n in range(1, count):
        coefficients.append(coefficients[-1] * (exponent - n - 1) / (n + 2))
    total = jnp.zeros_like(e)
    for coefficient in reversed(coefficients):
        total = total * e + coefficient
    return e * e * total


def _entropy(p: jax.Array, alpha: Beta, classes: ClassAxes) -> jax.Array:
    """H(p) = −(1/α)Σ p log_β p."""
    return -classes.sum(p * deformed_log(p, alpha - 1)) / alpha


def _entropy_slope(p: jax.Array, alpha: Beta, classes: ClassAxes) -> jax.Array:
    """∂H(p)/∂α; the logarithm of a p above ½ is that of 1 less the others."""
    is_hot = lax.stop_gradient(p > 0.5)
    others = classes.sum(jnp.where(is_hot, 0, p))
    log_p = jnp.where(is_hot, jnp.log1p(-jnp.minimum(others, 0.5)), safe_log(p))
    logs = deformed(log_p, alpha - 1) / alpha - deformed_slope(log_p, alpha - 1)
    at_zero = _at_zero(alpha) / alpha - _at_zero(alpha) ** 2
    return classes.sum(p * jnp.where(p > 0, logs, at_zero)) / alpha


def _log(y: jax.Array, alpha: Beta) -> jax.Array:
    """log_β y; at 0 its limit −1/β, if that is finite."""
    return jnp.where(y > 0, deformed_log(y, alpha - 1), _at_zero(alpha))


def _at_zero(alpha: Beta) -> jax.Array:
    """log_β 0 = −1/β; as good as 0 where it is not finite."""
    return -1 / jnp.where(alpha == 1, 1e15, alpha - 1)

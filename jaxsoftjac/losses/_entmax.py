"""The Fenchel–Young losses of α-entmax: convex, of gradient p − y, 0 once a margin is reached.

With log_β p = (p^β − 1)/β, β = α − 1, the loss is Σ b(yᵢ, pᵢ) over the support, b the divergence of
two numbers, and linear in the logits outside of it. Every b is ≥ 0 and made without differences of
what is nearly equal, so that small losses keep their digits; from α = 2 on those that p has, which
near the margin is a difference of logits.
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
from jaxsoftjac.losses._tsallis import (
    divergence,
    limit_log,
    of_certain,
    tsallis_entropy,
    tsallis_entropy_slope,
)
from jaxsoftjac.sparse._functions import checked_alpha, family_rows, parts_of, whole_of
from jaxsoftjac.sparse._powers import Beta, deformed_log, power


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
    likely = classes.sum(power(others, alpha)) + of_certain(missing, alpha - 1)
    d = depth(x, top_of(x, classes))
    mean = classes.sum(p * where_positive(d, p)) - classes.sum(jnp.where(label, d, 0))
    unlikely = mean + tsallis_entropy(p, alpha, classes)
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
    return pushed + tangents[1] * tsallis_entropy_slope(p, alpha, classes)


# Probabilities as labels.


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _target_loss(
    x: jax.Array, target: jax.Array, traced: jax.Array | None, family: _Family
) -> jax.Array:
    alpha, classes = family.alpha_of(traced), family.classes
    p = family_rows(x, alpha, classes)
    outside = target * (_surprise(x, p, target, alpha, classes) + limit_log(target, alpha) / alpha)
    inside = divergence(target, jnp.where(p > 0, p, 1), alpha)
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
    of_target = _surprise(x, p, target, alpha, classes) + limit_log(target, alpha)
    pushed = classes.sum(gradient * where_positive(x_tangent, gradient, p))
    pushed = pushed + classes.sum(jnp.where(jnp.isfinite(of_target), of_target, 0) * target_tangent)
    if alpha_tangent is None:
        return pushed
    slopes = [tsallis_entropy_slope(a, alpha, classes) for a in (p, target)]
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

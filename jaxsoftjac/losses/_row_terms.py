"""What a cross-entropy needs of each row, with one elementwise pass as the derivative of all of it.

The terms of a row are sums over its classes. Their derivatives by the logits, the slopes, are
functions of the row and of its two statistics; along a tangent all slopes move by the same J ẋ, so
that value, gradient and every order share what has been found of the row.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftjac._row_functions import log1p_rest
from jaxsoftjac._rows import (
    ClassAxes,
    depth,
    exp_depth,
    first_class,
    is_label,
    statistics,
    top_of,
)
from jaxsoftjac._rules import recomputed
from jaxsoftjac.products import softmax_product, where_positive


class Terms(NamedTuple):
    """Sums over the classes of each row, whose axes stay with length 1; None is not asked for."""

    surprise: jax.Array  # Σ t·(−log σ), a sum of terms ≥ 0; +∞ where an excluded class has a share
    uniform: jax.Array | None  # the same for the uniform target of the kept classes
    log_normalizer: jax.Array | None


class _Slopes(NamedTuple):
    surprise: jax.Array  # σΣt − t
    sigma: jax.Array
    top: jax.Array  # the largest σ of the row, a constant of differentiation


class Asked(NamedTuple):
    """Which terms are asked for beside the surprise."""

    uniform: bool
    log_normalizer: bool


# Integer labels. What is one-hot is made where it is used, from an iota, and never kept.


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def label_terms(x: jax.Array, labels: jax.Array, classes: ClassAxes, asked: Asked) -> Terms:
    """The terms where t is one-hot at `labels`, which have length 1 on the class axis.

    −log σ at the label is a sum of two terms ≥ 0.
    """
    _, others, down = _apart(x, labels, classes)
    log_rest = log1p_rest(classes.sum(others) + (jnp.exp(-down) - 1))
    return Terms(down + log_rest, *_asked_terms(x, log_rest, classes, asked))


@label_terms.defjvp
def _label_terms_jvp(
    classes: ClassAxes,
    asked: Asked,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[Terms, Terms]:
    terms = label_terms(*primals, classes, asked)
    return terms, _label_pushforward(tangents[0], *primals, classes, asked)


@recomputed(static_argnums=(3, 4))
def _label_pushforward(
    tangent: jax.Array, x: jax.Array, labels: jax.Array, classes: ClassAxes, asked: Asked
) -> Terms:
    slopes = _label_slopes(x, labels, classes)
    surprise = classes.sum(slopes.surprise * where_positive(tangent, slopes.surprise))
    return Terms(surprise, *_asked_pushforward(tangent, x, slopes.sigma, classes, asked))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _label_slopes(x: jax.Array, labels: jax.Array, classes: ClassAxes) -> _Slopes:
    """At the label minus the sum of the others, or 0 where that is excluded; elsewhere σ."""
    label, others, down = _apart(x, labels, classes)
    own = jnp.exp(-down)
    rest = classes.sum(others)
    scale = 1 / jnp.maximum(rest + own, float(jnp.finfo(x.dtype).tiny))
    is_excluded = at_label(x, labels, classes) == -jnp.inf
    surprise = others * scale - label * jnp.where(is_excluded, 0, rest * scale)
    return _Slopes(surprise, (others + label * own) * scale, jax.lax.stop_gradient(scale))


@_label_slopes.defjvp
def _label_slopes_jvp(
    classes: ClassAxes,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[_Slopes, _Slopes]:
    slopes = _label_slopes(*primals, classes)
    moved = softmax_product(tangents[0], slopes.sigma, classes, slopes.top)
    return slopes, _Slopes(moved, moved, jnp.zeros_like(slopes.top))


def _apart(
    x: jax.Array, labels: jax.Array, classes: ClassAxes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One-hot of the label, exp(x − top) of the other classes (0 at the label), top − x there.

    Nothing is subtracted from a sum, so that Σ of the others keeps its digits. The label leaves by
    arithmetic, because XLA's CPU kernels store a whole array before they reduce a selection.
    """
    top = top_of(x, classes)
    label = _is_label(labels, x, classes).astype(x.dtype)
    others = jnp.exp(depth(x, top) - 1e30 * label)
    return label, others, -depth(at_label(x, labels, classes), top)


def at_label(x: jax.Array, labels: jax.Array, classes: ClassAxes) -> jax.Array:
    """`x` at the labels, by a gather or, where sharding forbids that, by comparison."""
    axis = classes.axes[0]
    if classes.axis_name is not None or jax.typeof(x).sharding.spec[axis] is not None:
        return classes.sum(jnp.where(_is_label(labels, x, classes), x, 0))
    inside = (labels >= 0) & (labels < x.shape[axis])
    return jnp.take_along_axis(x, jnp.where(inside, labels, 0), axis, mode="clip")


def _is_label(labels: jax.Array, x: jax.Array, classes: ClassAxes) -> jax.Array:
    axis = classes.axes[0]
    return is_label(labels, x, axis, first_class(x.shape[axis], classes.axis_name))


# Probabilities as labels, differentiable in both arguments. Every term is linear in the target.


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def target_terms(x: jax.Array, target: jax.Array, classes: ClassAxes, asked: Asked) -> Terms:
    """The terms of a target of the shape of `x`; a row of zeros is worth 0 whatever its logits."""
    top, rest = statistics(x, classes)
    log_rest = log1p_rest(rest)
    counts = target != 0
    down = jnp.where(counts, -depth(x, top), 0)
    surprise = classes.sum(jnp.where(counts, target, 0) * down) + log_rest * classes.sum(target)
    surprise = jnp.where(_has_target(target, classes), surprise, 0)
    return Terms(surprise, *_asked_terms(x, log_rest, classes, asked))


@target_terms.defjvp
def _target_terms_jvp(
    classes: ClassAxes,
    asked: Asked,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[Terms, Terms]:
    terms = target_terms(*primals, classes, asked)
    return terms, _target_pushforward(tangents, *primals, classes, asked)


@recomputed(static_argnums=(3, 4))
def _target_pushforward(
    tangents: tuple[jax.Array, jax.Array],
    x: jax.Array,
    target: jax.Array,
    classes: ClassAxes,
    asked: Asked,
) -> Terms:
    x_tangent, target_tangent = tangents
    slopes = _target_slopes(x, target, classes)
    along_logits = slopes.surprise * where_positive(x_tangent, slopes.surprise)
    top, rest = statistics(x, classes)
    surprise = jnp.where(x == -jnp.inf, 0, log1p_rest(rest) - depth(x, top))
    pushed = classes.sum(along_logits) + classes.sum(target_tangent * surprise)
    return Terms(pushed, *_asked_pushforward(x_tangent, x, slopes.sigma, classes, asked))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _target_slopes(x: jax.Array, target: jax.Array, classes: ClassAxes) -> _Slopes:
    """σΣt − t where there is a target, else 0."""
    top, rest = statistics(x, classes)
    e = exp_depth(x, top)
    scale = 1 / (1 + jnp.where(rest < 0, 0, rest))
    moves = (x != -jnp.inf) & _has_target(target, classes)
    surprise = _from_target(jnp.where(moves, target, 0), e, rest, classes)
    return _Slopes(jnp.where(moves, surprise, 0), e * scale, jax.lax.stop_gradient(scale))


@_target_slopes.defjvp
def _target_slopes_jvp(
    classes: ClassAxes,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[_Slopes, _Slopes]:
    (x, target), (x_tangent, target_tangent) = primals, tangents
    slopes = _target_slopes(x, target, classes)
    moved = softmax_product(x_tangent, slopes.sigma, classes, slopes.top)
    kept = x != -jnp.inf
    total = classes.sum(jnp.where(kept, target, 0))
    top, rest = statistics(x, classes)
    by_target = _from_target(jnp.where(kept, target_tangent, 0), exp_depth(x, top), rest, classes)
    pushed = jnp.where(_has_target(target, classes), total * moved, 0)
    pushed = pushed + jnp.where(kept, by_target, 0)
    return slopes, _Slopes(pushed, moved, jnp.zeros_like(slopes.top))


def _from_target(target: jax.Array, e: jax.Array, rest: jax.Array, classes: ClassAxes) -> jax.Array:
    """σΣt − t, linear in t; at the top class from the others: Σ_{j≠top} t − (1 − σ)·Σt."""
    scale = 1 / (1 + jnp.where(rest < 0, 0, rest))
    sigma, total = e * scale, classes.sum(target)
    below = classes.sum(target * (1 - jax.lax.stop_gradient(jnp.floor(e))))
    complement = jax.lax.stop_gradient(rest * scale) + (jax.lax.stop_gradient(sigma) - sigma)
    is_alone = (e == 1) & (rest < 1)
    return jnp.where(is_alone, below - total * complement, total * sigma - target)


def _has_target(target: jax.Array, classes: ClassAxes) -> jax.Array:
    return classes.max(jnp.abs(target)) != 0


# What is the same for both kinds of labels.


def _asked_terms(
    x: jax.Array, log_rest: jax.Array, classes: ClassAxes, asked: Asked
) -> tuple[jax.Array | None, jax.Array | None]:
    top = top_of(x, classes)
    uniform = log_normalizer = None
    if asked.uniform:
        down = jnp.where(x == -jnp.inf, 0, -depth(x, top))
        uniform = classes.sum(down * uniform_target(x, classes)) + log_rest
    if asked.log_normalizer:
        highest = classes.max(x)
        log_normalizer = jnp.where(jnp.isinf(highest), highest, top + log_rest)
    return uniform, log_normalizer


def _asked_pushforward(
    tangent: jax.Array, x: jax.Array, sigma: jax.Array, classes: ClassAxes, asked: Asked
) -> tuple[jax.Array | None, jax.Array | None]:
    uniform = log_normalizer = None
    if asked.uniform:
        kept = jnp.where(x == -jnp.inf, 0, tangent)
        uniform = classes.sum((sigma - uniform_target(x, classes)) * kept)
    if asked.log_normalizer:
        log_normalizer = classes.sum(sigma * where_positive(tangent, sigma))
    return uniform, log_normalizer


def uniform_target(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """One over the number of kept classes, 0 elsewhere: a constant of differentiation."""
    kept = jax.lax.stop_gradient((x != -jnp.inf).astype(x.dtype))
    return kept / jnp.maximum(classes.sum(kept), 1)

"""What a cross-entropy needs of each row, with one elementwise pass as the derivative of all of it.

The terms of a row are sums over its classes. Their derivatives by the logits, the slopes, are
functions of the row and of its two statistics; along a tangent all slopes move by the same J ẋ, so
that value, gradient and every order share what has been found of the row.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxsoftjac._checks import known_size
from jaxsoftjac._pivots import where_positive
from jaxsoftjac._row_functions import log1p_rest, of_top
from jaxsoftjac._rows import (
    ClassAxes,
    depth,
    exp_depth,
    first_class,
    half_depth,
    is_label,
    statistics,
    top_of,
)
from jaxsoftjac._rules import recomputed
from jaxsoftjac.products import softmax_product


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
    top, rest = statistics(x, classes)
    log_rest = log1p_rest(rest)
    surprise = log_rest - depth(at_label(x, labels, classes), top)
    return Terms(surprise, *_asked_terms(x, log_rest, classes, asked))


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
    kept = where_positive(tangent, slopes.surprise, slopes.sigma)
    surprise = classes.sum(slopes.surprise * kept)
    return Terms(surprise, *_asked_pushforward(tangent, x, slopes.sigma, classes, asked))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _label_slopes(x: jax.Array, labels: jax.Array, classes: ClassAxes) -> _Slopes:
    """σ, less 1 at the label: minus the sum of the others where that is the top class."""
    top, rest = statistics(x, classes)
    scale = of_top(rest)
    sigma = exp_depth(x, top) * scale
    logit = at_label(x, labels, classes)
    own = exp_depth(logit, top) * scale - 1
    exact = lax.stop_gradient(-rest * scale) + (own - lax.stop_gradient(own))
    own = jnp.where(logit == top, exact, jnp.where(logit == -jnp.inf, 0, own))
    surprise = jnp.where(_is_label(labels, x, classes), own, sigma)
    return _Slopes(surprise, sigma, lax.stop_gradient(scale))


@_label_slopes.defjvp
def _label_slopes_jvp(
    classes: ClassAxes,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[_Slopes, _Slopes]:
    slopes = _label_slopes(*primals, classes)
    moved = softmax_product(tangents[0], slopes.sigma, classes, slopes.top)
    return slopes, _Slopes(moved, moved, jnp.zeros_like(slopes.top))


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
    half = jnp.where(counts, -half_depth(x, top), 0)
    descent, total, size = classes.sums(target * half, target, jnp.abs(target))
    surprise = jnp.where(size != 0, 2 * descent + log_rest * total, 0)
    return Terms(surprise, *_asked_terms(x, log_rest, classes, asked))


@partial(target_terms.defjvp, symbolic_zeros=True)
def _target_terms_jvp(
    classes: ClassAxes,
    asked: Asked,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[Any, Any],
) -> tuple[Terms, Terms]:
    terms = target_terms(*primals, classes, asked)
    moves = tuple(None if isinstance(t, SymbolicZero) else t for t in tangents)
    return terms, _target_pushforward(moves, *primals, classes, asked)


@recomputed(static_argnums=(3, 4))
def _target_pushforward(
    tangents: tuple[jax.Array | None, jax.Array | None],
    x: jax.Array,
    target: jax.Array,
    classes: ClassAxes,
    asked: Asked,
) -> Terms:
    x_tangent, target_tangent = tangents
    pushed = jnp.zeros_like(x)
    slopes = _target_slopes(x, target, classes)
    if x_tangent is not None:
        kept = where_positive(x_tangent, slopes.surprise, slopes.sigma)
        pushed = slopes.surprise * kept
    if target_tangent is not None:
        top, rest = statistics(x, classes)
        half = jnp.where(x == -jnp.inf, 0, 0.5 * log1p_rest(rest) - half_depth(x, top))
        pushed = pushed + 2 * (target_tangent * half)
    along = _asked_pushforward(x_tangent, x, slopes.sigma, classes, asked)
    return Terms(classes.sum(pushed), *along)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _target_slopes(x: jax.Array, target: jax.Array, classes: ClassAxes) -> _Slopes:
    """σΣt − t where there is a target, else 0."""
    top, rest = statistics(x, classes)
    e, scale, kept = exp_depth(x, top), of_top(rest), x != -jnp.inf
    t = jnp.where(kept, target, 0)
    total, below, size = classes.sums(t, t * _is_below(e), jnp.abs(target))
    surprise = jnp.where(kept & (size != 0), _slope(t, total, below, e, rest), 0)
    return _Slopes(surprise, e * scale, lax.stop_gradient(scale))


@partial(_target_slopes.defjvp, symbolic_zeros=True)
def _target_slopes_jvp(
    classes: ClassAxes, primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]
) -> tuple[_Slopes, _Slopes]:
    (x, target), (x_tangent, target_tangent) = primals, tangents
    slopes = _target_slopes(x, target, classes)
    kept = x != -jnp.inf
    moved, pushed = jnp.zeros_like(x), jnp.zeros_like(x)
    if not isinstance(x_tangent, SymbolicZero):
        moved = softmax_product(x_tangent, slopes.sigma, classes, slopes.top)
        total = classes.sum(jnp.where(kept, target, 0))
        pushed = jnp.where(_has_target(target, classes), total * moved, 0)
    if not isinstance(target_tangent, SymbolicZero):
        top, rest = statistics(x, classes)
        e, along = exp_depth(x, top), jnp.where(kept, target_tangent, 0)
        sums = classes.sum(along), classes.sum(along * _is_below(e))
        pushed = pushed + jnp.where(kept, _slope(along, *sums, e, rest), 0)
    return slopes, _Slopes(pushed, moved, jnp.zeros_like(slopes.top))


def _slope(
    t: jax.Array, total: jax.Array, below: jax.Array, e: jax.Array, rest: jax.Array
) -> jax.Array:
    """σΣt − t, linear in t; at the top class from the others: Σ_{j≠top} t − (1 − σ)·Σt."""
    scale = of_top(rest)
    sigma = e * scale
    complement = lax.stop_gradient(rest * scale) + (lax.stop_gradient(sigma) - sigma)
    is_alone = (e == 1) & (rest < 1)
    return jnp.where(is_alone, below - total * complement, total * sigma - t)


def _is_below(e: jax.Array) -> jax.Array:
    """0 at the top class, 1 elsewhere."""
    return 1 - lax.stop_gradient(jnp.floor(e))


def _has_target(target: jax.Array, classes: ClassAxes) -> jax.Array:
    return classes.max(jnp.abs(target)) != 0


# What is the same for both kinds of labels.


def _asked_terms(
    x: jax.Array, log_rest: jax.Array, classes: ClassAxes, asked: Asked
) -> tuple[jax.Array | None, jax.Array | None]:
    top = top_of(x, classes)
    uniform = log_normalizer = None
    if asked.uniform:
        uniform = _of_kept(x, top, classes)[1] + log_rest
    if asked.log_normalizer:
        highest = classes.max(x)
        log_normalizer = jnp.where(jnp.isinf(highest), highest, top + log_rest)
    return uniform, log_normalizer


def _asked_pushforward(
    tangent: jax.Array | None, x: jax.Array, sigma: jax.Array, classes: ClassAxes, asked: Asked
) -> tuple[jax.Array | None, jax.Array | None]:
    uniform = log_normalizer = None
    tangent = jnp.zeros_like(x) if tangent is None else tangent
    if asked.uniform:
        kept = jnp.where(x == -jnp.inf, 0, tangent)
        uniform = classes.sum((sigma - uniform_target(x, classes)) * kept)
    if asked.log_normalizer:
        log_normalizer = classes.sum(sigma * where_positive(tangent, sigma))
    return uniform, log_normalizer


def uniform_target(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """One over the number of kept classes, 0 elsewhere: a constant of differentiation."""
    return _of_kept(x, top_of(x, classes), classes)[0]


def _of_kept(x: jax.Array, top: jax.Array, classes: ClassAxes) -> tuple[jax.Array, jax.Array]:
    """The uniform target of the classes that are not excluded, and the mean of top − x over it."""
    kept = lax.stop_gradient((x != -jnp.inf).astype(x.dtype))
    half = jnp.where(x == -jnp.inf, 0, -half_depth(x, top))
    K = known_size(x.shape[classes.axes[0]], 2**31)
    width = max(1, K)  # the sum of what is large could overflow
    descent, count = classes.sums(half / width, kept)
    count = jnp.maximum(count, 1)
    return kept / count, descent * (2 * width / count)

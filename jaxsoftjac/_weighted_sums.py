"""Logs of weighted sums of exponentials, log |Σ b exp(x)|: weights of any sign, 0 included."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxsoftjac._rows import ClassAxes, depth, nan_unless

_Pair = tuple[jax.Array, jax.Array]


def weighted_logsumexp(x: jax.Array, b: jax.Array, classes: ClassAxes) -> _Pair:
    """The logarithm of |Σ b exp(x)|, −∞ for an empty sum, and the sign of the sum.

    `x` and `b` have one shape. Weights whose sum could overflow are measured in a large unit.
    """
    large = 2.0 ** (jnp.finfo(b.dtype).maxexp // 2)
    unit = jnp.where(classes.max(jnp.abs(b)) > large, large, 1).astype(b.dtype)
    value, sign = _weighted_logsumexp(x, b / unit, classes)
    return value + jnp.log(unit), sign


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _weighted_logsumexp(x: jax.Array, b: jax.Array, classes: ClassAxes) -> _Pair:
    """If a single term 1 makes up most of a sum near 1, the others are added up without it."""
    top, highest = _top(x, b, classes)
    terms = b * _exp(x, top)
    total = classes.sum(terms)
    is_one = (terms == 1) & (b == 1)
    others = classes.sum(jnp.where(is_one, 0, terms)) + (classes.sum(is_one.astype(x.dtype)) - 1)
    exact = lax.stop_gradient(others) + (total - lax.stop_gradient(total))
    near_one = jnp.abs(total - 1) < 0.5
    size = jnp.where(near_one | (total == 0), 1, jnp.abs(total))
    log_total = jnp.where(near_one, jnp.log1p(jnp.where(near_one, exact, 0)), jnp.log(size))
    value = jnp.where(jnp.isinf(highest), highest, top + log_total)
    value = jnp.where(total == 0, -jnp.inf, value)
    defined = nan_unless((total != 0) | (highest != jnp.inf), x.dtype)  # not ∞ − ∞
    return value * defined, lax.stop_gradient(jnp.sign(total)) * defined


@partial(_weighted_logsumexp.defjvp, symbolic_zeros=True)
def _weighted_logsumexp_jvp(
    classes: ClassAxes, primals: _Pair, tangents: tuple[Any, Any]
) -> tuple[_Pair, _Pair]:
    (x, b), (x_tangent, b_tangent) = primals, tangents
    ratio = _ratio(x, b, classes)
    value, sign = _weighted_logsumexp(x, b, classes)
    pushed = jnp.zeros_like(x)
    if not isinstance(x_tangent, SymbolicZero):
        is_nothing = jnp.isinf(ratio) & (b == 0)  # of a sum that is 0
        pushed = jnp.where(is_nothing, 0, ratio) * b * _moving(x_tangent, x)
    if not isinstance(b_tangent, SymbolicZero):
        pushed = pushed + ratio * _moving(b_tangent, x)
    return (value, sign), (classes.sum(pushed), jnp.zeros_like(sign))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _ratio(x: jax.Array, b: jax.Array, classes: ClassAxes) -> jax.Array:
    """The ratio exp(x)/Σ b exp(x): the derivative by b, and times b that by x; 0 where x is −∞."""
    top, _ = _top(x, b, classes)
    e = _exp(x, top)
    total = classes.sum(b * e)
    ratio = e / jnp.where((total == 0) & (e == 0), 1, total)
    bound = float(jnp.finfo(x.dtype).max)
    return jnp.where(total == 0, ratio, jnp.clip(ratio, -bound, bound))  # for weights of 0


@_ratio.defjvp
def _ratio_jvp(classes: ClassAxes, primals: _Pair, tangents: _Pair) -> tuple[jax.Array, jax.Array]:
    (x, b), (x_tangent, b_tangent) = primals, tangents
    ratio = _ratio(x, b, classes)
    along_x, along_b = _moving(x_tangent, x), _moving(b_tangent, x)
    centred = along_x - classes.sum(b * ratio * along_x)
    centred = centred - classes.sum(b * ratio * centred)
    return ratio, ratio * (centred - classes.sum(ratio * along_b))


def _exp(x: jax.Array, top: jax.Array) -> jax.Array:
    """The exponentials exp(x − top), finite also above the top, where the weight is 0."""
    return jnp.minimum(jnp.exp(depth(x, top)), float(jnp.finfo(x.dtype).max))


def _top(x: jax.Array, b: jax.Array, classes: ClassAxes) -> _Pair:
    """The largest x whose weight is not 0: made finite, and as it is."""
    highest = classes.max(jnp.where(b == 0, -jnp.inf, x))
    bound = float(jnp.finfo(x.dtype).max)
    return jnp.clip(highest, -bound, bound), highest


def _moving(tangent: jax.Array, x: jax.Array) -> jax.Array:
    """The tangent, 0 at terms that are left out."""
    return jnp.where(x == -jnp.inf, 0, tangent)

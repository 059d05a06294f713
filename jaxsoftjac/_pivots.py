"""The pivot of a product with J: from where in a row the vector is measured, and what counts there.

J does not see a constant that is added to the vector, but rounding does. Measured from its value at
the most probable class, the vector keeps its digits, and there is exactly 0.

>>> import jax.numpy as jnp
>>> from jaxsoftjac._rows import LAST
>>> print(pivot_weights(jnp.array([0.25, 0.75]), LAST))
[0. 1.]
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._rows import ClassAxes


def where_positive(v: jax.Array, sigma: jax.Array, *others: jax.Array) -> jax.Array:
    """`v` where σ or one of the `others` is ≠ 0, and 0 elsewhere; a NaN is let through.

    So 0·∞ never arises. Where v is multiplied by a difference of probabilities, that may be 0 with
    a derivative that is not: the probabilities belong to the `others`.
    """
    counts = sigma != 0
    for other in others:
        counts = counts | (other != 0)
    return jnp.where(counts, v, 0)


def where_finite(v: jax.Array, sigma: jax.Array) -> jax.Array:
    """`v`, and 0 where σ is 0 and v is not finite: what is finite has a derivative by a free σ."""
    return jnp.where((sigma != 0) | jnp.isfinite(v), v, 0)


@jax.custom_jvp
def unless_excluded(x: jax.Array) -> jax.Array:
    """Logits, of which what is −∞ does not move, whatever its tangent."""
    return x


@unless_excluded.defjvp
def _unless_excluded_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return unless_excluded(*primals), jnp.where(primals[0] == -jnp.inf, 0, tangents[0])


def bits_where_positive(v: jax.Array, sigma: jax.Array) -> jax.Array:
    """`where_positive` by integer arithmetic on the bits. Not for what is differentiated.

    Compilers vectorise it inside a reduction, where they store what a select returns.
    """
    return _bits_where_nonzero(v, _bits(jnp.abs(sigma)))


def bits_where_kept(v: jax.Array, x: jax.Array) -> jax.Array:
    """`v`, and 0 where the logit is −∞, likewise."""
    return _bits_where_nonzero(v, _bits(x) ^ _bits(jnp.full_like(x, -jnp.inf)))


def _bits_where_nonzero(v: jax.Array, flags: jax.Array) -> jax.Array:
    shift = jnp.full_like(flags, 8 * flags.dtype.itemsize - 1)
    mask = lax.shift_right_arithmetic(flags | -flags, shift)
    return lax.bitcast_convert_type(_bits(v) & mask, v.dtype)


def _bits(a: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(a, jnp.dtype(f"int{8 * a.dtype.itemsize}"))


def pivot_weights(sigma: jax.Array, classes: ClassAxes) -> jax.Array:
    """Weights e ≥ 0, Σe = 1: one-hot at the top class, or σ where no class has more than 1/16.

    The weights depend on σ alone, which keeps the program linear in v, and are constants of
    differentiation: J does not depend on them.
    """
    excess = pivot_excess(sigma, classes)
    return excess * (1 / at_least_tiny(classes.sum(excess)))


def at_least_tiny(weight: jax.Array) -> jax.Array:
    """What may be divided by."""
    return jnp.maximum(weight, float(jnp.finfo(weight.dtype).tiny))


def pivot_excess(sigma: jax.Array, classes: ClassAxes, top: jax.Array | None = None) -> jax.Array:
    """The weights, before they are divided by their sum.

    One arithmetic form for both, max(σ − τ, 0), because compilers vectorise that: with τ the float
    just below the top of the row, only the top is left. Its excess is a power of two, so that the
    weight is exactly 1 and the pivot's own value cancels exactly. A pivot of small weight could be
    an outlier of v, hence τ = 0 on flat rows.
    """
    sigma = lax.stop_gradient(sigma)
    if top is None or classes.axis_name is not None:  # what is split must be found where it is used
        top = jnp.maximum(classes.max(sigma), 0)
    is_peaked = peaked(top)
    just_below = top * (1 - float(jnp.finfo(sigma.dtype).eps) / 2)
    excess = sigma - just_below * is_peaked
    return excess + jnp.abs(excess)  # twice the positive part: a constant would be stored


def peaked(top: jax.Array) -> jax.Array:
    """1 where the top class of a row has more than 1/16, else 0."""
    return jnp.clip((top - 1 / 16) * 1e30, 0, 1)

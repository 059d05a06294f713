"""Divergences and entropies of α-entmax, of numbers and of rows, made without cancellation.

>>> import jax.numpy as jnp
>>> from jaxsoftjac._rows import LAST
>>> print(tsallis_entropy(jnp.array([0.5, 0.5]), 2.0, LAST))
[0.25]
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._rows import ClassAxes
from jaxsoftjac.sparse._powers import (
    Beta,
    deformed,
    deformed_log,
    deformed_slope,
    is_number,
    power,
    safe_log,
)


def divergence(y: jax.Array, p: jax.Array, alpha: Beta) -> jax.Array:
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


def of_certain(missing: jax.Array, beta: Beta) -> jax.Array:
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


def tsallis_entropy(p: jax.Array, alpha: Beta, classes: ClassAxes) -> jax.Array:
    """H(p) = −(1/α)Σ p log_β p."""
    return -classes.sum(p * deformed_log(p, alpha - 1)) / alpha


def tsallis_entropy_slope(p: jax.Array, alpha: Beta, classes: ClassAxes) -> jax.Array:
    """∂H(p)/∂α; the logarithm of a p above ½ is that of 1 less the others."""
    is_hot = lax.stop_gradient(p > 0.5)
    others = classes.sum(jnp.where(is_hot, 0, p))
    log_p = jnp.where(is_hot, jnp.log1p(-jnp.minimum(others, 0.5)), safe_log(p))
    logs = deformed(log_p, alpha - 1) / alpha - deformed_slope(log_p, alpha - 1)
    at_zero = _at_zero(alpha) / alpha - _at_zero(alpha) ** 2
    return classes.sum(p * jnp.where(p > 0, logs, at_zero)) / alpha


def limit_log(y: jax.Array, alpha: Beta) -> jax.Array:
    """log_β y; at 0 its limit −1/β, if that is finite."""
    return jnp.where(y > 0, deformed_log(y, alpha - 1), _at_zero(alpha))


def _at_zero(alpha: Beta) -> jax.Array:
    """log_β 0 = −1/β; as good as 0 where it is not finite."""
    return -1 / jnp.where(alpha == 1, 1e15, alpha - 1)

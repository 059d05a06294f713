"""Powers and logarithms of the family, β = α − 1: smooth in β, also where it is 0.

log_β p = (p^β − 1)/β is log p at β = 0, and its inverse is [1 + βy]₊^{1/β}. Static β = ½ and 1 are
spelt as roots and squares; any other β, which may be an array, as exponentials of logarithms. Each
formula is differentiable as it stands, with derivative 0 at p = 0.

>>> import jax.numpy as jnp
>>> print(deformed_log(jnp.array([1.0, 0.25]), 0.5), deformed_log(jnp.array([1.0, 0.25]), 1.0))
[ 0. -1.] [ 0.   -0.75]
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Beta = float | jax.Array


def is_number(beta: Beta, value: float) -> bool:
    """Whether β is this Python number, for which there is a shorter formula."""
    return isinstance(beta, float) and beta == value


def weights(p: jax.Array, beta: Beta) -> jax.Array:
    """S = p^{1−β}, and 0 where p is 0."""
    if is_number(beta, 1):
        return lax.stop_gradient((p > 0).astype(p.dtype))
    if is_number(beta, 0.5):
        return jnp.where(p > 0, jnp.sqrt(jnp.where(p > 0, p, 1)), 0)
    return power(p, 1 - beta)


def log_weights(p: jax.Array, alpha: Beta) -> jax.Array:
    """Log s = (2 − α) log p, and −∞ where p is 0."""
    return jnp.where(p > 0, (2 - alpha) * safe_log(p), -jnp.inf)


def power(p: jax.Array, exponent: Beta) -> jax.Array:
    """p^exponent, and 0 where p is 0."""
    if is_number(exponent, 2):
        return p * p
    return jnp.where(p > 0, jnp.exp(exponent * safe_log(p)), 0)


def deformed_log(p: jax.Array, beta: Beta) -> jax.Array:
    """log_β p = (p^β − 1)/β of p > 0; 0 where p is 0."""
    if is_number(beta, 1):
        return jnp.where(p > 0, p - 1, 0)
    return deformed(safe_log(p), beta)


def deformed(log_p: jax.Array, beta: Beta) -> jax.Array:
    """log_β p, given log p."""
    return log_p * _expm1_ratio(beta * log_p)


def deformed_log_slope(p: jax.Array, beta: Beta) -> jax.Array:
    """∂ log_β p/∂β; 0 where p is 0."""
    return deformed_slope(safe_log(p), beta)


def deformed_slope(log_p: jax.Array, beta: Beta) -> jax.Array:
    """∂ log_β p/∂β = log²p·φ(β log p), φ(z) = (e^z(z − 1) + 1)/z², given log p."""
    return log_p * log_p * _phi(beta * log_p)


def log_of_root(z: jax.Array, y: jax.Array, beta: Beta) -> jax.Array:
    """Log z^{1/β} of z = 1 + βy > 0; y itself at β = 0.

    With w = βy/(2 + βy) it is y·2/(2 + βy)·(1 + w²/3 + w⁴/5 + …), which is used near z = 1.
    """
    is_near = jnp.abs(beta * y) <= 0.25
    near = jnp.where(is_near, y, 0)
    w = beta * near / (2 + beta * near)
    series = 2 * near / (2 + beta * near) * _polynomial(w * w, [1 / (2 * n + 1) for n in range(11)])
    far = jnp.log(jnp.where(is_near, 1, z)) / jnp.where(beta == 0, 1, beta)
    return jnp.where(is_near, series, far)


def safe_log(p: jax.Array) -> jax.Array:
    """Log p, and 0 where p is 0."""
    return jnp.log(jnp.where(p > 0, p, 1))


def _expm1_ratio(z: jax.Array) -> jax.Array:
    """(e^z − 1)/z, 1 at 0."""
    is_small = jnp.abs(z) < 0.5
    coefficients = [1 / math.factorial(n + 1) for n in range(14)]
    large = jnp.where(is_small, 1, z)
    series = _polynomial(jnp.where(is_small, z, 0), coefficients)
    return jnp.where(is_small, series, jnp.expm1(large) / large)


def _phi(z: jax.Array) -> jax.Array:
    is_small = jnp.abs(z) < 1
    coefficients = [1 / (math.factorial(n) * (n + 2)) for n in range(18)]
    large = jnp.where(is_small, 1, z)
    series = _polynomial(jnp.where(is_small, z, 0), coefficients)
    return jnp.where(is_small, series, (jnp.exp(large) * (large - 1) + 1) / (large * large))


def _polynomial(z: jax.Array, coefficients: Sequence[float]) -> jax.Array:
    total = jnp.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total

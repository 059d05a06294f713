"""Products with J, its inverses and roots as functions of (v, σ), σ free or on the simplex.

The values are those of `products`, which use Σσ = 1 to keep all digits. Their derivatives in σ
suppose Σσ̇ = 0, as softmax guarantees. For a σ that comes from elsewhere (`on_simplex` False) the
derivatives here are those of the matrix diag(σ) − σσᵀ entry by entry.

>>> import jax, jax.numpy as jnp
>>> sigma, v = jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])
>>> print(jax.jacfwd(lambda sigma: product(v, sigma, on_simplex=False))(sigma))
[[ 0.   0. ]
 [-0.5 -0.5]]
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._pivots import pivot_weights, where_finite, where_positive
from jaxsoftjac._rows import LAST, ClassAxes
from jaxsoftjac._rules import quotient, recomputed
from jaxsoftjac.products import centre

_Pair = tuple[jax.Array, jax.Array]


def product(v: jax.Array, sigma: jax.Array, on_simplex: bool) -> jax.Array:
    """Jv; its entries sum to 0, so that Krylov methods stay in the range of J."""
    if not on_simplex:
        return _product(v, sigma)
    return lax.custom_linear_solve(
        lambda y: quotient(y, sigma),
        v,
        lambda _, b: _explicit_product(b, sigma, LAST),
        symmetric=True,
    )


def centred(v: jax.Array, sigma: jax.Array, on_simplex: bool) -> jax.Array:
    """The tangent of log σ: v − ⟨σ, v⟩."""
    return centre(v, sigma, LAST) if on_simplex else _centred(v, sigma)


def variance(v: jax.Array, sigma: jax.Array, on_simplex: bool) -> jax.Array:
    """vᵀJv of each row: Σσ(v − ⟨σ, v⟩)²."""
    row = _variance_on_simplex(v, sigma, LAST) if on_simplex else _variance(v, sigma)
    return lax.squeeze(row, (row.ndim - 1,))


def factor_product(w: jax.Array, sigma: jax.Array, on_simplex: bool) -> jax.Array:
    """Fw = √σ⊙w − σ⟨√σ, w⟩ as J(w/√σ), which does not cancel; a root of 0 is a constant."""
    along = where_positive(w, sigma) / jnp.sqrt(_positive(sigma))
    return product(along, sigma, on_simplex)


def factor_t_product(v: jax.Array, sigma: jax.Array, on_simplex: bool) -> jax.Array:
    """Fᵀv = √σ⊙(v − ⟨σ, v⟩)."""
    root = where_positive(jnp.sqrt(_positive(sigma)), sigma)
    return root * where_positive(centred(v, sigma, on_simplex), sigma)


def damped_solution(
    b: jax.Array, sigma: jax.Array, delta: jax.Array, on_simplex: bool
) -> jax.Array:
    """(J + diag(δ))⁻¹b as z + κ·1 with Σσz = 0: of (σ + δ)z + δκ = b, where J acts on z alone.

    For a small δ the common part κ ≈ Σb/Σδ is large: derivatives would lose in it what z has. The
    condition Σσz = 0 is added to the equations of the classes with σ > δ, so that neither the
    solution nor its derivatives are differences of what is nearly equal.
    """
    total, inverse = LAST.sum(sigma), 1 / (sigma + delta)
    excess = jnp.zeros_like(total) if on_simplex else total - lax.stop_gradient(total)
    share, rest = sigma * inverse, delta * inverse
    size = LAST.sum(delta * share)
    is_large = lax.stop_gradient(sigma > delta)

    def large(a: jax.Array, others: jax.Array | float = 0) -> jax.Array:
        return LAST.sum(jnp.where(is_large, a, others))

    def matvec(zk: _Pair) -> _Pair:
        z, k = zk
        along = (delta - excess * sigma) * k
        return (sigma + delta) * z + along, large(delta * z + along, -sigma * z)

    def solve(_: Any, right: _Pair) -> _Pair:
        b, of_large = right
        k = (of_large + large(-rest * b, share * b)) / size
        return inverse * b - rest * k, k

    def transpose_solve(_: Any, right: _Pair) -> _Pair:
        g, whole = right
        m = (LAST.sum(share * g) + (whole - LAST.sum(g))) / size
        return inverse * g - jnp.where(is_large, rest, -share) * m, m

    z, k = lax.custom_linear_solve(matvec, (b, large(b)), solve, transpose_solve)
    return z + k


def pseudo_inverse_product(v: jax.Array, log_sigma: jax.Array, kept: jax.Array) -> jax.Array:
    """J⁺v = M diag(1/σ) Mv, M the projection on the vectors of sum 0 on the `kept` classes."""
    half = jnp.exp(jnp.minimum(-log_sigma / 2, math.log(jnp.finfo(v.dtype).max)))
    return _less_mean(_less_mean(v, kept) * half * half, kept)


def square_root_product(v: jax.Array, sigma: jax.Array, scale: jax.Array) -> jax.Array:
    """J^{1/2}v = (1/π) ∫ √t (J + t)⁻¹Jv d log t, by the trapezoidal rule in log t.

    On an integrand that is analytic in a strip of width 2π the rule converges exponentially: 51
    resolvents give float32, 263 float64. Each is r⊙(v − ⟨r, v⟩/Σr) with r = σ/(σ + t). The error
    is a few ulps of √λ_max·‖v‖; the derivative in σ is right where eigenvalues tie.

    Cost: O(K), and memory for one resolvent at a time, also in reverse mode.

    Args:
        v: vectors [..., K].
        sigma: probabilities [..., K].
        scale: about λ_max [...].

    Returns:
        Array [..., K].
    """
    digits = -math.log(jnp.finfo(sigma.dtype).eps)
    step = 2 * math.pi**2 / digits
    count = int(2 * digits / step)
    scale = lax.stop_gradient(jnp.where(scale == 0, 1, scale))[..., None]
    v = where_finite(centre(v, sigma, LAST), sigma)
    unit = float(2.0 ** (jnp.finfo(sigma.dtype).maxexp // 2))  # in which no node underflows
    poles = unit * sigma

    @recomputed
    def resolve(total: jax.Array, log_t: jax.Array) -> tuple[jax.Array, None]:
        t = (unit * scale) * jnp.exp(log_t)
        share = quotient(poles, poles + t)
        mean = quotient(LAST.sum(share * v), LAST.sum(share))
        return total + jnp.sqrt(t) * share * (v - mean), None

    nodes = step * jnp.arange(-count, count + 1, dtype=sigma.dtype)
    total, _ = lax.scan(resolve, jnp.zeros_like(v), nodes)
    return total * (step / (math.pi * math.sqrt(unit)))


def _variance_on_simplex(v: jax.Array, sigma: jax.Array, classes: ClassAxes) -> jax.Array:
    return classes.sum(sigma * where_finite(centre(v, sigma, classes), sigma) ** 2)


def _explicit_product(v: jax.Array, sigma: jax.Array, classes: ClassAxes) -> jax.Array:
    """PᵀJPv, P = I − 1eᵀ with the pivot's weights e: differentiable by a σ that is free."""
    e = pivot_weights(sigma, classes)
    v = where_finite(v, sigma)
    d = where_finite(v - classes.sum(e * v), sigma)
    w = sigma * (d - classes.sum(sigma * d))
    return w - e * classes.sum(w)


# What the product, the centred vector and the variance are more than the matrix's where Σσ = 1 + ε,
# in units of ε.


def _product_off_simplex(v: jax.Array, sigma: jax.Array, excess: jax.Array) -> jax.Array:
    e, pivot, mean = _pivot_and_mean(v, sigma)
    return pivot * sigma + e * (mean - pivot * (1 + excess))


def _centred_off_simplex(v: jax.Array, sigma: jax.Array, excess: jax.Array) -> jax.Array:
    return _pivot_and_mean(v, sigma)[1]


def _variance_off_simplex(v: jax.Array, sigma: jax.Array, excess: jax.Array) -> jax.Array:
    _, pivot, mean = _pivot_and_mean(v, sigma)
    return mean**2 + pivot * excess * (pivot * (1 + excess) - 2 * mean)


def _pivot_and_mean(v: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pivot's weights, its value, and the mean."""
    e, v = pivot_weights(sigma, LAST), where_finite(v, sigma)
    return e, LAST.sum(e * v), LAST.sum(sigma * v)


def _of_matrix(
    function: Callable[[jax.Array, jax.Array, ClassAxes], jax.Array],
    off_simplex: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`function(v, σ)`, differentiated as if Σσ were free: ε is 0, its derivative Σσ̇."""

    def moving(v: jax.Array, sigma: jax.Array) -> jax.Array:
        total = LAST.sum(sigma)
        excess = total - lax.stop_gradient(total)
        return function(v, sigma, LAST) - excess * off_simplex(v, sigma, excess)

    @jax.custom_jvp
    def value(v: jax.Array, sigma: jax.Array) -> jax.Array:
        return function(v, sigma, LAST)

    @value.defjvp
    def value_jvp(primals: _Pair, tangents: _Pair) -> _Pair:
        return value(*primals), jax.jvp(moving, primals, tangents)[1]

    return value


_product = _of_matrix(_explicit_product, _product_off_simplex)
_centred = _of_matrix(centre, _centred_off_simplex)
_variance = _of_matrix(_variance_on_simplex, _variance_off_simplex)


def _positive(sigma: jax.Array) -> jax.Array:
    return jnp.where(sigma == 0, 1, sigma)


def _less_mean(v: jax.Array, kept: jax.Array) -> jax.Array:
    """`v` less its mean over the kept classes, 0 elsewhere."""
    v = jnp.where(kept, v, 0)
    count = jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True), 1).astype(v.dtype)
    return jnp.where(kept, v - LAST.sum(v) / count, 0)

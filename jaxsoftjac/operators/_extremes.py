"""The two ends of the spectrum of J = diag(σ) − σσᵀ, in O(K), from ratios of probabilities.

The nonzero eigenvalues solve Σ σᵢ/(σᵢ − λ) = 0. With the sum over the classes on one side of λ
inverted, each end becomes a weighted harmonic mean of distances λ − σᵢ, or σᵢ − λ, against a
straight line. Harmonic means are concave, so that Newton's iteration from the far side of the root
is monotone: it cannot leave its bracket. From bounds that are sharp at both extremes four steps
reach the precision of float64; six are taken. `_secular` finds the same from σ itself: here ratios
of logits are enough, so that an end may lie where σ underflows.

>>> import jax.numpy as jnp
>>> t = excess_of_largest(jnp.array([0.0, 1.0, 1.0]), jnp.array([0.5]))     # σ = (½, ¼, ¼)
>>> print(f"{0.25 * (1 + t[0]):.4f}")
0.3750
"""

import jax
import jax.numpy as jnp
from jax import lax

_STEPS = 6


def excess_of_largest(w: jax.Array, rho: jax.Array) -> jax.Array:
    """The t ≥ 0 of λ_max = σ₍₂₎(1 + t), with σ₍₂₎ the second largest probability.

    Root of t/S(t) = 1 − ρ − ρt, S(t) = Σ wᵢt/(t + 1 − wᵢ): concave, taken from below.

    Args:
        w: σᵢ/σ₍₂₎ [..., K], at most 1; 0 for the top class and for excluded ones.
        rho: σ₍₂₎/σ₍₁₎ [..., 1].

    Returns:
        Array [..., 1].
    """
    total = jnp.maximum(_sum(w), 1)
    line = 1 - rho
    from_pole = line / (1 + rho)  # exact if σ₍₂₎ were alone below the top
    from_mean = (line - _sum(w * (1 - w)) / total**2) / (1 / total + rho)  # if all were their mean

    def step(_: jax.Array, t: jax.Array) -> jax.Array:
        is_pole = w == 1
        ratio = jnp.where(is_pole, 1, t / jnp.where(is_pole, 1, t + (1 - w)))
        S = jnp.maximum(_sum(w * ratio), 1)
        slope = _sum(w * ratio**2) / S**2 + rho
        return jnp.maximum(t - (t / S - (line - rho * t)) / slope, 0)

    return lax.fori_loop(0, _STEPS, step, jnp.maximum(from_pole, from_mean))


def excess_of_smallest(q: jax.Array, is_other: jax.Array) -> jax.Array:
    """The t ≥ 0 of λ₂ = σ_min(1 + t), the least eigenvalue but the 0 of the null vector 1.

    Root of t = 1/S(t), S(t) = Σ 1/(1 − qᵢ(1 + t)): convex, taken from above.

    Args:
        q: σ_min/σᵢ [..., K], at most 1.
        is_other: the kept classes but that of σ_min, [..., K]; `q` of the rest is not used.

    Returns:
        Array [..., 1].
    """
    q = jnp.where(is_other, q, 0)
    nearest = jnp.max(q, axis=-1, keepdims=True)
    others = jnp.maximum(_sum(is_other.astype(q.dtype)), 1)
    mean = _sum(q) / others

    def step(_: jax.Array, t: jax.Array) -> jax.Array:
        is_pole = is_other & (q == nearest)
        distance = 1 - nearest * (1 + t)
        ratio = distance / jnp.where(is_pole | ~is_other, 1, 1 - q * (1 + t))
        ratio = jnp.where(is_pole, 1, jnp.where(is_other, ratio, 0))
        S = jnp.maximum(_sum(ratio), 1)
        slope = 1 + _sum(q * ratio**2) / S**2
        return jnp.maximum(t - (t - distance / S) / slope, 0)

    from_pole, from_mean = (1 - nearest) / (1 + nearest), (1 - mean) / (others + mean)
    return lax.fori_loop(0, _STEPS, step, jnp.minimum(from_pole, from_mean))


def _sum(a: jax.Array) -> jax.Array:
    return jnp.sum(a, axis=-1, keepdims=True)

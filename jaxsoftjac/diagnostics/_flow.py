"""What the Jacobian of one softmax says about the gradients that pass through it.

>>> import jax.numpy as jnp
>>> flow = gradient_flow(jnp.array([[0.0, 0.0, 0.0, 0.0], [20.0, 0.0, 0.0, 0.0]], jnp.float32))
>>> print(flow.effective_classes.round(4), flow.is_collapsed)
[4. 1.] [False  True]
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftjac._checks import Axis, as_real, broadcast_where, canonical_axes, wide
from jaxsoftjac.operators._extremes import excess_of_largest, excess_of_smallest

_UNIT = 2.0**-24  # unit roundoff of float32


class GradientFlow(NamedTuple):
    """What `gradient_flow` measured, one entry per row of logits.

    Each keeps its relative precision on rows of any confidence. A row with a NaN or +∞ is NaN
    throughout; of a row with fewer than two classes J is 0, and so are the rank, gain and shares.

    Attributes:
        classes: K, the classes that are neither excluded by `where` nor at −∞.
        entropy: H = −Σ σ log σ, nats.
        entropy_share: H / log K: 1 for a uniform row, 0 for a one-hot one.
        max_probability: σ_max.
        effective_classes: exp(H), between 1 and K.
        spectral_norm: ‖J‖₂ = λ_max, the largest factor on any gradient.
        spectral_norm_share: 2‖J‖₂, its share of the bound 1/2.
        frobenius_norm: ‖J‖_F.
        gradient_gain: ‖J‖_F/√(K − 1), the root mean square of ‖Jg‖/‖g‖ over random g with Σg = 0.
        effective_rank: tr(J)²/‖J‖_F², between 1 and K − 1: how many directions share the gain.
        condition_number: λ_max/λ₂ on the vectors of sum 0; ∞ where it overflows.
        saturation: 1 − σ_max, summed over the other classes.
        digits_lost: log₁₀ κ, κ = E_σ|v| / E_σ|v − ⟨σ, v⟩| for standard normal v: decimal digits
            that the product σ⊙(v − ⟨σ, v⟩) loses; float32 has 7.2. A common offset of v adds to it.
        is_collapsed: float32 rounds σ_max to 1, so that where the top class is the true one the
            plain gradient σ − t vanishes at it and at it alone (softmax collapse).

    Examples:
        >>> flow = gradient_flow(jnp.zeros((2, 4), jnp.float32))
        >>> print(flow.entropy_share, flow.classes)
        [1. 1.] [4 4]
    """

    classes: jax.Array
    entropy: jax.Array
    entropy_share: jax.Array
    max_probability: jax.Array
    effective_classes: jax.Array
    spectral_norm: jax.Array
    spectral_norm_share: jax.Array
    frobenius_norm: jax.Array
    gradient_gain: jax.Array
    effective_rank: jax.Array
    condition_number: jax.Array
    saturation: jax.Array
    digits_lost: jax.Array
    is_collapsed: jax.Array


def gradient_flow(x: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None) -> GradientFlow:
    """How strongly, and in how many directions, gradients pass through the softmax of each row.

    The norms, ranks and eigenvalues of J = diag(σ) − σσᵀ come from sums over the classes, scaled by
    the second largest probability so that nothing cancels or underflows before the result does.

    Cost: O(K) time and memory per row; J is never formed.

    Args:
        x: logits [..., K], K ≥ 1; float16 and bfloat16 are measured in float32.
        axis: axis or axes of the classes; None for all.
        where: boolean, broadcast to `x`: the classes to keep.

    Returns:
        Measurements of the shape of `x` without `axis`.

    Raises:
        TypeError: `x` is boolean or complex, or `where` is not boolean.
        ValueError: `axis` is out of range, there are no classes, or `where` does not broadcast.

    Examples:
        >>> rows = jnp.array([[0.0, 0.0, 0.0, 0.0], [20.0, 0.0, 0.0, 0.0]], jnp.float32)
        >>> print([f"{gain:.1e}" for gain in gradient_flow(rows).gradient_gain])
        ['2.5e-01', '5.0e-09']
    """
    x = as_real("x", x)
    axes = canonical_axes(axis, x.ndim)
    where = broadcast_where(where, x.shape)
    x = wide(x if where is None else jnp.where(where, x, -jnp.inf))
    batch = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if not axes or not x.size and 0 not in batch:
        raise ValueError(f"`x` must have at least one class on `axis`, got shape {x.shape}")
    rows = jnp.moveaxis(x, axes, range(-len(axes), 0)).reshape(*batch, -1)
    return _flow(rows)


class _Ratios(NamedTuple):
    """A row through ratios of its probabilities: σ₍₁₎ = 1/N, σᵢ = ρwᵢ/N elsewhere, N = 1 + ρΣw."""

    classes: jax.Array
    log_w: jax.Array  # w = σ/σ₍₂₎, 0 at the top class and at excluded ones; log w is 0 there
    w: jax.Array
    log_rho: jax.Array  # ρ = σ₍₂₎/σ₍₁₎
    q: jax.Array  # σ_min/σ
    is_other: jax.Array  # the kept classes but that of σ_min
    spread: jax.Array  # log σ₍₂₎/σ_min


def _ratios(x: jax.Array) -> _Ratios:
    kept = x != -jnp.inf
    upward = jnp.where(kept, x, jnp.inf)
    first, least = _finite(jnp.max(x, -1, keepdims=True)), jnp.min(upward, -1, keepdims=True)
    below = kept & ~_is_at(jnp.argmax(x, -1), x)
    second = jnp.max(jnp.where(below, x, -jnp.inf), -1, keepdims=True)
    second = jnp.where(jnp.any(below, -1, keepdims=True), second, first)
    log_w = jnp.where(below, x - second, 0)
    return _Ratios(
        classes=jnp.sum(kept, -1, keepdims=True),
        log_w=log_w,
        w=jnp.where(below, jnp.exp(log_w), 0),
        log_rho=second - first,
        q=jnp.exp(jnp.where(kept, least - x, 0)),
        is_other=kept & ~_is_at(jnp.argmin(upward, -1), x),
        spread=second - least,
    )


def _flow(x: jax.Array) -> GradientFlow:
    row = _ratios(x)
    K, w, rho = row.classes.astype(x.dtype), row.w, jnp.exp(row.log_rho)
    W, W2 = _sum(w), _sum(w**2)
    N = 1 + rho * W
    complement = N - rho * w  # N(1 − σ) of all classes but the top one, whose is ρW
    # tr J, ‖J‖_F and Σ σᵢ‖eᵢ − σ‖, each over ρ/N²
    trace = W + _sum(w * complement)
    pairs = 2 * W2 + rho**2 * (W2**2 - _sum(w**4))
    norm = jnp.sqrt(W**2 + _sum((w * complement) ** 2) + pairs)
    lengths = jnp.sqrt(complement**2 + 1 + rho**2 * (W2 - w**2))
    deviation = jnp.sqrt(W**2 + W2) + _sum(w * lengths)

    entropy = jnp.log1p(rho * W) - rho / N * _sum(w * (row.log_w + row.log_rho))
    frobenius_norm = rho / N * (norm / N)
    excess = excess_of_largest(w, rho)
    spectral_norm = rho / N * (1 + excess)
    excess_ratio = (1 + excess) / (1 + excess_of_smallest(row.q, row.is_other))
    fields = {
        "entropy": entropy,
        "entropy_share": entropy / jnp.log(K),
        "max_probability": 1 / N,
        "effective_classes": jnp.exp(entropy),
        "spectral_norm": spectral_norm,
        "spectral_norm_share": 2 * spectral_norm,
        "frobenius_norm": frobenius_norm,
        "gradient_gain": frobenius_norm / jnp.sqrt(K - 1),
        "effective_rank": (trace / norm) ** 2,
        "condition_number": jnp.exp(row.spread) * excess_ratio,
        "saturation": rho * W / N,
        "digits_lost": (2 * jnp.log(N) - jnp.log(deviation) - row.log_rho) / math.log(10),
    }
    fields = {name: _where_several(row, value, name) for name, value in fields.items()}
    flow = GradientFlow(classes=row.classes, **fields, is_collapsed=(K >= 2) & (rho * W <= _UNIT))
    return jax.tree.map(lambda a: jnp.squeeze(a, -1), flow)


def _where_several(row: _Ratios, value: jax.Array, name: str) -> jax.Array:
    """`value`, or what it is in a row with fewer than two classes, where J = 0."""
    alone = {
        "max_probability": row.classes,
        "effective_classes": row.classes,
        "condition_number": 1,
    }
    constant = jnp.asarray(alone.get(name, 0), value.dtype) + 0 * row.log_rho  # NaN where that is
    return jnp.where(row.classes >= 2, value, constant)


def _finite(first: jax.Array) -> jax.Array:
    """The largest logit; NaN for +∞, and 0 where there is no class."""
    return jnp.where(first == -jnp.inf, 0, jnp.where(first == jnp.inf, jnp.nan, first))


def _is_at(index: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(index.dtype, x.shape, x.ndim - 1) == index[..., None]


def _sum(a: jax.Array) -> jax.Array:
    return jnp.sum(a, axis=-1, keepdims=True)

"""What the Jacobian of one softmax, or α-entmax, says about the gradients that pass through it.

Each J of the family is diag(s) − ssᵀ/Σs with s = p^{2−α}: Σs times the Jacobian of softmax at
σ = s/Σs. So what is a ratio of its eigenvalues is that of softmax at σ, and its norms are found in
units of the second largest s, which is their size.

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
from jaxsoftjac._rows import LAST, nan_unless
from jaxsoftjac._rules import compiled
from jaxsoftjac.operators._extremes import excess_of_largest, excess_of_smallest
from jaxsoftjac.sparse._functions import checked_alpha, family_rows, parts_of, whole_of
from jaxsoftjac.sparse._powers import log_weights

_UNIT = 2.0**-24  # unit roundoff of float32


class GradientFlow(NamedTuple):
    """What `gradient_flow` measured, one entry per row of logits.

    Each keeps its relative precision on rows of any confidence. A row with a NaN or +∞ is NaN
    throughout; where p has a single class, or none, J is 0, and so are the rank, gain and shares.
    For softmax p = s = σ, so that Σs = 1.

    Attributes:
        classes: K, the classes that are neither excluded by `where` nor at −∞.
        entropy: H = −Σ p log p (Shannon's, whatever α), nats.
        entropy_share: H / log K: 1 for a uniform row, 0 for a one-hot one.
        max_probability: p_max.
        effective_classes: exp(H), between 1 and the size of the support.
        spectral_norm: ‖J‖₂ = λ_max, the largest factor on any gradient.
        spectral_norm_share: 2‖J‖₂/Σs, its share of the bound Σs/2, which is 1/2 for softmax.
        frobenius_norm: ‖J‖_F.
        gradient_gain: ‖J‖_F/√(K − 1), the root mean square of ‖Jg‖/‖g‖ over random g with Σg = 0.
        effective_rank: tr(J)²/‖J‖_F², at most the size of the support less one: how many
            directions share the gain.
        condition_number: λ_max/λ₂ on the vectors of sum 0 on the support; ∞ where it overflows.
        saturation: 1 − p_max, summed over the other classes.
        digits_lost: log₁₀ κ, κ = E_σ|v| / E_σ|v − ⟨σ, v⟩| for standard normal v and σ = s/Σs:
            decimal digits that the product s⊙(v − ⟨σ, v⟩) loses; float32 has 7.2. A common offset
            of v adds to it.
        is_collapsed: float32 rounds p_max to 1. Where the top class is the true one, the plain
            gradient p − t then vanishes at it: for softmax at it alone, which is wrong (softmax
            collapse); for α > 1 mostly everywhere, which is right: past the margin the loss is 0.
        support: the classes with p > 0; for softmax those that count as `classes`.

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
    support: jax.Array


def gradient_flow(
    x: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    alpha: ArrayLike = 1.0,
) -> GradientFlow:
    """How strongly, and in how many directions, gradients pass through the softmax of each row.

    The norms, ranks and eigenvalues of J = diag(σ) − σσᵀ come from sums over the classes, scaled by
    the second largest probability so that nothing cancels or underflows before the result does.
    With `alpha` it is the J of α-entmax: diag(s) − ssᵀ/Σs, s = p^{2−α}.

    Cost: O(K) time and memory per row, and the root finder of `entmax`; J is never formed.

    Args:
        x: logits [..., K], K ≥ 1; float16 and bfloat16 are measured in float32.
        axis: axis or axes of the classes; None for all.
        where: boolean, broadcast to `x`: the classes to keep.
        alpha: α in [1, 4] of `entmax`, a number, or an array that broadcasts to the measurements;
            1 is softmax, 2 sparsemax. Entries out of range give NaN.

    Returns:
        Measurements of the shape of `x` without `axis`.

    Raises:
        TypeError: `x` or `alpha` is boolean or complex, or `where` is not boolean.
        ValueError: `axis` or `alpha` is out of range, there are no classes, or `where` or `alpha`
            does not broadcast.

    Examples:
        >>> rows = jnp.array([[0.0, 0.0, 0.0, 0.0], [20.0, 0.0, 0.0, 0.0]], jnp.float32)
        >>> print([f"{gain:.1e}" for gain in gradient_flow(rows).gradient_gain])
        ['2.5e-01', '5.0e-09']
        >>> flow = gradient_flow(jnp.array([1.0, 0.5, -1.0]), alpha=2)
        >>> print(flow.support, flow.spectral_norm, f"{flow.gradient_gain:.4f}")
        2 1.0 0.7071
    """
    x = as_real("x", x)
    axes = canonical_axes(axis, x.ndim)
    where = broadcast_where(where, x.shape)
    x = wide(x if where is None else jnp.where(where, x, -jnp.inf))
    batch = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if not axes or not x.size and 0 not in batch:
        raise ValueError(f"`x` must have at least one class on `axis`, got shape {x.shape}")
    classes = math.prod(x.shape[i] for i in axes)
    rows = jnp.moveaxis(x, axes, range(-len(axes), 0)).reshape(*batch, classes)
    known, traced = parts_of(checked_alpha(alpha, rows, LAST))
    return _flow_of_rows(rows, traced, alpha=known)


@compiled("alpha")
def _flow_of_rows(
    rows: jax.Array, traced: jax.Array | None, *, alpha: float | None
) -> GradientFlow:
    if alpha == 1:
        return _flow(rows)
    of_rows = whole_of(alpha, traced)
    log_p, log_s, is_softmax = _family(rows, of_rows)
    return _flow(log_s, log_p, jnp.sum(rows != -jnp.inf, -1, keepdims=True), is_softmax)


def _family(
    x: jax.Array, alpha: float | jax.Array
) -> tuple[jax.Array, jax.Array, bool | jax.Array]:
    """Log p and log s of rows of α-entmax, −∞ outside the support, and which rows are of softmax.

    Those have their logits instead, which are log p but for a constant, and do not underflow.
    """
    p = family_rows(x, alpha, LAST)
    spoilt = 0 * nan_unless(jnp.max(x, -1, keepdims=True) < jnp.inf, x.dtype) + 0 * alpha
    is_softmax = False if isinstance(alpha, float) else alpha == 1

    def kept(log: jax.Array) -> jax.Array:
        return jnp.where(x == -jnp.inf, x, jnp.where(is_softmax, x, log) + spoilt)

    return kept(log_weights(p, 1.0)), kept(log_weights(p, alpha)), is_softmax


class _Ratios(NamedTuple):
    """A row through ratios of its probabilities: σ₍₁₎ = 1/N, σᵢ = ρwᵢ/N elsewhere, N = 1 + ρΣw."""

    classes: jax.Array
    log_w: jax.Array  # w = σ/σ₍₂₎, 0 at the top class and at excluded ones; log w is 0 there
    w: jax.Array
    log_rho: jax.Array  # ρ = σ₍₂₎/σ₍₁₎
    second: jax.Array  # the logit of σ₍₂₎
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
        second=second,
        q=jnp.exp(jnp.where(kept, least - x, 0)),
        is_other=kept & ~_is_at(jnp.argmin(upward, -1), x),
        spread=second - least,
    )


def _flow(
    x: jax.Array,
    log_p: jax.Array | None = None,
    classes: jax.Array | None = None,
    is_softmax: bool | jax.Array = True,
) -> GradientFlow:
    """Of the logits of σ = s/Σs: log s itself where it is not softmax, and then log p and K."""
    row = _ratios(x)
    of_p = row if log_p is None else _ratios(log_p)
    classes = row.classes if classes is None else classes
    K, w, rho = classes.astype(x.dtype), row.w, jnp.exp(row.log_rho)
    W, W2 = _sum(w), _sum(w**2)
    N = 1 + rho * W
    complement = N - rho * w  # N(1 − σ) of all classes but the top one, whose is ρW
    # tr J, ‖J‖_F and Σ σᵢ‖eᵢ − σ‖, each over ρ/N²
    trace = W + _sum(w * complement)
    pairs = 2 * W2 + rho**2 * (W2**2 - _sum(w**4))
    norm = jnp.sqrt(W**2 + _sum((w * complement) ** 2) + pairs)
    lengths = jnp.sqrt(complement**2 + 1 + rho**2 * (W2 - w**2))
    deviation = jnp.sqrt(W**2 + W2) + _sum(w * lengths)

    probable = _probable(of_p)
    second = rho / N if is_softmax is True else jnp.where(is_softmax, rho / N, jnp.exp(row.second))
    frobenius_norm = second * (norm / N)
    excess = excess_of_largest(w, rho)
    spectral_norm = second * (1 + excess)
    excess_ratio = (1 + excess) / (1 + excess_of_smallest(row.q, row.is_other))
    fields = {
        "entropy": probable.entropy,
        "entropy_share": probable.entropy / jnp.log(K),
        "max_probability": probable.largest,
        "effective_classes": jnp.exp(probable.entropy),
        "spectral_norm": spectral_norm,
        "spectral_norm_share": 2 * (rho / N * (1 + excess)),
        "frobenius_norm": frobenius_norm,
        "gradient_gain": frobenius_norm / jnp.sqrt(K - 1),
        "effective_rank": (trace / norm) ** 2,
        "condition_number": jnp.exp(row.spread) * excess_ratio,
        "saturation": probable.saturation,
        "digits_lost": (2 * jnp.log(N) - jnp.log(deviation) - row.log_rho) / math.log(10),
    }
    fields = {name: _where_several(row, value, name) for name, value in fields.items()}
    is_collapsed = (K >= 2) & (probable.rest <= _UNIT)
    flow = GradientFlow(classes, **fields, is_collapsed=is_collapsed, support=row.classes)
    return jax.tree.map(lambda a: jnp.squeeze(a, -1), flow)


class _Probable(NamedTuple):
    """What p itself is worth: its entropy, its largest entry, and the sum of the others."""

    entropy: jax.Array
    largest: jax.Array
    saturation: jax.Array
    rest: jax.Array  # saturation over the largest


def _probable(row: _Ratios) -> _Probable:
    rho = jnp.exp(row.log_rho)
    rest = rho * _sum(row.w)
    N = 1 + rest
    entropy = jnp.log1p(rest) - rho / N * _sum(row.w * (row.log_w + row.log_rho))
    return _Probable(entropy, 1 / N, rest / N, rest)


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

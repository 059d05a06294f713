"""Dense derivatives of softmax, for looking at and for small K: the only O(K²) and O(K³) memory.

Entries are built from σ and its complements, so that they keep their digits on confident rows.

>>> import jax.numpy as jnp
>>> print(softmax_jacobian(jnp.array([0.0, 0.0])))
[[ 0.25 -0.25]
 [-0.25  0.25]]
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftjac._checks import Axis, as_real, broadcast_where, canonical_axes, working_dtype
from jaxsoftjac.functions import log_softmax, softmax


def softmax_jacobian(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Jacobian of softmax: Jᵢⱼ = ∂σᵢ/∂xⱼ = σᵢ(δᵢⱼ − σⱼ), J = diag(σ) − σσᵀ.

    Symmetric to the bit; the diagonal σᵢ(1 − σᵢ) is right at any gap, because the complement comes
    from log σᵢ and not from a subtraction.

    Cost: O(K²) per row. A product with J needs O(K) only: `softmax_vjp`.

    Args:
        x: logits [..., K]; integers are cast to float first.
        axis: axis or axes of the classes (several are flattened in order), moved last; None: all.
        where: boolean, broadcast to `x`; rows and columns of excluded classes are 0.

    Returns:
        Array [..., K, K]. A row of logits that is all −∞ or excluded gives 0.

    Raises:
        TypeError: `x` is boolean or complex, or `where` is not boolean.
        ValueError: `axis` is out of range or named twice, or `where` does not broadcast to `x`.
    """
    sigma, complement, _, dtype = _probabilities(x, axis, where)
    return _jacobian(sigma, complement).astype(dtype)


def log_softmax_jacobian(
    x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Jacobian of log-softmax: ∂ log σᵢ/∂xⱼ = δᵢⱼ − σⱼ, not symmetric.

    Cost: O(K²) per row. Arguments, result and errors as for `softmax_jacobian`; rows of excluded
    classes and of −∞ logits are 0.
    """
    sigma, complement, kept, dtype = _probabilities(x, axis, where)
    return _log_jacobian(sigma, complement, kept).astype(dtype)


def softmax_hessian(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Second derivative of softmax: ∂²σᵢ/∂xⱼ∂xₖ = σᵢ((δᵢⱼ − σⱼ)(δᵢₖ − σₖ) − Jⱼₖ).

    Cost: O(K³) per row. Along two given tangents `softmax_second_derivative` needs O(K) only.

    Args:
        x: logits [..., K].
        axis: as for `softmax_jacobian`.
        where: as for `softmax_jacobian`.

    Returns:
        Array [..., K, K, K], indexed i, j, k.

    Raises:
        TypeError: `x` is boolean or complex, or `where` is not boolean.
        ValueError: `axis` is out of range or named twice, or `where` does not broadcast to `x`.
    """
    sigma, complement, kept, dtype = _probabilities(x, axis, where)
    log_jacobian = _log_jacobian(sigma, complement, kept)
    squares = log_jacobian[..., :, None] * log_jacobian[..., None, :]
    hessian = sigma[..., None, None] * (squares - _jacobian(sigma, complement)[..., None, :, :])
    return hessian.astype(dtype)


def _jacobian(sigma: jax.Array, complement: jax.Array) -> jax.Array:
    diagonal = (sigma * complement)[..., None]
    return jnp.where(_eye(sigma), diagonal, -(sigma[..., :, None] * sigma[..., None, :]))


def _log_jacobian(sigma: jax.Array, complement: jax.Array, kept: jax.Array) -> jax.Array:
    matrix = jnp.where(_eye(sigma), complement[..., None], -sigma[..., None, :])
    return jnp.where(kept[..., :, None], matrix, 0)


def _eye(sigma: jax.Array) -> jax.Array:
    return jnp.eye(sigma.shape[-1], dtype=bool)


def _probabilities(
    x: ArrayLike, axis: Axis, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array, jnp.dtype]:
    """σ and 1 − σ with the classes last, which of them are kept, and the dtype to return."""
    x = as_real("x", x)
    axes = canonical_axes(axis, x.ndim)
    kept = x != -jnp.inf
    where = broadcast_where(where, x.shape)
    if where is not None:
        kept = kept & where
    rows, kept = (_classes_last(a, axes) for a in (x.astype(working_dtype(x.dtype)), kept))
    # 1 − σ = −expm1(log σ): exact for the top class too, where the subtraction would cancel.
    complement = -jnp.expm1(log_softmax(rows, where=kept))
    return softmax(rows, where=kept), complement, kept, x.dtype


def _classes_last(a: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    batch = tuple(i for i in range(a.ndim) if i not in axes)
    a = jnp.transpose(a, batch + axes)
    return a.reshape(*a.shape[: len(batch)], math.prod(a.shape[len(batch) :]))

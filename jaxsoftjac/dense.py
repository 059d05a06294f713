"""Dense derivatives of softmax, for looking at and for small K: the only O(K²) and O(K³) memory.

Entries are built from σ and its complements, so that they keep their digits on confident rows.

>>> import jax.numpy as jnp
>>> print(softmax_jacobian(jnp.array([0.0, 0.0])))
[[ 0.25 -0.25]
 [-0.25  0.25]]
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import (
    Axis,
    as_array,
    as_index,
    as_real,
    broadcast_where,
    canonical_axes,
    check_axis_name,
    wide,
    working_dtype,
)
from jaxsoftjac._closed_forms import complement, dense_jacobian, own_slice
from jaxsoftjac._row_functions import logsumexp_rows, softmax_rows
from jaxsoftjac._rows import LAST, has_classes, nan_unless
from jaxsoftjac._rules import compiled
from jaxsoftjac._sharding import whole
from jaxsoftjac.losses._arguments import (
    LossOptions,
    checked_arguments,
    checked_options,
    target_mass,
)
from jaxsoftjac.products import softmax_vjp

__all__ = ["softmax_jacobian", "log_softmax_jacobian", "softmax_hessian", "cross_entropy_hessian"]


def softmax_jacobian(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Jacobian of softmax: Jᵢⱼ = ∂σᵢ/∂xⱼ = σᵢ(δᵢⱼ − σⱼ), J = diag(σ) − σσᵀ.

    Symmetric to the bit; the diagonal σᵢ(1 − σᵢ) is right at any gap, because the complement of
    a class above 1/2 is summed over the others.

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

    Examples:
        >>> J = softmax_jacobian(jnp.array([30.0, 0.0], "float32"))     # σ₀ rounds to 1, yet
        >>> print(f"{J[0, 0]:.2e} {J[0, 1]:.2e}")
        9.36e-14 -9.36e-14
    """
    return _dense(x, axis, where, _jacobian_of)


def log_softmax_jacobian(
    x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Jacobian of log-softmax: ∂ log σᵢ/∂xⱼ = δᵢⱼ − σⱼ, not symmetric.

    Cost: O(K²) per row. Arguments, result and errors as for `softmax_jacobian`; rows of excluded
    classes and of −∞ logits are 0.

    >>> print(log_softmax_jacobian(jnp.array([0.0, 0.0])))
    [[ 0.5 -0.5]
     [-0.5  0.5]]
    """
    return _dense(x, axis, where, _log_jacobian)


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

    Examples:
        >>> hessian = softmax_hessian(jnp.array([0.0, math.log(3)]))    # σ = (¼, ¾)
        >>> print(hessian.shape, f"{hessian[0, 0, 0]:.3f}")
        (2, 2, 2) 0.094
    """
    return _dense(x, axis, where, _hessian_of)


def cross_entropy_hessian(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    ignore_index: int | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Hessian of `cross_entropy` in the logits: (Σt + 2z·logsumexp)·J + 2z·σσᵀ, z = z_loss.

    Without `z_loss` it is J for every label: symmetric and positive semi-definite at any gap.

    Cost: O(K²) per example. A product with it needs O(K): `jax.jvp` of `jax.grad`.

    Args:
        logits: as for `cross_entropy`.
        labels: as for `cross_entropy`.
        axis: the class axis, moved last twice.
        where: as for `cross_entropy`.
        label_smoothing: as for `cross_entropy`.
        z_loss: as for `cross_entropy`.
        ignore_index: label whose examples have Hessian 0.
        axis_name: as for `cross_entropy`; each device gathers the logits of all K classes and
            returns the rows of its own slice of them.

    Returns:
        Array [..., K, K], with `axis_name` [..., K / devices, K]; NaN for a label out of range.

    Raises:
        TypeError: as `cross_entropy`.
        ValueError: as `cross_entropy`.

    Examples:
        >>> print(cross_entropy_hessian(jnp.zeros(2), 0))       # J, whatever the label
        [[ 0.25 -0.25]
         [-0.25  0.25]]
    """
    check_axis_name(axis_name)
    known, traced = checked_options(label_smoothing, z_loss).split()
    return _cross_entropy_hessian(
        as_real("logits", logits),
        as_array("labels", labels),
        None if where is None else as_array("where", where),
        traced,
        known=known,
        axis=as_index("axis", axis),
        ignore_index=None if ignore_index is None else as_index("ignore_index", ignore_index),
        axis_name=axis_name,
    )


@compiled("known", "axis", "ignore_index", "axis_name")
def _cross_entropy_hessian(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    traced: LossOptions,
    *,
    known: LossOptions,
    axis: int,
    ignore_index: int | None,
    axis_name: str | None,
) -> jax.Array:
    options = known.joined(traced)
    x, labels, ignored, classes = checked_arguments(
        logits, labels, axis, where, ignore_index, axis_name
    )
    logits = x
    if axis_name is not None:
        logits = lax.all_gather(x, axis_name, axis=classes.axes[0], tiled=True)
    sigma, _ = _probabilities(logits, None, classes.axes)
    jacobian = dense_jacobian(sigma, axis_name)
    mass = lax.squeeze(target_mass(x, labels, classes, options), classes.axes)[..., None, None]
    hessian = mass * jacobian
    if options.has_z_loss:
        z_loss = jnp.asarray(options.z_loss, jacobian.dtype)
        log_normalizer = logsumexp_rows(wide(x), classes)
        log_normalizer = jnp.where(has_classes(x, classes), log_normalizer, 0)
        log_normalizer = lax.squeeze(log_normalizer, classes.axes)[..., None, None]
        columns = whole(sigma, sigma.ndim - 1)[..., None, :]
        outer = own_slice(sigma, axis_name)[..., :, None] * columns
        hessian = hessian + 2 * z_loss * (log_normalizer * jacobian + outer)
    if ignored is not None:
        hessian = jnp.where(lax.squeeze(ignored, classes.axes)[..., None, None], 0, hessian)
    return hessian.astype(x.dtype)


def _dense(
    x: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    function: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    x = as_real("x", x)
    where = None if where is None else as_array("where", where)
    return _compiled(x, where, function=function, axes=canonical_axes(axis, x.ndim))


@compiled("function", "axes")
def _compiled(
    x: jax.Array,
    where: jax.Array | None,
    *,
    function: Callable[[jax.Array, jax.Array], jax.Array],
    axes: tuple[int, ...],
) -> jax.Array:
    return function(*_probabilities(x, where, axes)).astype(x.dtype)


def _jacobian_of(sigma: jax.Array, kept: jax.Array) -> jax.Array:
    del kept  # σ is 0 elsewhere
    return dense_jacobian(sigma)


def _hessian_of(sigma: jax.Array, kept: jax.Array) -> jax.Array:
    log_jacobian = _log_jacobian(sigma, kept)
    squares = log_jacobian[..., :, None] * log_jacobian[..., None, :]
    jacobian = dense_jacobian(whole(sigma, sigma.ndim - 1))
    return sigma[..., None, None] * (squares - jacobian[..., None, :, :])


def _log_jacobian(sigma: jax.Array, kept: jax.Array) -> jax.Array:
    is_diagonal = jnp.eye(sigma.shape[-1], dtype=bool)
    matrix = jnp.where(
        is_diagonal, complement(sigma)[..., None], -whole(sigma, sigma.ndim - 1)[..., None, :]
    )
    return jnp.where(kept[..., :, None], matrix, 0)


def _probabilities(
    x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """σ in its working dtype with the classes last, and which of them are kept."""
    where = broadcast_where(where, x.shape)
    kept = x if where is None else jnp.where(where, x, -jnp.inf)
    logits = _classes_last(kept.astype(working_dtype(x.dtype)), axes)
    spoilt = nan_unless(LAST.max(logits) != jnp.inf, logits.dtype)
    return softmax_rows(logits, LAST) + 0 * spoilt, logits != -jnp.inf


def _classes_last(a: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    batch = tuple(i for i in range(a.ndim) if i not in axes)
    a = jnp.transpose(a, batch + axes)
    return a.reshape(*a.shape[: len(batch)], math.prod(a.shape[len(batch) :]))


def jacobian_block(sigma: jax.Array, indices: jax.Array | np.ndarray) -> jax.Array:
    """The entries J[indices][:, indices], each row a product J eᵢ = σ ⊙ (eᵢ − σᵢ) of O(K).

    Args:
        sigma: Probabilities of shape [K].
        indices: The rows, and columns, to give: n integers.

    Returns:
        Entries of shape [n, n]; J itself is never formed.
    """

    def row(index: int) -> jax.Array:
        basis = jnp.zeros_like(sigma).at[index].set(1)
        return softmax_vjp(basis, sigma)[indices]

    return jax.lax.map(row, jnp.asarray(indices))

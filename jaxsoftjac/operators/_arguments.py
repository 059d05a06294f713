"""The checked arguments of the operator."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_real


def checked_sigma(sigma: ArrayLike) -> jax.Array:
    """Probabilities as a floating array [..., K]."""
    sigma = as_array("sigma", sigma)
    if not jnp.issubdtype(sigma.dtype, jnp.floating):
        raise TypeError(f"`sigma` must be floating, got dtype {sigma.dtype.name}")
    if sigma.ndim == 0:
        raise ValueError("`sigma` must have shape [..., K], got ()")
    return sigma


def checked_damping(damping: ArrayLike, b: jax.Array) -> jax.Array:
    """δ of the shape of `b`."""
    delta = as_real("damping", damping)
    is_known = isinstance(damping, int | float | np.ndarray | np.generic)
    if is_known and not np.all(np.asarray(damping) > 0):
        raise ValueError(f"`damping` must be positive, got {damping}")
    if delta.shape not in ((), b.shape[:-1], b.shape):
        raise ValueError(
            f"`damping` must have shape (), {b.shape[:-1]} or {b.shape}, got {delta.shape}"
        )
    if delta.ndim == b.ndim - 1:
        delta = delta[..., None]
    return jnp.broadcast_to(delta, b.shape).astype(b.dtype)

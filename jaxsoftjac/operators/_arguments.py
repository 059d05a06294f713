"""The checked arguments of the operator, and its methods compiled."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_count, as_real, checked_key
from jaxsoftjac._rules import compiled

Method = TypeVar("Method", bound=Callable[..., Any])


def checked_sigma(sigma: ArrayLike) -> jax.Array:
    """Probabilities as a floating array [..., K]."""
    sigma = as_array("sigma", sigma)
    if not jnp.issubdtype(sigma.dtype, jnp.floating):
        raise TypeError(f"`sigma` must be floating, got dtype {sigma.dtype.name}")
    if sigma.ndim == 0:
        raise ValueError("`sigma` must have shape [..., K], got ()")
    return sigma


def checked_damping(damping: ArrayLike, b: jax.Array) -> jax.Array:
    """δ of the shape of `b`, in its own dtype."""
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
    return jnp.broadcast_to(delta, b.shape)


def normal(key: ArrayLike, shape: int | Sequence[int], sigma: jax.Array) -> jax.Array:
    """Independent numbers of the standard normal distribution, [*shape, ..., K] as σ [..., K]."""
    lengths = shape if isinstance(shape, Sequence) else (shape,)
    lengths = tuple(as_count("shape", length, 0) for length in lengths)
    return jax.random.normal(checked_key("key", key), lengths + sigma.shape, sigma.dtype)


def compiled_method(*names: str) -> Callable[[Method], Method]:
    """Compiles a method of a pytree whose arguments of these names are arrays.

    A call outside of jit then costs one dispatch.
    """

    def of(method: Method) -> Method:
        run = compiled()(method)

        @wraps(method)
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            arrays = [as_real(name, a) for name, a in zip(names, arguments, strict=False)]
            given = {k: as_real(k, keywords[k]) for k in names if keywords.get(k) is not None}
            keywords = keywords | given
            return run(self, *arrays, *arguments[len(arrays) :], **keywords)

        return call  # pyright: ignore[reportReturnType]

    return of

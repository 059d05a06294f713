"""The checked arguments of a fit: shapes and dtypes always, values where they are known."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_count, as_real, checked_number, wide

Solver = Literal["newton-cg", "newton-cholesky", "lbfgs"]


def default_tol(dtype: jnp.dtype) -> float:
    """The default of `tol`."""
    return 1e-8 if dtype == jnp.float64 else 3e-6


def checked_data(
    features: ArrayLike, labels: ArrayLike, weights: ArrayLike | None, num_classes: int | None
) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """Features in their working dtype, labels, weights, and K."""
    x = wide(as_real("features", features))
    if x.ndim != 2:
        raise ValueError(f"`features` must have shape (examples, features), got {x.shape}")
    _check_values("features", x)
    num_classes = None if num_classes is None else as_count("num_classes", num_classes, 1)
    labels, num_classes = _checked_labels(labels, x.shape[0], num_classes)
    if weights is None:
        return x, labels, jnp.ones(x.shape[:1], x.dtype), num_classes
    weights = as_real("weights", weights)
    if weights.shape != x.shape[:1]:
        raise ValueError(f"`weights` must have shape {x.shape[:1]}, got {weights.shape}")
    _check_values("weights", weights, least=0)
    if is_known(weights) and not _extremes(weights)[1] > 0:
        raise ValueError("`weights` must not all be zero")
    return x, labels, weights.astype(x.dtype), num_classes


def check_options(solver: str, *, l2: Any, tol: Any, max_iterations: Any) -> None:
    """Raises where an option is out of range."""
    if solver not in get_args(Solver):
        raise ValueError(f"`solver` must be one of {', '.join(get_args(Solver))}, got {solver!r}")
    for name, value in (("l2", l2), ("tol", tol)):
        if value is not None and is_known(value):
            checked_number(name, value, "be ≥ 0 and finite", lambda v: 0 <= v < np.inf)
    if max_iterations is not None:
        as_count("max_iterations", max_iterations, 0)


def checked_path(l2: ArrayLike) -> jax.Array:
    """The penalties of a path, [L]."""
    penalties = as_real("l2", l2)
    if penalties.ndim != 1:
        raise ValueError(f"`l2` must have shape (L,), got {penalties.shape}")
    _check_values("l2", penalties, least=0)
    return penalties


def _checked_labels(
    labels: ArrayLike, count: int, num_classes: int | None
) -> tuple[jax.Array, int]:
    if isinstance(labels, jax.Array):
        labels = as_array("labels", labels)
    else:
        labels = _as_numbers(labels)
    has_rows = jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2
    K = labels.shape[1] if has_rows and num_classes is None else num_classes
    expected = (count, K) if has_rows else (count,)
    if labels.shape != expected or not count:
        raise ValueError(f"`labels` must have shape {expected}, not empty, got {labels.shape}")
    if not has_rows:
        return labels, _number_of_classes(labels, num_classes)
    _check_values("labels", labels, least=0)
    return labels, labels.shape[1]


def _as_numbers(labels: Any) -> jax.Array:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iufb":
        raise TypeError(
            f"`labels` must be integers, or probabilities, got dtype {labels.dtype}: "
            "number the classes by `numpy.unique(labels, return_inverse=True)`"
        )
    return jnp.asarray(labels)


def _number_of_classes(labels: jax.Array, num_classes: int | None) -> int:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integers, or probabilities, got {labels.dtype.name}")
    if not is_known(labels):
        if num_classes is None:
            raise ValueError("`num_classes` must be given under jit")
        return num_classes
    lowest, highest = (int(a) for a in _extremes(labels))
    num_classes = highest + 1 if num_classes is None else num_classes
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"`labels` must lie in [0, {num_classes}), got values from {lowest} to {highest}"
        )
    return num_classes


def _check_values(name: str, a: jax.Array, least: float | None = None) -> None:
    if not is_known(a) or not a.size:
        return
    lowest, highest = _extremes(a)
    if not -np.inf < lowest <= highest < np.inf:
        raise ValueError(f"`{name}` must be finite, got values from {lowest} to {highest}")
    if least is not None and lowest < least:
        raise ValueError(f"`{name}` must be ≥ {least}, got {lowest}")


def _extremes(a: jax.Array) -> tuple[float, float]:
    """The least and the greatest value, also of constants under `jit`; NaN if there is any."""
    if all(device.platform == "cpu" for device in a.devices()):  # read in place, nothing compiled
        host = np.asarray(a)
        return host.min().item(), host.max().item()
    with jax.ensure_compile_time_eval():
        return jnp.min(a).item(), jnp.max(a).item()


def is_known(a: Any) -> bool:
    """Whether values can be read: not under a transformation, nor on devices of others."""
    return not isinstance(a, Tracer) and getattr(a, "is_fully_addressable", True)

"""The checked operands of the logits beneath a vocabulary, and their slices over devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_real, checked_number, same_shape, wide
from jaxsoftjac._sharding import mesh_axes, over_mesh_slices, whole
from jaxsoftjac.losses._arguments import LossOptions
from jaxsoftjac.losses._blocks import Head, Operands, Shared, logits_dtype
from jaxsoftjac.losses._linear_target import LinearTarget

_TEACHER = "labels."  # what the names of a LinearTarget begin with in errors


def as_arrays(
    hidden: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    softcap: ArrayLike | None,
    of: str = "",
) -> Operands:
    """The operands as arrays; their names in errors begin with `of`."""
    hidden, kernel = _whole_rows(as_real(f"{of}hidden", hidden)), as_real(f"{of}kernel", kernel)
    if kernel.ndim != 2:
        raise ValueError(f"`{of}kernel` must have shape (D, V ≥ 1), got {kernel.shape}")
    bias = None if bias is None else as_real(f"{of}bias", bias)
    if softcap is not None:
        softcap = checked_number(f"{of}logit_softcap", softcap, "be > 0 or None", lambda c: c > 0)
        is_none = isinstance(softcap, float) and softcap == float("inf")
        softcap = None if is_none else jnp.asarray(softcap, wide(hidden).dtype)
    return Operands(Shared(hidden, softcap), Head(kernel, bias))


def _whole_rows(hidden: jax.Array) -> jax.Array:
    """Hidden states, whose features no Explicit mesh axis splits."""
    return whole(hidden, -1) if hidden.ndim else hidden


def as_labels(labels: ArrayLike | LinearTarget) -> jax.Array | Operands:
    """Labels as an array, or the operands of a teacher's logits."""
    if not isinstance(labels, LinearTarget):
        return as_array("labels", labels)
    hidden, kernel, bias, temperature, softcap = labels
    shared, head = as_arrays(hidden, kernel, bias, softcap, of=_TEACHER)
    if temperature is None:
        return Operands(shared, head)
    temperature = checked_number(
        f"{_TEACHER}temperature", temperature, "be > 0 and finite", lambda T: 0 < T < float("inf")
    )
    if isinstance(temperature, float) and temperature == 1:
        return Operands(shared, head)
    dtype = wide(shared.hidden).dtype
    return Operands(shared._replace(temperature=jnp.asarray(temperature, dtype)), head)


def checked_teacher(teacher: Operands, student: Operands, axis_name: str | None) -> Operands:
    """The operands of a teacher, checked beside those of its student."""
    teacher = checked_operands(teacher, axis_name, of=_TEACHER)
    lead, got = student.shared.hidden.shape[:-1], teacher.shared.hidden.shape
    if got[:-1] != lead:
        expected = ", ".join([*map(str, lead), "D"])
        raise ValueError(f"`{_TEACHER}hidden` must have shape ({expected}), got {got}")
    V, got = student.head.kernel.shape[1], teacher.head.kernel.shape
    if got[1] != V:
        raise ValueError(f"`{_TEACHER}kernel` must have shape ({got[0]}, {V}), got {got}")
    return teacher


def checked_operands(operands: Operands, axis_name: str | None, of: str = "") -> Operands:
    """The operands, whose shapes fit, with the origin of the bias."""
    shared, (kernel, bias, _) = operands
    hidden = shared.hidden
    if hidden.ndim < 1:
        raise ValueError(f"`{of}hidden` must have shape [..., D], got {hidden.shape}")
    if kernel.shape[0] != hidden.shape[-1] or not kernel.shape[1]:
        raise ValueError(
            f"`{of}kernel` must have shape ({hidden.shape[-1]}, V ≥ 1) for `{of}hidden` of shape "
            f"{hidden.shape}, got {kernel.shape}"
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"`{of}bias` must have shape {kernel.shape[1:]}, got {bias.shape}")
    if bias is None or shared.softcap is not None:
        return operands
    origin = _origin(bias.astype(logits_dtype(operands)), axis_name)
    return operands._replace(shared=shared._replace(origin=origin))


def _origin(bias: jax.Array, axis_name: str | None) -> jax.Array:
    """The largest finite bias: measured from it, biases of any size leave the logits exact.

    It is 0 where the smallest would be beyond the lowest number, and its class excluded.
    """
    bias = lax.stop_gradient(bias)
    highest = float(jnp.finfo(bias.dtype).max)
    top = jnp.max(jnp.where(jnp.isfinite(bias), bias, -highest))
    depth = jnp.max(jnp.where(jnp.isfinite(bias), -bias, -highest))
    if axis_name is not None:
        top, depth = lax.pmax((top, depth), axis_name)
    is_beyond = top / 2 + depth / 2 > highest / 2  # by halves, which do not overflow
    return jnp.where((top == -highest) | is_beyond, 0, top)


def checked_tangents(tangents: Sequence[ArrayLike], operands: Operands) -> Operands:
    """The tangents of a product as operands."""
    hidden, (kernel, bias, _) = operands.shared.hidden, operands.head
    at = {"hidden": hidden, "kernel": kernel} | ({} if bias is None else {"bias": bias})
    if not isinstance(tangents, tuple | list) or len(tangents) != len(at):
        got = f"{len(tangents)}" if isinstance(tangents, tuple | list) else type(tangents).__name__
        raise ValueError(f"`tangents` must be a tuple of {len(at)} arrays, {tuple(at)}, got {got}")
    checked = {}
    for (name, a), tangent in zip(at.items(), tangents, strict=True):
        t = as_real(f"tangents ({name})", tangent).astype(a.dtype)
        same_shape(f"tangents ({name})", t, name, a)
        checked[name] = t
    head = Head(checked["kernel"], checked.get("bias"))
    return Operands(Shared(_whole_rows(checked["hidden"])), head)


def over_vocabulary(
    function: Callable[..., Any], names: tuple[str, ...], out_specs: Any, *arguments: Any
) -> Any:
    """`function` on slices of what is as long as the vocabulary, which is split over `names`."""
    *_, labels, _, _, _ = arguments
    of_operands = Operands(Shared(None), Head(1, 0))
    of_labels = of_operands if isinstance(labels, Operands) else None
    axes = [of_operands] * (len(arguments) - 4) + [of_labels, None, 0, LossOptions(None, None)]
    return over_mesh_slices(function, names, arguments, axes, out_specs)


def vocabulary_axes(operands: Operands, labels: jax.Array | Operands) -> tuple[str, ...]:
    """The Explicit mesh axes that split the vocabulary of the student, or else of the teacher."""
    names = mesh_axes(operands.head.kernel, 1)
    return names if names or not isinstance(labels, Operands) else mesh_axes(labels.head.kernel, 1)

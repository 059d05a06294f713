"""Where the classes of a row of logits are, which rows have any, and which class is the label.

>>> import jax.numpy as jnp
>>> print(LAST.sum(jnp.ones((2, 3))))
[[3.]
 [3.]]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, broadcast_where, canonical_axes, wide


class ClassAxes(NamedTuple):
    """Where the classes of each row are: on these axes, and on a mapped axis if they are split."""

    axes: tuple[int, ...]
    axis_name: str | None = None

    def sum(self, a: jax.Array) -> jax.Array:
        """Sum over the classes, whose axes stay with length 1."""
        total = jnp.sum(a, axis=self.axes, keepdims=True)
        return total if self.axis_name is None else lax.psum(total, self.axis_name)

    def max(self, a: jax.Array) -> jax.Array:
        """Maximum over the classes, a constant of differentiation; −∞ without classes."""
        top = lax.stop_gradient(jnp.max(a, axis=self.axes, keepdims=True, initial=-jnp.inf))
        return top if self.axis_name is None else lax.pmax(top, self.axis_name)


LAST = ClassAxes((-1,))


def has_classes(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """Which rows are not all −∞: those have derivative 0 (a row with NaN keeps it)."""
    return classes.max(x) != -jnp.inf


def is_label(labels: jax.Array, x: jax.Array, axis: int, first: int | jax.Array = 0) -> jax.Array:
    """Where `x`, whose classes on `axis` are numbered from `first` on, has the label."""
    shape = [x.shape[i] if i == axis else 1 for i in range(x.ndim)]
    index = lax.broadcasted_iota(labels.dtype, shape, axis)
    return index + jnp.asarray(first, labels.dtype) == labels


def first_class(width: int, axis_name: str | None) -> int | jax.Array:
    """The number of the first class of this slice of a mapped axis, of `width` classes each."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * width


def in_range(labels: jax.Array, x: jax.Array, classes: ClassAxes) -> jax.Array:
    """1 for the label of a class, NaN for any other."""
    slices = 1 if classes.axis_name is None else lax.axis_size(classes.axis_name)
    inside = (labels >= 0) & (labels < slices * x.shape[classes.axes[0]])
    return jnp.where(inside, 1, jnp.nan).astype(wide(x).dtype)


def class_logits(
    name: str, logits: ArrayLike, axis: int, where: ArrayLike | None, axis_name: str | None = None
) -> tuple[jax.Array, ClassAxes]:
    """The logits, −∞ where excluded, and where their classes are."""
    x = as_real(name, logits)
    if not hasattr(axis, "__index__"):
        raise TypeError(f"`axis` must be an int, got {type(axis).__name__}")
    axes = canonical_axes(axis, x.ndim)
    where = broadcast_where(where, x.shape)
    return x if where is None else jnp.where(where, x, -jnp.inf), ClassAxes(axes, axis_name)

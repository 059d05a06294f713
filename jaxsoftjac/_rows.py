"""Rows of logits: where their classes are, the two numbers that say all of them, and the label.

Everything about a row x is a function of x, its top = max x and rest = Σ exp(x − top) − 1 ≥ 0, the
sum without its top term: σ = exp(x − top)/(1 + rest), log σ = (x − top) − log1p(rest), logsumexp =
top + log1p(rest), and the complement of the top class is rest/(1 + rest). Their sum would not do:
where the logits are large, or one class is far ahead, it has lost `rest`.

>>> import jax.numpy as jnp
>>> top, rest = statistics(jnp.array([40.0, 0.0], jnp.float32), LAST)
>>> print(top, f"{rest[0]:.4e}")
[40.] 4.2484e-18
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

    def sums(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """Sums of several arrays in one pass. Not for what is differentiated."""
        axes = tuple(a % arrays[0].ndim for a in self.axes)
        zeros = tuple(jnp.zeros((), a.dtype) for a in arrays)
        totals = lax.reduce(arrays, zeros, _add_all, axes)
        totals = tuple(lax.expand_dims(t, axes) for t in totals)
        return totals if self.axis_name is None else lax.psum(totals, self.axis_name)


def _add_all(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


LAST = ClassAxes((-1,))

LOWEST = -1000.0  # the log of what is 0 in every dtype


class RowStatistics(NamedTuple):
    """Two numbers that say all of a row; the class axes stay with length 1.

    `top` is max x, bounded by the largest finite number. `rest` is Σ exp(x − top) without one term
    exp(0), to full relative precision; −1 in a row without classes.
    """

    top: jax.Array
    rest: jax.Array


def statistics(row: jax.Array, classes: ClassAxes) -> RowStatistics:
    """The statistics of rows in their working dtype: one pass for the top, and one for the sum.

    Σ min(e, 1 − e) is the sum without the top term wherever that has more than two thirds of the
    row; elsewhere Σe − 1 does not cancel.
    """
    top = top_of(row, classes)
    e = exp_depth(row, top)
    total = classes.sum(e)
    without_top = lax.stop_gradient(classes.sum(jnp.minimum(e, 1 - e)))
    exact = without_top + (total - lax.stop_gradient(total))
    return RowStatistics(top, jnp.where(total < 1.5, exact, total - 1))


def top_of(row: jax.Array, classes: ClassAxes) -> jax.Array:
    """The largest logit, but finite: a row without classes has the lowest number, not −∞."""
    highest = float(jnp.finfo(row.dtype).max)
    return jnp.clip(classes.max(row), -highest, highest)


def exp_depth(row: jax.Array, top: jax.Array) -> jax.Array:
    """The exponentials exp(x − top) ≤ 1."""
    return jnp.exp(depth(row, top))


def depth(row: jax.Array, top: jax.Array) -> jax.Array:
    """How far the logits are below the top: x − top ≤ 0.

    The minimum changes only +∞. It is there for compilers that compute x a second time and fuse a
    multiplication in it with the subtraction: that x is not the rounded one whose top was found,
    and the exponential could overflow, or be 0 in the whole row.
    """
    return jnp.minimum(row, float(jnp.finfo(row.dtype).max)) - top


def has_classes(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """Which rows are not all −∞; a row with NaN has classes."""
    return classes.max(x) != -jnp.inf


def is_label(labels: jax.Array, x: jax.Array, axis: int, first: int | jax.Array = 0) -> jax.Array:
    """True where the class, counted along `axis` of `x` from `first` on, is the label."""
    shape = [x.shape[i] if i == axis else 1 for i in range(x.ndim)]
    index = lax.broadcasted_iota(labels.dtype, shape, axis)
    return index + jnp.asarray(first, labels.dtype) == labels


def first_class(width: int, axis_name: str | None) -> int | jax.Array:
    """The number of the first class of this slice of a mapped axis, of `width` classes each."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * width


def nan_unless(holds: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 where it holds and NaN elsewhere; where it holds, no NaN is made on the way."""
    return 1 + 0 * jnp.where(holds, 0, jnp.inf).astype(dtype)


def in_range(labels: jax.Array, x: jax.Array, classes: ClassAxes) -> jax.Array:
    """1 for the label of a class, NaN for any other."""
    slices = 1 if classes.axis_name is None else lax.axis_size(classes.axis_name)
    inside = (labels >= 0) & (labels < slices * x.shape[classes.axes[0]])
    return nan_unless(inside, wide(x).dtype)


_NOT_EXAMPLES = ": it masks classes; to weight examples, multiply the losses that are returned"


def class_logits(
    name: str, logits: ArrayLike, axis: int, where: ArrayLike | None, axis_name: str | None = None
) -> tuple[jax.Array, ClassAxes]:
    """The logits, −∞ where excluded, and where their classes are."""
    x = as_real(name, logits)
    axes = canonical_axes(axis, x.ndim)
    where = broadcast_where(where, x.shape, _NOT_EXAMPLES)
    return x if where is None else jnp.where(where, x, -jnp.inf), ClassAxes(axes, axis_name)

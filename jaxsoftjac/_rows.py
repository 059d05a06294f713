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

from functools import partial
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

    def sums(self, *arrays: jax.Array, at_once: int = 8) -> tuple[jax.Array, ...]:
        """Sums of several arrays, in one pass; `at_once` is that of `_folded_sums`."""
        return _sums_over(arrays, self, at_once)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _sums_over(
    arrays: tuple[jax.Array, ...], classes: ClassAxes, at_once: int
) -> tuple[jax.Array, ...]:
    first = arrays[0]
    axes = tuple(a % first.ndim for a in classes.axes)
    # Where this rule is dropped (a scan in JAX 0.10), JAX differentiates a reduction of arrays that
    # all move, or of none.
    every = sum(arrays[1:], first)
    arrays = tuple(jnp.where(True, a, every) for a in arrays)
    spec = jax.typeof(first).sharding.spec
    if any(spec[axis] is not None for axis in axes):  # see `_folded_sums`
        totals = tuple(jnp.sum(a, axes) for a in arrays)
    elif axes == (first.ndim - 1,) and isinstance(first.shape[-1], int):  # not symbolic
        folded, plain = partial(_folded_sums, at_once=at_once), partial(_sums, axes=axes)
        totals = lax.platform_dependent(*arrays, cpu=folded, default=plain)
    else:
        totals = _sums(*arrays, axes=axes)
    totals = tuple(lax.expand_dims(total, axes) for total in totals)
    return totals if classes.axis_name is None else lax.psum(totals, classes.axis_name)


@_sums_over.defjvp
def _sums_over_jvp(
    classes: ClassAxes,
    at_once: int,
    primals: tuple[tuple[jax.Array, ...]],
    tangents: tuple[tuple[jax.Array, ...]],
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    return _sums_over(*primals, classes, at_once), tuple(map(classes.sum, tangents[0]))


def _sums(*arrays: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    zeros = tuple(jnp.zeros((), a.dtype) for a in arrays)
    return tuple(lax.reduce(arrays, zeros, _add_all, axes))


def _add_all(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


_LANES = 8  # numbers that a processor adds in one instruction


def _folded_sums(*arrays: jax.Array, at_once: int) -> tuple[jax.Array, ...]:
    """Sums over the last axis, which is folded into `at_once` parts until it is short.

    XLA's CPU backend adds along the last axis one entry at a time where there are several sums. A
    few entries that lie apart it adds for many columns at once: it writes the loop over them out,
    if that does not take too many operations, so that 16 are good for sums that are quickly
    computed, and 4 for those that are not. Long rows are first cut into eight parts, so that
    classes split over as many devices stay where they are; the sums of these are taken one by one,
    since of several at once devices would exchange all terms.
    """
    width = arrays[0].shape[-1]
    if width % 8 == 0 and width >= 512:
        cut = (a.reshape(*a.shape[:-1], 8, width // 8) for a in arrays)
        parts = _folded(*cut, at_once=at_once)
        return tuple(jnp.sum(a, -1) for a in _sums(*parts, axes=(parts[0].ndim - 1,)))
    return _sums(*_folded(*arrays, at_once=at_once), axes=(arrays[0].ndim - 1,))


def _folded(*arrays: jax.Array, at_once: int) -> tuple[jax.Array, ...]:
    """Arrays with the same sums over the last axis, which has less than 32 + 16 entries."""
    *batch, width = arrays[0].shape
    if width < 4 * _LANES:
        return arrays
    at_once = min(at_once, width // _LANES)
    part, kept = width // at_once, len(batch)
    whole = (a[..., : at_once * part].reshape(*batch, at_once, part) for a in arrays)
    folded = _folded(*_sums(*whole, axes=(kept,)), at_once=16)
    if width == at_once * part:
        return folded
    rest = (a[..., at_once * part :] for a in arrays)
    return tuple(lax.concatenate((a, b), kept) for a, b in zip(folded, rest, strict=True))


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
    """The statistics of rows in their working dtype: one pass for the top, and one for the sums."""
    return statistics_and_sums(row, classes)[0]


def statistics_and_sums(
    row: jax.Array, classes: ClassAxes, *arrays: jax.Array
) -> tuple[RowStatistics, tuple[jax.Array, ...]]:
    """The statistics, and sums of arrays of the shape of the rows, in the same pass.

    Σ min(e, 1 − e) is the sum without the top term wherever that has more than two thirds of the
    row; elsewhere Σe − 1 does not cancel.
    """
    top = top_of(row, classes)
    e = exp_depth(row, top)
    below = e + lax.stop_gradient(jnp.minimum(e, 1 - e) - e)  # its derivative is that of e
    without_top, total, *others = classes.sums(below, e, *arrays, at_once=16)
    is_alone = (total > 0.5) & (total < 1.5)
    return RowStatistics(top, jnp.where(is_alone, without_top, total - 1)), tuple(others)


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


def half_depth(row: jax.Array, top: jax.Array) -> jax.Array:
    """Half of the depth, which is finite where the logits are."""
    return depth(0.5 * row, 0.5 * top)


def soft_capped(x: jax.Array, cap: float | jax.Array) -> jax.Array:
    """The logits c·tanh(x/c), c at most 2¹⁰⁰: by a larger one the quotient could underflow."""
    cap = jnp.minimum(cap, 2.0**100)
    return cap * jnp.tanh(x / cap)


def largest(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """The largest of each row, +∞ where one is NaN.

    XLA's CPU compiler loses NaN in the maximum of more than 32768 numbers (JAX 0.10 to 0.12).
    """
    return classes.max(jnp.where(jnp.isnan(x), jnp.inf, x))


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


_NOT_EXAMPLES = ": it masks classes; to leave an example out, weight its loss by 0"


def class_logits(
    name: str, logits: ArrayLike, axis: int, where: ArrayLike | None, axis_name: str | None = None
) -> tuple[jax.Array, ClassAxes]:
    """The logits, −∞ where excluded, and where their classes are."""
    x = as_real(name, logits)
    axes = canonical_axes(axis, x.ndim)
    where = broadcast_where(where, x.shape, _NOT_EXAMPLES)
    return x if where is None else jnp.where(where, x, -jnp.inf), ClassAxes(axes, axis_name)

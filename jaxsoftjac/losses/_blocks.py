"""The logits hidden @ kernel + bias a block of the vocabulary at a time.

Blocks are visited in a loop that combines what is made of each; its body stands under
`jax.checkpoint`, so that in every mode and order one block of logits is held.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxsoftjac._checks import wide, working_dtype
from jaxsoftjac._rows import first_class, is_label, soft_capped
from jaxsoftjac._rules import recomputed, varying

Start = int | jax.Array  # the first class of a block


class Shared(NamedTuple):
    """What all blocks of the vocabulary share; None for a tangent that is not there."""

    hidden: Any  # [..., D]
    softcap: Any = None  # a number, or None for no cap
    origin: Any = None  # a number from which the bias is measured, a constant; None for 0
    temperature: Any = None  # a number that divides the logits, or None for 1
    teacher: Any = None  # the teacher's own `Shared`, or None


class Head(NamedTuple):
    """The layer of which each block has its own part; its last axis is the vocabulary."""

    kernel: Any  # [D, V]
    bias: Any = None  # [V], or None
    teacher: Any = None  # the teacher's own `Head`, or None


class Operands(NamedTuple):
    """What the logits are made of, the teacher's too where there is one; or the tangents of it."""

    shared: Shared
    head: Head

    @property
    def teacher(self) -> "Operands | None":
        """The operands of the teacher's logits."""
        if self.shared.teacher is None:
            return None
        return Operands(self.shared.teacher, self.head.teacher)

    @property
    def student(self) -> "Operands":
        """The operands of the logits whose loss it is, without the teacher's."""
        return self.taught_by(None)

    def taught_by(self, teacher: "Operands | None") -> "Operands":
        """These operands, with those of a teacher beside them."""
        shared, head = (None, None) if teacher is None else teacher
        return Operands(self.shared._replace(teacher=shared), self.head._replace(teacher=head))


class Logits(NamedTuple):
    """Logits of a block, [..., block], or what belongs to each of them."""

    student: Any
    teacher: Any = None  # None without a teacher


class Layout(NamedTuple):
    """What is static: the vocabulary is cut into a first block, then `blocks` of equal size."""

    first: int
    size: int
    blocks: int
    mean: bool = False  # whether the mean of the logits is wanted
    axis_name: str | None = None  # mapped axis over which the vocabulary is split

    @property
    def share(self) -> float:
        """A power of two, at most one over the number of classes: sums of shares are finite."""
        return 2 * self.unit

    @property
    def unit(self) -> float:
        """Half of a share: sums of differences of logits in this unit are finite."""
        slices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        classes = slices * (self.first + self.blocks * self.size)
        return 2.0 ** -(1 + math.ceil(math.log2(classes)))


def checkpointed(visit: Callable[..., Any]) -> Callable[..., Any]:
    """The visit of a block, computed again where it is differentiated.

    The size is bound first: `jax.checkpoint` keeps a function with static arguments for good, and
    with it the tracers that it has closed over.
    """

    def again(start: Start, size: int, head: Head) -> Any:
        return recomputed(lambda start, head: visit(start, size, head))(start, head)

    return again


def logits_dtype(operands: Operands) -> jnp.dtype:
    """The working dtype of the logits."""
    dtypes = operands.shared.hidden.dtype, operands.head.kernel.dtype
    return working_dtype(max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits))


def logits_of(operands: Operands) -> jax.Array:
    """Logits in the working dtype, c·tanh(y/c) if capped; −∞ where the bias is."""
    (hidden, softcap, origin, temperature, _), (kernel, bias, _) = operands
    dtype = logits_dtype(operands)
    if bias is not None:
        kernel = jnp.where(bias[None] == -jnp.inf, 0, kernel)  # which may be NaN there
    if hidden.dtype != kernel.dtype:
        hidden, kernel = hidden.astype(dtype), kernel.astype(dtype)
    y = jnp.matmul(hidden, kernel, preferred_element_type=dtype)
    if bias is None:
        return _scaled(y, softcap, temperature)
    bias = jnp.expand_dims(bias.astype(dtype), tuple(range(y.ndim - 1)))
    above = bias if origin is None else bias - origin
    if softcap is None and temperature is None:
        return y + above
    is_excluded = bias == -jnp.inf
    y = y + jnp.where(is_excluded, 0, above)
    return jnp.where(is_excluded, -jnp.inf, _scaled(y, softcap, temperature))


def _scaled(y: jax.Array, softcap: jax.Array | None, temperature: jax.Array | None) -> jax.Array:
    if softcap is not None:
        y = soft_capped(y, softcap.astype(y.dtype))
    return y if temperature is None else y / temperature.astype(y.dtype)


def both_logits(operands: Operands) -> Logits:
    """The logits, and those of the teacher if there is one, in the same dtype."""
    z = logits_of(operands.student)
    teacher = operands.teacher
    return Logits(z, None if teacher is None else logits_of(teacher).astype(z.dtype))


def moving(tangents: Operands) -> Operands:
    """The tangents, None for those that are known to be 0."""
    return jax.tree.map(
        lambda t: None if isinstance(t, SymbolicZero) else t,
        tangents,
        is_leaf=lambda t: isinstance(t, SymbolicZero),
    )


def at_tangents(operands: Any, moves: Any) -> Any:
    """The operands that move, None for the others."""
    return jax.tree.map(lambda t, a: None if t is None else a, moves, operands, is_leaf=is_none)


def filled(moved: Any, operands: Any) -> Any:
    """The operands, those that move in their place."""
    return jax.tree.map(lambda m, a: a if m is None else m, moved, operands, is_leaf=is_none)


def is_none(x: Any) -> bool:
    """Whether it is None, which is a leaf where tangents may be missing."""
    return x is None


def wide_shared(shared: Shared, layout: Layout) -> Shared:
    """In its working dtype and as a value of each slice: its cotangents are added up in that."""
    return jax.tree.map(lambda a: varying(wide(a), layout.axis_name), shared)


def block_of(operands: Operands, start: Start, size: int) -> Operands:
    """The operands of the logits of `size` classes from `start` on."""
    return Operands(operands.shared, _part(operands.head, start, size))


def _part(head: Head, start: Start, size: int) -> Head:
    """What classes have of a head, read in place."""
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size, a.ndim - 1), head)


def reduce_blocks(
    visit: Callable[..., Any],
    combine: Callable[[Any, Any], Any],
    moving: Head,
    layout: Layout,
    init: Any = None,
) -> Any:
    """Combines visit(start, size, moving block) over all blocks of the classes, after `init`.

    `moving`, tangents of the head, is sliced outside of what `visit` computes again: there the
    transpose of a slice adds to its part of the gradient in place. Not so in bfloat16 on CPUs,
    where all of it would be added up once a block: what is narrow is stacked in blocks.
    """
    is_narrow = any(a.dtype != working_dtype(a.dtype) for a in jax.tree.leaves(moving))

    def step(total: Any, x: tuple[jax.Array, Head | None]) -> tuple[Any, None]:
        i, block = x
        start = layout.first + i * layout.size
        block = _part(moving, start, layout.size) if block is None else block
        return combine(total, visit(start, layout.size, block)), None

    def stacked(a: jax.Array) -> jax.Array:
        a = a[..., layout.first :]
        return jnp.moveaxis(a.reshape(*a.shape[:-1], layout.blocks, layout.size), -2, 0)

    total = visit(0, layout.first, _part(moving, 0, layout.first))
    total = total if init is None else combine(init, total)
    if not layout.blocks:
        return total
    blocks = jax.tree.map(stacked, moving) if is_narrow else None
    return lax.scan(step, total, (jnp.arange(layout.blocks), blocks))[0]


def at_label(z: jax.Array, start: Any, labels: jax.Array, layout: Layout) -> jax.Array:
    """Where the block of logits that starts at class `start` has the label."""
    slice_size = layout.first + layout.blocks * layout.size
    first = jnp.asarray(first_class(slice_size, layout.axis_name), labels.dtype)
    return is_label(labels, z, z.ndim - 1, first + jnp.asarray(start, labels.dtype))

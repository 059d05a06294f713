"""Samples Fε of the factor of a softmax Jacobian, FFᵀ = J, without the [N, V] logits.

With p the top class of a row, Fε is √σ⊙ε − σ⟨√σ, ε⟩ at the others. At p that would cancel: there
it is √σₚ(1 − σₚ)εₚ − σₚΣ√σⱼεⱼ, 1 − σₚ and the sum taken over j ≠ p.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsoftjac._checks import working_dtype
from jaxsoftjac._rows import soft_capped
from jaxsoftjac._rules import varying
from jaxsoftjac._sharding import mesh_axes, over_mesh_slices, split_like, whole

_Arrays = tuple[jax.Array, ...]


class _Summary(NamedTuple):
    """Numbers per row, [N]; sums are over all classes but the top one, relative to e^top."""

    top: jax.Array
    pivot: jax.Array  # the top class
    sign: jax.Array  # ε there
    rest: jax.Array  # Σ exp(z − top)
    signed: jax.Array  # Σ exp((z − top)/2)·ε


def over_examples(
    function: Callable[..., _Arrays],
    operands: _Arrays,
    shares: jax.Array,
    key: jax.Array,
    *tangents: _Arrays,
) -> _Arrays:
    """`function` of all its arguments but itself, each device computing that of its own rows.

    What else an Explicit mesh axis splits is gathered: hidden states and kernel are read by blocks.
    """
    arguments = operands, shares, key, *tangents
    names = mesh_axes(operands[0], 0) if operands[0].ndim > 1 else ()
    gathered = jax.tree.map(lambda a: _whole(a, names), arguments)
    if names:
        rows = (0, *(None for _ in operands[1:]))
        results = over_mesh_slices(
            partial(_own_part, function, names),
            names,
            gathered,
            (rows, 0, None, *(rows for _ in tangents)),
            (P(names), *(P() for _ in operands[1:])),
        )
    else:
        results = function(*gathered)
    return tuple(split_like(a, like) for a, like in zip(results, operands, strict=True))


def _own_part(
    function: Callable[..., _Arrays],
    names: tuple[str, ...],
    operands: _Arrays,
    shares: jax.Array,
    key: jax.Array,
    *tangents: _Arrays,
) -> _Arrays:
    key = jax.random.fold_in(key, lax.axis_index(names))
    operands, tangents = varying((operands, tangents), names)
    hidden, *head = function(operands, shares, key, *tangents)
    return (hidden, *lax.psum(head, names))


def _whole(a: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """`a`, split over no Explicit mesh axes but `names`."""
    for axis in range(a.ndim):
        if mesh_axes(a, axis) != names:
            a = whole(a, axis)
    return a


class VocabularyFactor:
    """The factor F at the logits of a last layer, for each row times √share."""

    def __init__(
        self,
        operands: tuple[jax.Array, ...],
        shares: jax.Array,
        *,
        block_size: int,
        logit_softcap: float | None = None,
    ):
        """F of hidden [..., D], kernel [D, V] and perhaps a bias [V], for shares [...]."""
        self._operands = _as_rows(operands)
        self._lead = operands[0].shape
        self._shares = shares.reshape(-1)
        self._softcap = logit_softcap
        self._size = min(block_size, operands[1].shape[1])
        self._count = -(-operands[1].shape[1] // self._size)
        self._dtype = working_dtype(jnp.result_type(*(a.dtype.name for a in operands[:2])))

    def cotangent(self, key: jax.Array) -> tuple[jax.Array, ...]:
        """Fε pulled back to the operands."""
        summary, scale = self._summary(key), jnp.sqrt(self._shares)
        return self._pulled(key, summary, scale)

    def outer_product(self, key: jax.Array, tangents: tuple[Any, ...]) -> tuple[jax.Array, ...]:
        """The operands' (Fε)(Fε)ᵀ times tangents of them."""
        summary = self._summary(key)
        moves = _as_rows(
            tuple(t.astype(a.dtype) for t, a in zip(tangents, self._operands, strict=True))
        )
        top_logits = partial(self._logits_at, summary.pivot)
        at_pivot = jax.jvp(top_logits, self._operands, moves)[1][:, None]

        def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            blocks = self._block(i, self._operands), self._block(i, moves)
            z, along = jax.jvp(self._logits, *blocks)
            u, is_pivot = self._sample(key, i, z, summary)
            centred = jnp.where(is_pivot | (u == 0), 0, along - at_pivot)
            return total + jnp.sum(u * centred, axis=-1), None

        zero = jnp.zeros_like(summary.top)
        along, _ = lax.scan(add, zero, jnp.arange(self._count, dtype=jnp.int32))
        return self._pulled(key, summary, self._shares * along)

    def _pulled(self, key: jax.Array, summary: _Summary, scale: jax.Array) -> tuple[Any, ...]:
        """Samples times `scale`, pulled back to the operands block by block."""

        def add(total: list[jax.Array], i: jax.Array) -> tuple[list[jax.Array], None]:
            z, pullback = jax.vjp(self._logits, *self._block(i, self._operands))
            hidden, *head = pullback(scale[:, None] * self._sample(key, i, z, summary)[0])
            start = self._start(i)
            written = [_added(t, block, start) for t, block in zip(total[1:], head, strict=True)]
            return [total[0] + hidden.astype(total[0].dtype), *written], None

        zeros = [jnp.zeros_like(a) for a in self._operands]
        zeros[0] = zeros[0].astype(self._dtype)
        total, _ = lax.scan(add, zeros, jnp.arange(self._count, dtype=jnp.int32))
        hidden = total[0].astype(self._operands[0].dtype).reshape(self._lead)
        return (hidden, *total[1:])

    def _sample(
        self, key: jax.Array, i: jax.Array, z: jax.Array, summary: _Summary
    ) -> tuple[jax.Array, jax.Array]:
        """Fε at the classes of block i, [N, block], and which of them are the top one."""
        top, pivot, sign, rest, signed = (a[:, None] for a in summary)
        kept = self._is_new(i) & (z != -jnp.inf)
        root = jnp.where(kept, jnp.exp((jnp.where(kept, z, top) - top) / 2), 0)
        root, of_top, others = (a / jnp.sqrt(1 + rest) for a in (root, jnp.ones_like(top), signed))
        u = root * self._signs(key, i) - root**2 * (others + of_top * sign)
        at_top = of_top * sign * rest / (1 + rest) - of_top**2 * others
        is_pivot = self._is_new(i) & (self._classes(i) == pivot)
        return jnp.where(is_pivot, at_top, u), is_pivot

    def _summary(self, key: jax.Array) -> _Summary:
        def add(total: _Summary, i: jax.Array) -> tuple[_Summary, None]:
            z = self._logits(*self._block(i, self._operands))
            z = jnp.where(self._is_new(i), z, -jnp.inf)
            signs = self._signs(key, i)
            at = jnp.argmax(z, axis=-1)[:, None]
            top, sign = (jnp.take_along_axis(a, at, axis=-1) for a in (z, signs))
            depth = z - jnp.where(top == -jnp.inf, 0, top)
            counted = (jnp.arange(self._size)[None] != at) & (z != -jnp.inf)
            depth = jnp.where(counted, depth, 0)
            rest = jnp.sum(jnp.where(counted, jnp.exp(depth), 0), axis=-1)
            signed = jnp.sum(jnp.where(counted, jnp.exp(depth / 2) * signs, 0), axis=-1)
            pivot = at[:, 0].astype(jnp.int32) + self._start(i)
            return _merged(total, _Summary(top[:, 0], pivot, sign[:, 0], rest, signed)), None

        zero = jnp.zeros_like(jnp.sum(self._operands[0], axis=-1), self._dtype)
        start = _Summary(zero - jnp.inf, jnp.zeros_like(zero, jnp.int32) - 1, zero, zero, zero)
        summary, _ = lax.scan(add, start, jnp.arange(self._count, dtype=jnp.int32))
        return summary._replace(top=jnp.where(summary.top == -jnp.inf, 0, summary.top))

    def _logits(self, hidden: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
        for b in bias:
            kernel = jnp.where(b[None] == -jnp.inf, 0, kernel)  # which may be NaN there
        y = jnp.matmul(hidden.astype(self._dtype), kernel.astype(self._dtype))
        return self._capped(y, *(b[None] for b in bias))

    def _logits_at(
        self, pivot: jax.Array, hidden: jax.Array, kernel: jax.Array, *bias: jax.Array
    ) -> jax.Array:
        """The logits of one class for each row."""
        columns = jnp.take(kernel, jnp.maximum(pivot, 0), axis=1).T.astype(self._dtype)
        y = jnp.sum(hidden.astype(self._dtype) * columns, axis=-1)
        return self._capped(y, *(jnp.take(b, jnp.maximum(pivot, 0)) for b in bias))

    def _capped(self, y: jax.Array, *bias: jax.Array) -> jax.Array:
        c, excluded = self._softcap, jnp.zeros_like(y, bool)
        if bias:
            excluded = jnp.broadcast_to(bias[0] == -jnp.inf, y.shape)
            y = y + jnp.where(excluded, 0, bias[0].astype(y.dtype))
        y = y if c is None else soft_capped(y, c)
        return jnp.where(excluded, -jnp.inf, y)

    def _block(self, i: jax.Array, operands: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        hidden, *head = operands
        start = self._start(i)
        take = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=self._size)
        return (hidden, *(take(a, axis=a.ndim - 1) for a in head))

    def _start(self, i: jax.Array) -> jax.Array:
        """The first class of block i; the last block overlaps the one before."""
        last = self._operands[1].shape[1] - self._size
        return jnp.minimum(i * self._size, last)

    def _classes(self, i: jax.Array) -> jax.Array:
        return self._start(i) + jnp.arange(self._size, dtype=jnp.int32)[None]

    def _is_new(self, i: jax.Array) -> jax.Array:
        """Which classes of block i are in none before, [1, block]."""
        return self._classes(i) >= i * self._size

    def _signs(self, key: jax.Array, i: jax.Array) -> jax.Array:
        shape = self._shares.size, self._size
        return jax.random.rademacher(jax.random.fold_in(key, i), shape, self._dtype)


def _merged(a: _Summary, b: _Summary) -> _Summary:
    """The summary of the classes of both."""
    low, high = (
        jax.tree.map(partial(jnp.where, a.top >= b.top), *pair) for pair in ((b, a), (a, b))
    )
    is_empty = low.top == -jnp.inf
    half = jnp.where(is_empty, 0, jnp.exp(jnp.where(is_empty, 0, low.top - high.top) / 2))
    rest = high.rest + half**2 * (1 + low.rest)
    return high._replace(rest=rest, signed=high.signed + half * (low.sign + low.signed))


def _added(total: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
    """`total` with `block` added from `start` on, on its last axis."""
    axis = total.ndim - 1
    there = lax.dynamic_slice_in_dim(total, start, block.shape[axis], axis)
    return lax.dynamic_update_slice_in_dim(total, there + block, start, axis)


def _as_rows(operands: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    hidden, *head = operands
    return (hidden.reshape(-1, hidden.shape[-1]), *head)

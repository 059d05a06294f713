"""Conjugate gradients on lists of arrays, which also tell what the quadratic model is worth.

>>> solution = conjugate_gradients(
...     lambda v: [2 * v[0]], [jnp.array([4.0])], [jnp.array([0.0])], damping=jnp.array(2.0),
...     precondition=None, tolerance=1e-3, iterations=5,
... )
>>> print(solution.x[0], solution.slope, solution.curvature)
[1.] 4.0 2.0
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

Arrays = list[jax.Array]


class Solution(NamedTuple):
    """x, with bᵀx and xᵀGx, for which neither b nor another product has to be kept."""

    x: Arrays
    slope: jax.Array
    curvature: jax.Array


class _State(NamedTuple):
    x: Arrays
    r: Arrays
    p: Arrays
    rho: jax.Array
    norm: jax.Array  # ‖r‖²
    model: jax.Array  # xᵀ(G + λ)x/2 − bᵀx
    i: jax.Array


def conjugate_gradients(
    matrix: Callable[[Arrays], Arrays],
    b: Arrays,
    start: Arrays | None,
    *,
    damping: jax.Array,
    precondition: Callable[[Arrays], Arrays] | None,
    tolerance: ArrayLike,
    iterations: ArrayLike,
) -> Solution:
    """The solution x of (G + λ)x = b for a semi-definite G.

    Args:
        matrix: v ↦ Gv.
        b: the right side.
        start: where to start, if the quadratic model is lower there than at 0; None for 0.
        damping: λ.
        precondition: product with an approximate inverse, or None.
        tolerance: of ‖b − (G + λ)x‖ relative to ‖b‖.
        iterations: at most so many products, and one at the start.
    """
    goal = jnp.asarray(tolerance, damping.dtype) ** 2 * inner(b, b)

    def damped(v: Arrays) -> Arrays:
        return [a + damping.astype(c.dtype) * c for a, c in zip(matrix(v), v, strict=True)]

    conditioned = precondition or list

    def is_open(s: _State) -> jax.Array:
        return (s.norm > goal) & (s.i < iterations)

    def step(s: _State) -> _State:
        q = damped(s.p)
        along = inner(s.p, q)
        alpha = jnp.where(along > 0, s.rho / jnp.where(along > 0, along, 1), 0)
        x, r = scaled_sum(s.x, alpha, s.p), scaled_sum(s.r, -alpha, q)
        z = conditioned(r)
        rho = inner(r, z)
        beta = jnp.where(s.rho > 0, rho / jnp.where(s.rho > 0, s.rho, 1), 0)
        norm = jnp.where(along > 0, inner(r, r), 0)  # no curvature left: stop
        model = s.model - alpha * s.rho / 2
        return _State(x, r, scaled_sum(z, beta, s.p), rho, norm, model, s.i + 1)

    x, r, model = [jnp.zeros_like(a) for a in b], b, jnp.zeros_like(goal)
    if start is not None:
        at_start = damped(start)
        at = inner(start, at_start) / 2 - inner(b, start)
        x = [jnp.where(at < 0, a, 0) for a in start]
        r = [a - jnp.where(at < 0, c, 0) for a, c in zip(b, at_start, strict=True)]
        model = jnp.where(at < 0, at, 0)
    z = conditioned(r)
    first = _State(x, r, z, inner(r, z), inner(r, r), model, jnp.int32(0))
    last = lax.while_loop(is_open, step, first)
    along_residual = inner(last.x, last.r)  # bᵀx − xᵀ(G + λ)x
    curvature = -2 * (last.model + along_residual)
    return Solution(last.x, along_residual + curvature, curvature - damping * inner(last.x, last.x))


def inner(a: Arrays, b: Arrays) -> jax.Array:
    """The inner product of two lists of arrays."""
    # By sums: on CPUs a dot adds up one by one, where float32 loses 0.4 % of 4 million terms, and
    # it would reshape arrays, which Explicit mesh axes may split.
    terms = (jnp.sum(x * y) for x, y in zip(a, b, strict=True))
    return sum(terms, start=jnp.zeros((), _dtype(a)))


def scaled_sum(a: Arrays, scale: jax.Array, b: Arrays) -> Arrays:
    """The arrays a + scale·b."""
    return [x + scale.astype(x.dtype) * y for x, y in zip(a, b, strict=True)]


def _dtype(a: Arrays) -> Any:
    return a[0].dtype if a else jnp.result_type(float)

"""Conjugate gradients on lists of arrays, which also tell what the matrix made of the solution.

>>> x, Gx = conjugate_gradients(
...     lambda v: [2 * v[0]], [jnp.array([4.0])], [jnp.array([0.0])], damping=jnp.array(2.0),
...     weights=None, tolerance=1e-3, iterations=5,
... )
>>> print(x[0], Gx[0])
[1.] [2.]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

Arrays = list[jax.Array]


class _State(NamedTuple):
    x: Arrays
    r: Arrays
    p: Arrays
    rho: jax.Array
    norm: jax.Array  # ‖r‖²
    i: jax.Array


def conjugate_gradients(
    matrix: Callable[[Arrays], Arrays],
    b: Arrays,
    start: Arrays,
    *,
    damping: jax.Array,
    weights: Arrays | None,
    tolerance: ArrayLike,
    iterations: ArrayLike,
) -> tuple[Arrays, Arrays]:
    """The solution x of (G + λ)x = b for a semi-definite G, and Gx.

    Args:
        matrix: v ↦ Gv.
        b: the right side.
        start: where to start, if (G + λ)-quadratic model is better there than at 0.
        damping: λ.
        weights: of the diagonal preconditioner, or None.
        tolerance: of ‖b − (G + λ)x‖ relative to ‖b‖.
        iterations: at most so many products, and one at the start.
    """
    goal = jnp.asarray(tolerance, damping.dtype) ** 2 * inner(b, b)

    def damped(v: Arrays) -> Arrays:
        return [a + damping.astype(c.dtype) * c for a, c in zip(matrix(v), v, strict=True)]

    def conditioned(r: Arrays) -> Arrays:
        return r if weights is None else [w * a for w, a in zip(weights, r, strict=True)]

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
        return _State(x, r, scaled_sum(z, beta, s.p), rho, norm, s.i + 1)

    at_start = damped(start)
    is_better = 2 * inner(b, start) > inner(start, at_start)
    x = [jnp.where(is_better, a, 0) for a in start]
    r = [a - jnp.where(is_better, c, 0) for a, c in zip(b, at_start, strict=True)]
    z = conditioned(r)
    last = lax.while_loop(is_open, step, _State(x, r, z, inner(r, z), inner(r, r), jnp.int32(0)))
    product = [a - c for a, c in zip(b, last.r, strict=True)]
    return last.x, scaled_sum(product, -damping, last.x)


def inner(a: Arrays, b: Arrays) -> jax.Array:
    """The inner product of two lists of arrays."""
    return sum((jnp.vdot(x, y) for x, y in zip(a, b, strict=True)), start=jnp.zeros((), _dtype(a)))


def scaled_sum(a: Arrays, scale: jax.Array, b: Arrays) -> Arrays:
    """The arrays a + scale·b."""
    return [x + scale.astype(x.dtype) * y for x, y in zip(a, b, strict=True)]


def _dtype(a: Arrays) -> Any:
    return a[0].dtype if a else jnp.result_type(float)

"""Directions of softmax regression: Newton's by two ways, and those of L-BFGS.

All work in the scaled coordinates θ [K, D + 1] of `regression`, in which the Hessian at 0 has a
diagonal of 1. Each makes a function (gradient, θ, memory) → (d, memory), and the first memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from scipy.linalg import helmert

from jaxsoftjac._rows import ClassAxes
from jaxsoftjac.functions import softmax
from jaxsoftjac.losses import cross_entropy
from jaxsoftjac.optimizers._conjugate_gradients import conjugate_gradients
from jaxsoftjac.products import softmax_product
from jaxsoftjac.regression._loop import Direction, centred

_KRONECKER_FEATURES = 4096  # above, the D×D preconditioner gives way to its diagonal


class Problem(NamedTuple):
    """The objective in scaled coordinates θ [K, D + 1], the bias last."""

    x: jax.Array  # [N, D + 1]
    labels: jax.Array
    weights: jax.Array  # [N], with sum 1
    penalty: jax.Array  # [D + 1]
    classes: int

    def in_float32(self) -> "Problem":
        """The problem in float32, labels that are class numbers as they are."""

        def low(a: jax.Array) -> jax.Array:
            return a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a

        x, labels, weights, penalty = (low(a) for a in self[:4])
        return Problem(x, labels, weights, penalty, self.classes)

    @property
    def masses(self) -> jax.Array:
        """What the curvature of each example is multiplied by, w·Σt."""
        if self.labels.ndim == 1:
            return self.weights
        return self.weights * jnp.sum(self.labels, axis=1, dtype=self.weights.dtype)

    def logits(self, theta: jax.Array) -> jax.Array:
        """Logits [K, N]: rows of examples are contiguous, whatever the number of classes."""
        return jnp.einsum("kd,nd->kn", theta, self.x, precision="highest")

    def objective(self, theta: jax.Array) -> jax.Array:
        """Weighted mean of cross-entropy, and the penalty."""
        labels = self.labels if self.labels.ndim == 1 else self.labels.T
        losses = cross_entropy(self.logits(theta), labels, axis=0)
        penalties = jnp.sum(theta**2, axis=0) * self.penalty
        return jnp.sum(self.weights * losses) + jnp.sum(penalties) / 2


def newton_cg(problem: Problem) -> tuple[Direction, Any]:
    """Directions by preconditioned conjugate gradients in float32, O(N·D·K) each."""
    low = problem.in_float32()
    x, weights, penalty = low.x, low.masses[None], low.penalty[None]
    first, refreshed, precondition = _preconditioner(low)

    def direction(
        gradient: jax.Array, theta: jax.Array, memory: _Preconditioner
    ) -> tuple[jax.Array, _Preconditioner]:
        sigma = softmax(low.logits(theta.astype(x.dtype)), axis=0)
        memory = refreshed(memory, jnp.sum(weights * sigma * (1 - sigma)) / sigma.shape[0])
        damped = penalty + memory.curvature * _smallest(x)

        def hessian(v: list[jax.Array]) -> list[jax.Array]:
            along = jnp.einsum("kd,nd->kn", v[0], x)
            spread = weights * softmax_product(along, sigma, ClassAxes((0,)))
            return [spread @ x + damped * v[0]]

        norm = jnp.linalg.norm(gradient)
        solution = conjugate_gradients(
            hessian,
            [(gradient / jnp.where(norm > 0, norm, 1)).astype(x.dtype)],
            None,
            damping=jnp.zeros([], x.dtype),
            precondition=lambda r: [precondition(memory, r[0])],
            tolerance=jnp.clip(jnp.sqrt(norm), 0.1, 0.5),
            iterations=250,
        )
        return norm * solution.x[0].astype(gradient.dtype), memory

    return direction, first


class _Preconditioner(NamedTuple):
    """(c·xᵀx + penalty)⁻¹, the same for every class, with c the mean of σ(1 − σ) a while ago.

    The inverse itself, because products with it are faster than triangular solves.
    """

    curvature: jax.Array
    inverse: jax.Array


def _preconditioner(
    problem: Problem,
) -> tuple[_Preconditioner, Callable[..., _Preconditioner], Callable[..., jax.Array]]:
    """The first memory, (memory, c) → memory, and (memory, r) → preconditioned r."""
    x, weights, penalty = problem.x, problem.masses, problem.penalty
    is_dense = x.shape[1] <= _KRONECKER_FEATURES
    eye = jnp.eye(x.shape[1] if is_dense else 0, dtype=x.dtype)
    if is_dense:
        gram = (x * weights[:, None]).T @ x + _smallest(x) * eye
    else:
        gram = weights @ x**2 + _smallest(x)

    def invert(c: jax.Array) -> jax.Array:
        if not is_dense:
            return 1 / (c * gram + penalty)
        return cho_solve(cho_factor(c * gram + jnp.diag(penalty)), eye)

    def precondition(memory: _Preconditioner, r: jax.Array) -> jax.Array:
        return r @ memory.inverse if is_dense else r * memory.inverse[None]

    def refreshed(memory: _Preconditioner, c: jax.Array) -> _Preconditioner:
        c = jnp.maximum(c, float(jnp.finfo(c.dtype).eps) ** 2)
        return lax.cond(
            c < memory.curvature / 2, lambda: _Preconditioner(c, invert(c)), lambda: memory
        )

    unset = _Preconditioner(jnp.asarray(jnp.inf, x.dtype), jnp.zeros_like(gram))
    return unset, refreshed, precondition


def _smallest(x: jax.Array) -> float:
    """What is added to a Gram matrix of diagonal 1 and more, so that it can be inverted."""
    return 10 * x.shape[1] * float(jnp.finfo(x.dtype).eps)


def newton_cholesky(problem: Problem) -> tuple[Direction, Any]:
    """Directions by factorisation of `dense_hessian`."""

    def direction(
        gradient: jax.Array, theta: jax.Array, memory: tuple[()]
    ) -> tuple[jax.Array, tuple[()]]:
        basis = class_differences(theta)
        g = basis @ gradient
        hessian = dense_hessian(problem, theta)
        floor = len(hessian) * jnp.finfo(g.dtype).eps * jnp.max(jnp.diagonal(hessian), initial=0)
        damped = hessian + floor * jnp.eye(len(hessian), dtype=g.dtype)
        d = cho_solve(cho_factor(damped), g.ravel())
        return basis.T @ d.reshape(g.shape), memory

    return direction, ()


def dense_hessian(problem: Problem, theta: jax.Array) -> jax.Array:
    """The Hessian [(K − 1)(D + 1)]², in an orthonormal basis of the classes' differences.

    Its blocks are xᵀ diag(c) x, with c the covariance under σ of two vectors of the basis. They are
    computed one by one, so that memory is not multiplied by N.
    """
    x, weights, basis = problem.x, problem.masses, class_differences(theta)
    sigma = softmax(problem.logits(theta), axis=0)
    rows, columns = np.triu_indices(basis.shape[0])

    def block(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        a, b = (v[:, None] - (v @ sigma)[None] for v in pair)
        covariance = weights * jnp.sum(sigma * a * b, axis=0)
        return jnp.dot((x * covariance[:, None]).T, x, precision="highest")

    blocks = lax.map(block, (basis[rows], basis[columns]))
    n, D = basis.shape[0], x.shape[1]
    hessian = jnp.zeros((n, D, n, D), x.dtype)
    hessian = hessian.at[rows, :, columns].set(blocks).at[columns, :, rows].set(blocks)
    return hessian.reshape(n * D, n * D) + jnp.diag(jnp.tile(problem.penalty, n))


def class_differences(theta: jax.Array) -> jax.Array:
    """K − 1 orthonormal rows orthogonal to 1, the null vector of J."""
    return jnp.asarray(helmert(theta.shape[0]), theta.dtype)


def lbfgs(problem: Problem) -> tuple[Direction, Any]:
    """Directions of optax's L-BFGS."""
    rule: Any = optax.scale_by_lbfgs()
    shape = problem.classes, problem.x.shape[1]

    def direction(gradient: jax.Array, theta: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer types
            return rule.update(gradient, memory, theta)

    return direction, rule.init(jnp.zeros(shape, problem.x.dtype))


def tangent_solve(
    problem: Problem, hessian: Callable[[jax.Array], jax.Array], b: jax.Array
) -> jax.Array:
    """The least-norm solution of Hx = b in full precision, for derivatives of the minimiser."""
    penalty, x = problem.penalty, problem.x
    diagonal = jnp.maximum(problem.weights @ x**2 / problem.classes + penalty, _smallest(x))

    def solve(product: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
        solution = conjugate_gradients(
            lambda v: [product(v[0])],
            [centred(b)],  # the rest of it is rounding, which the null space would blow up
            None,
            damping=jnp.zeros([], b.dtype),
            precondition=lambda r: [r[0] / diagonal[None]],
            tolerance=4 * jnp.finfo(b.dtype).eps,
            iterations=4 * b.size,
        )
        return solution.x[0]

    return lax.custom_linear_solve(hessian, b, solve, symmetric=True)

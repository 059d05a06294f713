"""Steps of softmax regression, as optax transformations: Newton's by two ways, and L-BFGS.

All work in the scaled coordinates θ [K, D + 1] of `regression`, in which the Hessian at 0 has a
diagonal of 1, and end in optax's zoom line search.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import cho_factor, cho_solve
from jax.scipy.sparse.linalg import cg
from scipy.linalg import helmert

from jaxsoftjac._rows import ClassAxes
from jaxsoftjac.functions import softmax
from jaxsoftjac.losses import cross_entropy
from jaxsoftjac.products import softmax_product

_KRONECKER_FEATURES = 4096  # above, the D×D preconditioner gives way to its diagonal


class Problem(NamedTuple):
    """The objective in scaled coordinates θ [K, D + 1], the bias last."""

    x: jax.Array  # [N, D + 1]
    labels: jax.Array
    weights: jax.Array  # [N], with sum 1
    penalty: jax.Array  # [D + 1]

    def logits(self, theta: jax.Array) -> jax.Array:
        """Logits [K, N]: rows of examples are contiguous, whatever the number of classes."""
        return jnp.einsum("kd,nd->kn", theta, self.x, precision="highest")

    def objective(self, theta: jax.Array) -> jax.Array:
        """Weighted mean of cross-entropy, and the penalty."""
        labels = self.labels if self.labels.ndim == 1 else self.labels.T
        losses = cross_entropy(self.logits(theta), labels, axis=0)
        penalties = jnp.sum(theta**2, axis=0) * self.penalty
        return jnp.sum(self.weights * losses) + jnp.sum(penalties) / 2


def _newton(direction: Callable[..., tuple[jax.Array, Any]], memory: Any = ()) -> Any:
    """Steps along −d for d, memory = direction(gradient, θ, memory); −gradient if d overflows."""

    def init(params):
        del params
        return memory

    def update(updates, state, params=None):
        d, state = direction(updates, params, state)
        return -jnp.where(jnp.all(jnp.isfinite(d)), d, updates), state

    return optax.chain(optax.GradientTransformation(init, update), _line_search())


def _line_search() -> Any:
    return optax.scale_by_zoom_linesearch(25, initial_guess_strategy="one")


def newton_cg(problem: Problem) -> Any:
    """Steps by preconditioned conjugate gradients in float32, O(N·D·K) each."""
    low = jax.tree.map(
        lambda a: a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a, problem
    )
    x, weights, penalty = low.x, low.weights[None], low.penalty[None]
    first, refreshed, precondition = _preconditioner(low)

    def direction(gradient, theta, memory):
        sigma = softmax(low.logits(theta.astype(x.dtype)), axis=0)
        memory = refreshed(memory, jnp.sum(weights * sigma * (1 - sigma)) / sigma.shape[0])
        damped = penalty + memory.curvature * _smallest(x)

        def hessian(v):
            along = jnp.einsum("kd,nd->kn", v, x)
            return (weights * softmax_product(along, sigma, ClassAxes((0,)))) @ x + damped * v

        norm = jnp.linalg.norm(gradient)
        accuracy = jnp.clip(jnp.sqrt(norm), 0.1, 0.5).astype(x.dtype)
        unit = (gradient / norm).astype(x.dtype)
        solve: Any = partial(cg, maxiter=250, M=partial(precondition, memory))
        d, _ = solve(hessian, unit, tol=accuracy)
        return norm * d.astype(gradient.dtype), memory

    return _newton(direction, first)


class _Preconditioner(NamedTuple):
    """(c·xᵀx + penalty)⁻¹, the same for every class, with c the mean of σ(1 − σ) a while ago.

    Products with a symmetric inverse are several times faster than triangular solves.
    """

    curvature: jax.Array
    inverse: jax.Array


def _preconditioner(problem: Problem):
    """The first memory, (memory, c) → memory, and (memory, r) → preconditioned r."""
    x, weights, penalty = problem.x, problem.weights, problem.penalty
    if x.shape[1] > _KRONECKER_FEATURES:
        squares = weights @ x**2 + _smallest(x)
        invert = lambda c: 1 / (c * squares + penalty)  # noqa: E731
        precondition = lambda memory, r: r * memory.inverse[None]  # noqa: E731
    else:
        eye = jnp.eye(x.shape[1], dtype=x.dtype)
        gram = (x * weights[:, None]).T @ x + _smallest(x) * eye

        def invert(c):
            return cho_solve(cho_factor(c * gram + jnp.diag(penalty)), eye)

        precondition = lambda memory, r: r @ memory.inverse  # noqa: E731

    def refreshed(memory, c):
        c = jnp.maximum(c, float(jnp.finfo(c.dtype).eps) ** 2)
        renewed = lambda: _Preconditioner(c, invert(c))  # noqa: E731
        return jax.lax.cond(c < memory.curvature / 2, renewed, lambda: memory)

    first = jax.eval_shape(invert, penalty[0])
    unset = _Preconditioner(jnp.asarray(jnp.inf, x.dtype), jnp.zeros(first.shape, x.dtype))
    return unset, refreshed, precondition


def _smallest(x: jax.Array) -> float:
    """What is added to a Gram matrix of diagonal 1 and more, so that it can be inverted."""
    return 10 * x.shape[1] * float(jnp.finfo(x.dtype).eps)


def newton_cholesky(problem: Problem) -> Any:
    """Steps by factorisation of `dense_hessian`."""

    def direction(gradient, theta, memory):
        basis = class_differences(theta)
        g = basis @ gradient
        d = cho_solve(cho_factor(dense_hessian(problem, theta)), g.ravel())
        return basis.T @ d.reshape(g.shape), memory

    return _newton(direction)


def dense_hessian(problem: Problem, theta: jax.Array) -> jax.Array:
    """The Hessian [(K − 1)(D + 1)]², in an orthonormal basis of the classes' differences.

    Its blocks are xᵀ diag(c) x, with c the covariance under σ of two vectors of the basis. They are
    computed one by one, so that memory is not multiplied by N.
    """
    x, weights, basis = problem.x, problem.weights, class_differences(theta)
    sigma = softmax(problem.logits(theta), axis=0)
    rows, columns = np.triu_indices(basis.shape[0])

    def block(pair):
        a, b = (v[:, None] - (v @ sigma)[None] for v in pair)
        covariance = weights * jnp.sum(sigma * a * b, axis=0)
        return jnp.dot((x * covariance[:, None]).T, x, precision="highest")

    blocks = jax.lax.map(block, (basis[rows], basis[columns]))
    n, D = basis.shape[0], x.shape[1]
    hessian = jnp.zeros((n, D, n, D), x.dtype)
    hessian = hessian.at[rows, :, columns].set(blocks).at[columns, :, rows].set(blocks)
    hessian = hessian.reshape(n * D, n * D)
    floor = n * D * jnp.finfo(x.dtype).eps * jnp.max(jnp.diagonal(hessian), initial=0)
    return hessian + jnp.diag(jnp.tile(problem.penalty, n) + floor)


def class_differences(theta: jax.Array) -> jax.Array:
    """K − 1 orthonormal rows orthogonal to 1, the null vector of J."""
    return jnp.asarray(helmert(theta.shape[0]), theta.dtype)


def lbfgs(problem: Problem) -> Any:
    """Steps by optax's L-BFGS."""
    del problem
    return optax.lbfgs(linesearch=_line_search())

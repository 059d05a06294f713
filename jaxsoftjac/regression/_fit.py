"""`fit_softmax_regression`: the arguments, the scaling, and the loop around the steps."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.scipy.linalg import cho_factor, cho_solve
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, wide
from jaxsoftjac.functions import log_softmax
from jaxsoftjac.losses import cross_entropy
from jaxsoftjac.regression._steps import (
    Problem,
    class_differences,
    dense_hessian,
    lbfgs,
    newton_cg,
    newton_cholesky,
)


class SoftmaxRegression(NamedTuple):
    """A fitted model of log p = log_softmax(features @ kernel + bias)."""

    kernel: jax.Array  # [D, K], with sum 0 over the classes
    bias: jax.Array  # [K], with sum 0
    loss: jax.Array  # mean cross-entropy + l2/2·‖kernel‖²
    gradient_norm: jax.Array  # of the loss by (kernel, bias)
    iterations: jax.Array
    converged: jax.Array
    standard_errors: tuple[jax.Array, jax.Array] | None  # of kernel and bias

    def predict_log_proba(self, features: ArrayLike) -> jax.Array:
        """Log-probabilities [..., K] of features [..., D]."""
        logits = jnp.asarray(features, self.kernel.dtype) @ self.kernel
        return log_softmax(logits + jnp.broadcast_to(self.bias, logits.shape))


def fit_softmax_regression(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    l2: float | jax.Array,
    num_classes: int | None = None,
    weights: ArrayLike | None = None,
    solver: str = "newton-cg",
    tol: float | None = None,
    max_iterations: int | None = None,
    standard_errors: bool = False,
) -> SoftmaxRegression:
    """Minimiser of mean cross-entropy + l2/2·‖kernel‖², the bias unpenalised.

    Features are centred and scaled inside, to a Hessian at 0 with unit diagonal, so that their
    units do not matter. The line search is optax's; a step of

    - "newton-cg" solves with the Hessian by preconditioned conjugate gradients in float32, which
      gives a direction all the digits that it needs, while value and gradient keep theirs;
    - "newton-cholesky" factors the Hessian, in the K − 1 dimensions where it is not singular;
    - "lbfgs" is optax's L-BFGS.

    Cost per step: O(N·D·K) time for each product with the Hessian, O(N·D²·K²) for a factorised one,
    and O((D·K)²) memory for that alone; a copy of the features, of float64 a second in float32.

    Args:
        features: real array [N, D]; its rows may be split over devices.
        labels: integers [N], or probabilities [N, K].
        l2: penalty ≥ 0. Separable classes have no minimiser at 0: what is returned then has a
            gradient of relative size `tol`.
        num_classes: K; by default one more than the largest label. Needed under `jit`.
        weights: factors ≥ 0 of the examples, [N]; their mean is weighted.
        solver: one of the three above.
        tol: bound on the norm of the gradient in the scaled coordinates, relative to that at 0; by
            default 1e-8, in float32 3e-6.
        max_iterations: by default 100 Newton steps, or 2000 of L-BFGS.
        standard_errors: also give those of the coefficients, from the inverse of Σw times the
            Hessian; needs its O((D·K)²) memory.

    Returns:
        The fit, `converged` False where `tol` was not reached. Without a penalty a coefficient that
        the data leave open is finite, and 0 for a constant feature.

    Raises:
        TypeError: `features` or `weights` is boolean or complex.
        ValueError: a shape does not fit, a label is not in [0, K), an option is out of range, or
            `num_classes` is needed and absent.
    """
    x, labels, weights, K = _checked(features, labels, weights, num_classes)
    _check_options(solver, l2, tol, max_iterations)
    tol = _default_tol(x.dtype) if tol is None else tol
    steps = _STEPS[solver] if max_iterations is None else max_iterations
    fit: Any = partial(_fit, K=K, solver=solver, steps=steps, standard_errors=standard_errors)
    mesh = jax.typeof(x).sharding.mesh
    if mesh.explicit_axes:  # sums over rows that are split: the compiler knows where they go
        fit = jax.sharding.auto_axes(fit, out_sharding=jax.NamedSharding(mesh, jax.P()))
    return fit(x, labels, weights, jnp.asarray(l2, x.dtype), jnp.asarray(tol, x.dtype))


class _Scaling(NamedTuple):
    """Of features, to x̃ = (x − mean)·factor, and a bias column of `bias_factor`."""

    mean: jax.Array  # [D]
    factor: jax.Array  # [D]
    bias_factor: jax.Array

    def coefficients(self, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias of θ, in the gauge where both have sum 0 over the classes."""
        theta = theta - jnp.mean(theta, axis=0, keepdims=True)
        kernel = theta[:, :-1].T * self.factor[:, None]
        return kernel, theta[:, -1] * self.bias_factor - self.mean @ kernel


@partial(jax.jit, static_argnames=("K", "solver", "steps", "standard_errors"))
def _fit(x, labels, weights, l2, tol, *, K, solver, steps, standard_errors):
    total = jnp.sum(weights)
    weights = weights / jnp.maximum(total, jnp.finfo(x.dtype).tiny)
    problem, scaling = _scaled(x, labels, weights, l2, K)
    theta, iterations, converged = _minimise(problem, _SOLVERS[solver](problem), K, tol, steps)
    kernel, bias = scaling.coefficients(theta)

    def objective(kernel, bias):
        logits = jnp.dot(x, kernel, precision="highest") + bias[None]
        return jnp.sum(weights * cross_entropy(logits, labels)) + l2 / 2 * jnp.sum(kernel**2)

    loss, gradient = jax.value_and_grad(objective, (0, 1))(kernel, bias)
    norm = optax.tree.norm(gradient)
    errors = _standard_errors(problem, scaling, theta, total) if standard_errors else None
    return SoftmaxRegression(kernel, bias, loss, norm, iterations, converged, errors)


def _scaled(x, labels, weights, l2, K) -> tuple[Problem, _Scaling]:
    """The problem in coordinates in which its Hessian at 0 has a diagonal of 1."""
    mean = weights @ x
    x = x - mean[None]
    largest = jnp.max(jnp.abs(x), axis=0)
    deviation = largest * jnp.sqrt(weights @ (x / jnp.where(largest > 0, largest, 1)[None]) ** 2)
    varies = deviation > 8 * jnp.finfo(x.dtype).eps * (jnp.abs(mean) + largest)
    curvature = jnp.asarray((K - 1) / K**2 if K > 1 else 1, x.dtype)  # σ(1 − σ) averaged, at 0
    size = jnp.hypot(jnp.sqrt(curvature) * deviation, jnp.sqrt(l2))
    factor = jnp.where(varies, 1 / jnp.where(varies, size, 1), 0)
    bias_factor = 1 / jnp.sqrt(curvature)
    ones = jnp.full_like(x[:, :1], bias_factor)
    penalty = jnp.append(jnp.where(varies, l2 * factor**2, 1), 0)
    x = jnp.concatenate([x * factor[None], ones], axis=1)
    return Problem(x, labels, weights, penalty), _Scaling(mean, factor, bias_factor)


def _minimise(problem: Problem, solver: Any, K: int, tol, steps: int):
    """θ where the gradient is small, the number of steps, and whether it is."""
    theta = jnp.zeros((K, problem.x.shape[1]), problem.x.dtype)
    value_and_grad = optax.value_and_grad_from_state(problem.objective)
    rounding = jnp.finfo(theta.dtype).eps * theta.shape[1] ** 0.5
    first = jnp.linalg.norm(jax.grad(problem.objective)(theta))
    goal = jnp.maximum(tol * first, rounding)

    def step(carry):
        theta, state, i, _ = carry
        value, gradient = value_and_grad(theta, state=state)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer types
            updates, state = solver.update(
                gradient, state, theta, value=value, grad=gradient, value_fn=problem.objective
            )
        norm = jnp.linalg.norm(optax.tree.get(state, "grad"))
        return theta + updates, state, i + 1, norm

    def is_open(carry):
        return (carry[2] < steps) & (carry[3] > goal)

    start = theta, solver.init(theta), jnp.int32(0), first
    theta, _, iterations, norm = jax.lax.while_loop(is_open, step, start)
    return theta, iterations, norm <= goal


def _standard_errors(problem: Problem, scaling: _Scaling, theta: jax.Array, total: jax.Array):
    """Square roots of the diagonal of the inverse Hessian over Σw, for kernel and bias."""
    basis, D = class_differences(theta), theta.shape[1]
    n = basis.shape[0]
    hessian = dense_hessian(problem, theta)
    covariance = cho_solve(cho_factor(hessian), jnp.eye(n * D, dtype=theta.dtype))
    covariance = covariance.reshape(n, D, n, D) / total
    to_kernel = scaling.factor
    to_bias = jnp.append(-scaling.mean * scaling.factor, scaling.bias_factor)
    of_bias = jnp.einsum("d,adbe,e->ab", to_bias, covariance, to_bias)
    of_kernel = jnp.einsum("adbd->dab", covariance)[:-1] * (to_kernel**2)[:, None, None]
    by_class = lambda c: jnp.sqrt(jnp.einsum("ak,...ab,bk->...k", basis, c, basis))  # noqa: E731
    return by_class(of_kernel), by_class(of_bias)


_SOLVERS = {"newton-cg": newton_cg, "newton-cholesky": newton_cholesky, "lbfgs": lbfgs}
_STEPS = {"newton-cg": 100, "newton-cholesky": 100, "lbfgs": 2000}


def _default_tol(dtype) -> float:
    return 1e-8 if dtype == jnp.float64 else 3e-6


def _checked(features, labels, weights, num_classes):
    x = wide(as_real("features", features))
    if x.ndim != 2:
        raise ValueError(f"`features` must have shape (examples, features), got {x.shape}")
    labels = jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2:
        num_classes = labels.shape[1] if num_classes is None else num_classes
        expected = x.shape[0], num_classes
    else:
        expected = x.shape[:1]
    if labels.shape != expected or not x.shape[0]:
        raise ValueError(f"`labels` must have shape {expected}, not empty, got {labels.shape}")
    if labels.ndim == 1:
        num_classes = _number_of_classes(labels, num_classes)
    weights = jnp.ones(x.shape[:1], x.dtype) if weights is None else as_real("weights", weights)
    if weights.shape != x.shape[:1]:
        raise ValueError(f"`weights` must have shape {x.shape[:1]}, got {weights.shape}")
    return x, labels, weights.astype(x.dtype), num_classes


def _number_of_classes(labels, num_classes) -> int:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integers, or probabilities, got {labels.dtype.name}")
    if isinstance(labels, Tracer):
        if num_classes is None:
            raise ValueError("`num_classes` must be given under jit")
        return num_classes
    lowest, highest = int(jnp.min(labels)), int(jnp.max(labels))
    num_classes = highest + 1 if num_classes is None else num_classes
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"`labels` must lie in [0, {num_classes}), got values from {lowest} to {highest}"
        )
    return num_classes


def _check_options(solver, l2, tol, max_iterations) -> None:
    if solver not in _SOLVERS:
        raise ValueError(f"`solver` must be one of {', '.join(_SOLVERS)}, got {solver!r}")
    for name, value in (("l2", l2), ("tol", tol), ("max_iterations", max_iterations)):
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise ValueError(f"`{name}` must be ≥ 0 and finite, got {value}")

"""`fit_softmax_regression`: a fit, its derivatives, and a path of fits."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_count, as_real
from jaxsoftjac._rules import compiled
from jaxsoftjac.regression._arguments import (
    Solver,
    check_options,
    checked_data,
    checked_path,
    default_tol,
)
from jaxsoftjac.regression._fitted import Coefficients, FittedRegression, checked_start
from jaxsoftjac.regression._loop import minimise
from jaxsoftjac.regression._scaling import scaled
from jaxsoftjac.regression._separation import way_to_go
from jaxsoftjac.regression._standard_errors import standard_errors as errors_of
from jaxsoftjac.regression._steps import (
    Problem,
    lbfgs,
    newton_cg,
    newton_cholesky,
    tangent_solve,
)

_SOLVERS = {"newton-cg": newton_cg, "newton-cholesky": newton_cholesky, "lbfgs": lbfgs}
_STEPS = {"newton-cg": 100, "newton-cholesky": 100, "lbfgs": 2000}
_FAR = 0.2  # nats by which the logits still move at the answer where there is no minimiser


def fit_softmax_regression(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    l2: ArrayLike,
    num_classes: int | None = None,
    weights: ArrayLike | None = None,
    solver: Solver = "newton-cg",
    tol: float | None = None,
    max_iterations: int | None = None,
    standard_errors: bool = False,
    start: FittedRegression | None = None,
) -> FittedRegression:
    """Minimiser of mean cross-entropy + l2/2·‖kernel‖², the bias unpenalised.

    Features are centred and scaled inside, to a Hessian at 0 with unit diagonal, so that their
    units do not matter. Steps are halved until the loss falls; a step of

    - "newton-cg" solves with the Hessian by preconditioned conjugate gradients in float32, which
      gives a direction all the digits that it needs, while value and gradient keep theirs;
    - "newton-cholesky" factors the Hessian, in the K − 1 dimensions where it is not singular;
    - "lbfgs" is optax's L-BFGS.

    The coefficients are differentiable in `l2`, `weights` and `features`, by the implicit function
    theorem: for instance, a loss on other data by the penalty. Under `vmap`, one program
    fits all folds, each given by `weights` of 0 and 1.

    Cost per step: O(N·D·K) time for each product with the Hessian, O(N·D²·K²) for a factorised one,
    and O((D·K)²) memory for that alone; a copy of the features, and of float64 features a second
    in float32. The first fit of a number of examples, features and classes compiles for seconds.

    Args:
        features: real array [N, D]; its rows may be split over devices.
        labels: integers [N], or probabilities [N, K].
        l2: penalty ≥ 0. Separable classes have no minimiser at 0: `separated` is True of what is
            returned then, and `converged` False, unless `max_iterations` came first; in float32
            classes that hardly overlap may count as separable. With a penalty, the bias of a class
            without examples still has none: it is as far below the others as `tol` asks for.
        num_classes: K; by default one more than the largest label. Needed under `jit`.
        weights: factors ≥ 0 of the examples, [N]; their mean is weighted.
        solver: one of the three above.
        tol: bound on the norm of the gradient in the scaled coordinates, relative to that at 0; by
            default 1e-8, in float32 3e-6.
        max_iterations: by default 100 Newton steps, or 2000 of L-BFGS.
        standard_errors: also give those of the coefficients, from the inverse of Σw times the
            Hessian, ∞ where the data leave a coefficient open or are separable; needs its
            O((D·K)²) memory.
        start: a fit of the same number of features and classes, from which to start.

    Returns:
        The fit, `converged` False where `tol` was not reached. Without a penalty a coefficient that
        the data leave open is finite, and 0 for a constant feature.

    Raises:
        TypeError: `features` or `weights` is boolean or complex, labels are not numbers, or `start`
            is no fit.
        ValueError: a shape does not fit, a label is not in [0, K), features are not finite, weights
            are negative, not finite or all 0, an option is out of range, or `num_classes` is
            needed and absent. Values are checked where they are known, outside `jit`.

    Examples:
        >>> fit = fit_softmax_regression(jnp.arange(4.0)[:, None], [0, 1, 0, 1], l2=0.1)
        >>> print(jnp.argmax(fit.predict_log_proba([[1.0]])))
        0
    """
    x, labels, weights, K = checked_data(features, labels, weights, num_classes)
    check_options(solver, l2=l2, tol=tol, max_iterations=max_iterations)
    l2 = as_real("l2", l2)
    begin = checked_start(start, x.shape[1], K, x.dtype)
    tol = default_tol(x.dtype) if tol is None else tol
    steps = _STEPS[solver] if max_iterations is None else max_iterations
    numbers = jnp.asarray(l2, x.dtype), jnp.asarray(tol, x.dtype), jnp.asarray(steps, jnp.int32)
    fit: Any = partial(_fit, K=K, solver=solver, standard_errors=standard_errors)
    mesh = jax.typeof(x).sharding.mesh
    if mesh.explicit_axes:  # sums over rows that are split: the compiler knows where they go
        fit = jax.sharding.auto_axes(fit, out_sharding=jax.NamedSharding(mesh, jax.P()))
    return fit(x, labels, weights, *numbers, begin)


def softmax_regression_path(
    features: ArrayLike, labels: ArrayLike, *, l2: ArrayLike, **options: Any
) -> FittedRegression:
    """The fits for several penalties, each started from the one before: best from large to small.

    Args:
        features: as for `fit_softmax_regression`.
        labels: as for `fit_softmax_regression`.
        l2: penalties ≥ 0, [L].
        **options: of `fit_softmax_regression`.

    Returns:
        The fits, arrays with a leading axis [L].

    Raises:
        TypeError: as `fit_softmax_regression`.
        ValueError: as `fit_softmax_regression`, or `l2` is not one axis of numbers ≥ 0.

    Examples:
        >>> path = softmax_regression_path(jnp.arange(4.0)[:, None], [0, 1, 0, 1], l2=[1, 0.1])
        >>> print(path.kernel.shape)
        (2, 1, 2)
    """
    x, labels, weights, K = checked_data(
        features, labels, options.pop("weights", None), options.pop("num_classes", None)
    )
    penalties = checked_path(l2).astype(x.dtype)
    start, tol = options.pop("start", None), options.pop("tol", None)
    solver, steps = options.get("solver", "newton-cg"), options.get("max_iterations")
    check_options(solver, l2=None, tol=tol, max_iterations=steps)
    if steps is not None:
        options["max_iterations"] = as_count("max_iterations", steps, 0)
    D = x.shape[1]
    begin = checked_start(start, D, K, x.dtype)
    if begin is None:
        begin = jnp.zeros((D, K), x.dtype), jnp.zeros(K, x.dtype)
    return _path(x, labels, weights, penalties, begin, tol, num_classes=K, **options)


@compiled("num_classes", "solver", "max_iterations", "standard_errors")
def _path(
    x: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    penalties: jax.Array,
    start: Coefficients,
    tol: Any,
    **options: Any,
) -> FittedRegression:
    def one(before: FittedRegression, penalty: jax.Array) -> tuple[Any, FittedRegression]:
        result = fit_softmax_regression(
            x, labels, l2=penalty, weights=weights, tol=tol, start=before, **options
        )
        return before._replace(kernel=result.kernel, bias=result.bias), result

    nothing, (kernel, bias) = jnp.zeros([], x.dtype), start
    begin = FittedRegression(
        kernel, bias, nothing, nothing, nothing, nothing, standard_errors=None, separated=nothing
    )
    return lax.scan(one, begin, penalties)[1]


@partial(jax.jit, static_argnames=("K", "solver", "standard_errors"))
def _fit(
    x: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    l2: jax.Array,
    tol: jax.Array,
    steps: jax.Array,
    start: Coefficients | None,
    *,
    K: int,
    solver: Solver,
    standard_errors: bool,
) -> FittedRegression:
    total = jnp.sum(weights)
    shares = weights / jnp.maximum(total, jnp.finfo(x.dtype).tiny)
    problem, scaling = scaled(x, labels, shares, l2, K)
    first = None if start is None else lax.stop_gradient(scaling.theta(*start))
    theta, (iterations, ended, moves, gradient) = _solution(problem, first, tol, solver, steps)
    kernel, bias = scaling.coefficients(theta)
    by_coefficients = jax.linear_transpose(scaling.theta, kernel, bias)(gradient)
    separated = (moves > _FAR) & (l2 == 0)
    errors = None
    if standard_errors:
        finite = errors_of(problem, scaling, theta, total, l2)
        of_kernel, of_bias = (jnp.where(separated, jnp.inf, a) for a in finite)
        errors = of_kernel, of_bias
    return FittedRegression(
        kernel,
        bias,
        problem.objective(theta),
        optax.tree.norm(by_coefficients),
        iterations.astype(jnp.int32),
        (ended > 0) & ~separated,
        errors,
        separated,
        l2,
        total,
    )


def _solution(
    problem: Problem, start: jax.Array | None, tol: jax.Array, solver: Solver, steps: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """θ where the gradient is 0, a differentiable function of the problem, and how it went."""
    shape, held = (problem.classes, problem.x.shape[1]), lax.stop_gradient(problem[:4])
    constant = Problem(*held, problem.classes)

    def solve(_: Any, theta: jax.Array) -> tuple[jax.Array, Any]:
        direction, memory = _SOLVERS[solver](constant)
        first = None if start is None else theta
        end = minimise(constant.objective, direction, memory, shape, first, tol, steps)
        if solver == "lbfgs":  # its directions are too rough to tell
            newton, unset = newton_cg(constant)
            end = end._replace(next_step=-newton(end.gradient, end.theta, unset)[0])
        told = end.iterations, end.converged, way_to_go(constant, end), end.gradient
        return end.theta, tuple(a.astype(theta.dtype) for a in told)  # which have a derivative, 0

    guess = jnp.zeros(shape, problem.x.dtype) if start is None else start
    return lax.custom_root(
        jax.grad(problem.objective), guess, solve, partial(tangent_solve, constant), has_aux=True
    )

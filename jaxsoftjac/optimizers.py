"""Second-order optimizers for models that end in a softmax, as optax transformations.

They take the batch as extra arguments: `update(gradients, state, params, inputs=…, labels=…)`.

>>> import jax, jax.numpy as jnp
>>> model = lambda kernel, inputs: inputs @ kernel
>>> batch = {"inputs": jnp.array([[1.0], [-1.0]]), "labels": jnp.array([0, 1])}
>>> kernel, gradient = jnp.zeros((1, 2)), jnp.array([[-0.5, 0.5]])
>>> optimizer = gauss_newton_cg(model, damping=0.5, precondition=False)
>>> print(optimizer.update(gradient, optimizer.init(kernel), kernel, **batch)[0])
[[ 0.5 -0.5]]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.sparse.linalg import cg

from jaxsoftjac.curvature._linearization import Linearization, Model, add_scaled, linearize
from jaxsoftjac.curvature._objective import Loss, objective_of
from jaxsoftjac.curvature._sampled import sampled_diagonal, sampled_hessian

Schedule = float | jax.Array | Callable[[Any], Any]


class CurvatureState(NamedTuple):
    """State of `gauss_newton_cg` and `natural_gradient`."""

    count: jax.Array
    damping: jax.Array
    ratio: jax.Array  # of the last step's reduction of the loss to that of its quadratic model
    direction: Any  # the last solution, where the next one starts


class DiagonalState(NamedTuple):
    """State of `diagonal_gauss_newton`."""

    count: jax.Array
    mean: Any  # of the gradients
    diagonal: Any  # mean of the sampled diagonals


def gauss_newton_cg(
    model: Model,
    learning_rate: Schedule = 1.0,
    *,
    loss: Loss = "cross_entropy",
    samples: int | None = None,
    damping: float = 1.0,
    min_damping: float = 1e-6,
    adapt_damping: bool = True,
    cg_iterations: int = 20,
    cg_tolerance: float = 0.1,
    warm_start: float = 0.95,
    precondition: bool = True,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Damped Gauss–Newton steps, −(G + λI)⁻¹g, by conjugate gradients ("Hessian-free").

    λ follows Levenberg and Marquardt: a step of the batch's loss that is nearly what its quadratic
    model predicts lowers λ, a bad one raises it, and one that raises the loss is not taken. The
    model is linearised once per step.

    Cost: two forward passes and, per iteration of conjugate gradients, about one backward pass; the
    memory of a gradient. A line search can follow: chain `optax.scale_by_backtracking_linesearch`.

    Args:
        model: function (params, inputs) → logits [..., K].
        learning_rate: factor of the step, or a schedule.
        loss: as for `gauss_newton_product`; convex in the logits.
        samples: None, or vectors per example in a Monte Carlo Fisher matrix in place of G.
        damping: λ at first.
        min_damping: least λ; small batches want more.
        adapt_damping: False keeps λ, takes every step, and saves a forward pass.
        cg_iterations: at most so many products per step.
        cg_tolerance: relative residual at which the solver stops.
        warm_start: factor of the last direction, where the solver starts; 0 starts at 0.
        precondition: divide by (d + λ)^(3/4), d a sampled diagonal of G; one backward pass.
        seed: of the samples.

    Returns:
        Transformation whose update needs `params`, and `inputs` and `labels` by keyword. Where
        optax masks it, pass the whole parameters as `all_params` too: the others stay constant.

    Raises:
        ValueError: `loss` is unknown, or another option is out of range. By the update: an
            argument is missing, or as `gauss_newton_product`.
    """
    _at_least(0, damping=damping, cg_tolerance=cg_tolerance, warm_start=warm_start)
    _at_least(1, cg_iterations=cg_iterations, samples=1 if samples is None else samples)
    top = objective_of(loss, None, {})

    def init(params):
        zero = jnp.zeros([], jnp.result_type(*jax.tree.leaves(params)))
        start = optax.tree.zeros_like(params)
        return CurvatureState(jnp.zeros([], jnp.int32), zero + damping, zero + 1, start)

    def update(updates, state, params=None, *, inputs=None, labels=None, all_params=None, **_):
        _given(params=params, inputs=inputs, labels=labels)
        outputs = _outputs(model, inputs, all_params)
        line = linearize(outputs, params)
        matrix_key, diagonal_key = jax.random.split(_key(seed, state.count))
        objective, hessian = top.loss_and_hessian(line.outputs, labels)
        if samples is not None:
            hessian = sampled_hessian(line.outputs, matrix_key, samples)

        def matrix(v):
            return line.pull(hessian(line.push(v)))

        direction, _ = cg(
            lambda v: add_scaled(matrix(v), state.damping, v),
            updates,
            x0=optax.tree.scale(warm_start, state.direction),
            tol=cg_tolerance,
            maxiter=cg_iterations,
            M=_preconditioner(line, diagonal_key, state.damping) if precondition else None,
        )
        state = state._replace(count=state.count + 1, direction=direction)
        if not adapt_damping:
            return direction, state
        curvature = optax.tree.vdot(direction, matrix(direction))
        predicted = optax.tree.vdot(updates, direction) - curvature / 2
        at_step = outputs(add_scaled(params, -1.0, direction))
        ratio = (objective(line.outputs) - objective(at_step)) / predicted
        return _adapted(state, ratio.astype(state.ratio.dtype), min_damping)

    transformation = optax.GradientTransformationExtraArgs(init, update)
    return optax.chain(transformation, optax.scale_by_learning_rate(learning_rate))


def natural_gradient(
    model: Model, learning_rate: Schedule = 1.0, *, samples: int = 1, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Damped natural-gradient steps, −(F̂ + λI)⁻¹g, with the Monte Carlo Fisher matrix F̂.

    F̂ is that of `sampled_fisher_product`, sampled anew at every step. `gauss_newton_cg` has the
    exact Fisher matrix of a softmax at the same cost.

    Args:
        model: function (params, inputs) → logits [..., K].
        learning_rate: as for `gauss_newton_cg`.
        samples: vectors per example in F̂.
        **options: of `gauss_newton_cg`.

    Returns:
        As `gauss_newton_cg`.

    Raises:
        ValueError: as `gauss_newton_cg`.
    """
    return gauss_newton_cg(model, learning_rate, samples=samples, **options)


def diagonal_gauss_newton(
    model: Model,
    learning_rate: Schedule,
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    scale: float = 1.0,
    threshold: float = 1.0,
    every: int = 10,
    samples: int = 1,
    eps: float = 1e-12,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Steps −clip(m / (scale·d)): m a mean of gradients, d of sampled Gauss–Newton diagonals.

    As Sophia (Liu et al. 2023, arXiv 2305.14342), whose diagonal comes from sampled labels; here
    from random signs through the factor of the softmax Jacobian, see `gauss_newton_diagonal`.

    Cost: a gradient more every `every` steps; two arrays of the parameters' size.

    Args:
        model: function (params, inputs) → logits [..., K].
        learning_rate: size of a clipped step in every coordinate, or a schedule.
        b1: decay of m.
        b2: decay of d, per sampled diagonal.
        scale: factor of d; the smaller, the more coordinates are clipped.
        threshold: bound on a coordinate before the learning rate.
        every: steps between diagonals.
        samples: samples of each.
        eps: least scale·d.
        seed: of the samples.

    Returns:
        Transformation whose update needs `params`, and `inputs` by keyword; masked, `all_params`.

    Raises:
        ValueError: an option is out of range. By the update: an argument is missing.
    """
    _at_least(1, every=every, samples=samples)

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return DiagonalState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(updates, state, params=None, *, inputs=None, all_params=None, **_):
        _given(params=params, inputs=inputs)

        def renewed():
            line = linearize(_outputs(model, inputs, all_params), params)
            sampled = sampled_diagonal(line, _key(seed, state.count), samples)
            return optax.tree.update_moment(sampled, state.diagonal, b2, 1)

        d = lax.cond(state.count % every == 0, renewed, lambda: state.diagonal)
        count = state.count + 1
        mean = optax.tree.update_moment(updates, state.mean, b1, 1)
        m = optax.tree.bias_correction(mean, b1, count.astype(float))
        d_hat = optax.tree.bias_correction(d, b2, (state.count // every + 1).astype(float))
        steps = jax.tree.map(
            lambda m, d: jnp.clip(m / jnp.maximum(scale * d, eps), -threshold, threshold), m, d_hat
        )
        return steps, DiagonalState(count, mean, d)

    transformation = optax.GradientTransformationExtraArgs(init, update)
    return optax.chain(transformation, optax.scale_by_learning_rate(learning_rate))


def _adapted(state: CurvatureState, ratio: jax.Array, min_damping: float):
    """The step, 0 where it would raise the loss, and λ by what its quadratic model was worth."""
    raised = jnp.where(ratio > 0, 1.5, 4.0)
    factor = jnp.where(ratio > 0.75, 2 / 3, jnp.where(ratio > 0.25, 1.0, raised))
    damping = jnp.maximum(state.damping * factor.astype(ratio.dtype), min_damping)
    step = jax.tree.map(lambda d: jnp.where(ratio > 0, d, jnp.zeros_like(d)), state.direction)
    return step, state._replace(damping=damping, ratio=ratio, direction=step)


def _preconditioner(line: Linearization, key: jax.Array, damping: jax.Array):
    diagonal = sampled_diagonal(line, key, 1)
    weights = jax.tree.map(lambda d: (d + damping.astype(d.dtype)) ** -0.75, diagonal)
    return lambda v: jax.tree.map(jnp.multiply, weights, v)


def _outputs(model, inputs, all_params):
    """The logits as a function of the parameters, those that optax masked taken as constants."""

    def outputs(params):
        if all_params is not None:
            params = jax.tree.map(
                lambda p, whole: whole if isinstance(p, optax.MaskedNode) else p,
                params,
                all_params,
                is_leaf=lambda p: isinstance(p, optax.MaskedNode),
            )
        return model(params, inputs)

    return outputs


def _key(seed: int, count: jax.Array) -> jax.Array:
    """A key for each step, so that none has to be kept in the state."""
    return jax.random.fold_in(jax.random.key(seed), count)


def _given(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is None:
            raise ValueError(f"`{name}` must be given to the update")


def _at_least(least: float, **options: float) -> None:
    for name, value in options.items():
        if not value >= least:
            raise ValueError(f"`{name}` must be ≥ {least}, got {value}")

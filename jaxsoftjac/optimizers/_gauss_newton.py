"""Damped Gauss–Newton steps by conjugate gradients, in a trust region."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxsoftjac._checks import AxisName, as_count, wide
from jaxsoftjac.curvature._linearization import Linearization, Model, check_model, linearize
from jaxsoftjac.curvature._objective import Head, Loss, objective_of
from jaxsoftjac.curvature._protocol import Objective
from jaxsoftjac.curvature._sampled import sampled_diagonal
from jaxsoftjac.optimizers._arguments import (
    Schedule,
    at_step,
    called,
    check_given,
    check_least,
    floating,
    key_of_step,
    loss_options,
    whole,
)
from jaxsoftjac.optimizers._conjugate_gradients import Arrays, conjugate_gradients
from jaxsoftjac.optimizers._trust_region import (
    CurvatureState,
    Options,
    Step,
    adapted,
    base_of,
    bounded,
    init,
)


def gauss_newton_cg(
    model: Model,
    learning_rate: Schedule = 1.0,
    *,
    loss: Loss = "cross_entropy",
    head: Head | None = None,
    ignore_index: int | None = None,
    batch_axis_name: AxisName | None = None,
    options: Mapping[str, Any] | None = None,
    samples: int | None = None,
    damping: Schedule = 1.0,
    min_damping: ArrayLike = 1e-6,
    max_damping: ArrayLike = 1e4,
    adapt_damping: bool = True,
    cg_iterations: ArrayLike = 20,
    cg_tolerance: ArrayLike = 0.1,
    warm_start: ArrayLike = 0.95,
    precondition: bool = True,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Damped Gauss–Newton steps, −(G + λI)⁻¹g, by conjugate gradients ("Hessian-free").

    λ follows Levenberg and Marquardt: a step that lowers the batch's loss by nearly what its
    quadratic model predicts lowers λ, a bad one raises it, and one that raises the loss is not
    taken. Where the change is below the loss's rounding, as at an optimum, λ stays. The model is
    linearised once per step.

    Cost: two forward passes and, per iteration of conjugate gradients, about one backward pass; the
    memory of a gradient and of five arrays of the parameters' size, in float32 for parameters of
    lower precision. With `head`, the [N, V] logits are never held. Call the update under `jit`:
    outside of it, its loop is compiled at every call.

    Args:
        model: function (params, inputs) → logits [..., K], or hidden states beneath a `head`.
        learning_rate: factor of the step, or a schedule; the loss is compared at the step taken.
        loss: as for `gauss_newton_product`; convex in the logits.
        head: as for `gauss_newton_product`.
        ignore_index: label whose examples do not count.
        batch_axis_name: as for `gauss_newton_product`; the gradient is that of the mean over the
            examples of all devices.
        options: other options of the loss, but `axis_name`: to split parameters over devices, call
            the update under `jit` with arrays that are split.
        samples: None, or vectors per example in a Monte Carlo Fisher matrix in place of G: that of
            the (weighted) target, without `z_loss`.
        damping: λ at first, or a schedule; what adapts is a factor of it.
        min_damping: least λ; small batches want more.
        max_damping: greatest λ.
        adapt_damping: False keeps λ, takes every step, and saves a forward pass.
        cg_iterations: at most so many products per step, and one at its start.
        cg_tolerance: relative residual at which the solver stops.
        warm_start: factor of the last direction, where the solver starts; 0 starts at 0.
        precondition: divide by (d + λ)^(3/4), d a sampled diagonal of G; one backward pass.
        seed: of the samples.

    Returns:
        Transformation whose update needs `params`, and `inputs` and `labels` by keyword. It takes
        `value` and `value_fn` as optax's line searches do: the loss that must go down is then that
        function's, which may have a penalty. Where optax masks it, pass the whole parameters as
        `all_params` too: the others stay constant. A loss or gradient that is NaN gives NaN, as in
        other optimizers, and leaves no trace in the state.

    Raises:
        TypeError: by `init`: a leaf of the parameters is no array.
        ValueError: `loss` is unknown, or another option is out of range. By the update: an
            argument is missing, or as `gauss_newton_product`.

    Examples:
        A line search of optax can follow; its `value_fn` has to take the batch by name:

        >>> model = lambda kernel, inputs: inputs @ kernel
        >>> search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
        >>> optimizer = optax.chain(gauss_newton_cg(model), search)
        >>> def loss(kernel, inputs, labels):
        ...     logits = model(kernel, inputs)
        ...     return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        >>> batch = {"inputs": jnp.array([[1.0], [-1.0]]), "labels": jnp.array([0, 1])}
        >>> kernel = jnp.zeros((1, 2))
        >>> value, gradient = jax.value_and_grad(loss)(kernel, **batch)
        >>> updates, state = optimizer.update(
        ...     gradient, optimizer.init(kernel), kernel, value=value, grad=gradient,
        ...     value_fn=loss, **batch)
        >>> print(loss(kernel + updates, **batch) < value)
        True
    """
    check_least(0, learning_rate=learning_rate, cg_tolerance=cg_tolerance, warm_start=warm_start)
    check_least(0, damping=damping, min_damping=min_damping, max_damping=max_damping)
    check_least(1, cg_iterations=cg_iterations)
    if adapt_damping and all(isinstance(a, int | float) and a == 0 for a in (damping, min_damping)):
        raise ValueError("`damping` or `min_damping` must be > 0 where `adapt_damping` is, got 0")
    bounds = [a for a in (min_damping, max_damping) if isinstance(a, int | float)]
    if bounds != sorted(bounds):
        raise ValueError(f"`max_damping` must be ≥ `min_damping`, {min_damping}, got {max_damping}")
    check_model(model, batch_axis_name=batch_axis_name)
    if samples is not None:
        samples = as_count("samples", samples, 1)
        if callable(loss):
            raise ValueError(f"`samples` must be None where `loss` is a function, got {samples}")
    top = objective_of(loss, head, loss_options(ignore_index, options), batch_axis_name)
    chosen = Options(
        learning_rate,
        samples,
        damping,
        min_damping,
        max_damping,
        adapt_damping,
        cg_iterations,
        cg_tolerance,
        warm_start,
        precondition,
        seed,
        batch_axis_name,
    )
    update: Any = partial(_update, model, top, chosen)
    return optax.chain(optax.GradientTransformationExtraArgs(partial(init, chosen), update))


def _update(
    model: Model,
    top: Objective,
    chosen: Options,
    updates: Any,
    state: CurvatureState,
    params: Any = None,
    *,
    inputs: Any = None,
    labels: Any = None,
    all_params: Any = None,
    value: Any = None,
    value_fn: Callable[..., Any] | None = None,
    **others: Any,
) -> tuple[Any, CurvatureState]:
    check_given(params=params, inputs=inputs, labels=labels)
    tree, dtype = floating(params)
    gradient = [wide(g) for g in tree.tangents(updates, "updates")]

    def outputs_of(params: Any) -> Any:
        return top.outputs(model, whole(params, all_params), inputs)

    line = linearize(outputs_of, params, chosen.batch_axis_name)
    solution = _solved(top, chosen, line, labels, gradient, state)

    def loss_of(params: Any) -> jax.Array:
        if value_fn is not None:
            arguments = others | {"inputs": inputs, "labels": labels}
            return called(value_fn, whole(params, all_params), arguments)
        return top.total(top.loss(outputs_of(params), labels))

    if value_fn is None:
        before = top.total(top.loss(line.outputs, labels))
    else:
        before = loss_of(params) if value is None else value
    step, state = solution.step, state._replace(count=state.count + 1)
    before, is_number = jnp.asarray(before, dtype), solution.is_number
    direction = solution.direction
    if chosen.adapt_damping:
        is_number = is_number & jnp.isfinite(before)
        at = [a + s for a, s in zip(map(jnp.asarray, tree.arrays), step, strict=True)]
        after = jnp.asarray(loss_of(tree.with_arrays(at)), dtype)
        is_taken, state = adapted(chosen, solution, state, before, after, is_number)
        step, direction = (_selected(is_taken, a) for a in (step, direction))
    direction = tree.updates(_selected(is_number, direction))
    step = [jnp.where(is_number, s, jnp.nan) for s in step]
    return tree.updates(step), state._replace(direction=direction)


def _solved(
    top: Objective,
    chosen: Options,
    line: Linearization,
    labels: Any,
    gradient: Arrays,
    state: CurvatureState,
) -> Step:
    """The solution of (G + λI)d = g, in units in which the largest entry of g is 1."""
    tree, dtype = line.params, state.scale.dtype
    types = [jnp.result_type(a) for a in tree.arrays]
    matrix_key, diagonal_key = jax.random.split(key_of_step(chosen.seed, state.count))
    damping = base_of(chosen, state.count, dtype)
    if chosen.adapt_damping:
        damping = bounded(chosen, damping * state.scale)
    if chosen.samples is None:
        hessian = top.hessian(line.outputs, labels)
    else:
        hessian = top.sampled_fisher(line.outputs, labels, matrix_key, chosen.samples)

    def matrix(v: Arrays) -> Arrays:
        low = [a.astype(t) for a, t in zip(v, types, strict=True)]
        return [wide(a) for a in line.pull(hessian(line.push(low)))]

    weights = None
    if chosen.precondition:
        diagonal = sampled_diagonal(top, line, labels, diagonal_key, 1)
        weights = [(wide(d) + damping.astype(wide(d).dtype)) ** -0.75 for d in diagonal]

    def preconditioned(r: Arrays) -> Arrays:
        return r if weights is None else [w * a for w, a in zip(weights, r, strict=True)]

    size = jnp.max(jnp.stack([jnp.zeros([], dtype), *(_largest(g, dtype) for g in gradient)]))
    unit = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    b = _scaled(1 / unit, gradient)
    solution = conjugate_gradients(
        matrix,
        b,
        _scaled(jnp.asarray(chosen.warm_start, dtype) / unit, tree.of(state.direction)),
        damping=damping,
        precondition=preconditioned,
        tolerance=chosen.cg_tolerance,
        iterations=chosen.cg_iterations,
    )
    rate = jnp.asarray(at_step(chosen.learning_rate, state.count), dtype)
    slope, curvature = solution.slope, solution.curvature
    predicted = (rate * slope - rate**2 / 2 * curvature) * unit * unit
    direction = _scaled(unit, solution.x)
    step = [-rate.astype(d.dtype) * d for d in direction]
    step = [s.astype(t) for s, t in zip(step, types, strict=True)]
    is_number = jnp.isfinite(size) & jnp.isfinite(slope)
    return Step(direction, step, predicted.astype(dtype), damping, is_number)


def _selected(condition: jax.Array, arrays: Arrays) -> Arrays:
    """The arrays, or 0."""
    return [jnp.where(condition, a, jnp.zeros_like(a)) for a in arrays]


def _scaled(scale: jax.Array, arrays: Arrays) -> Arrays:
    return [scale.astype(a.dtype) * a for a in arrays]


def _largest(a: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.max(jnp.abs(a), initial=0).astype(dtype)

"""The trust region: when a step is taken, and how the damping follows what it was worth."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftjac._checks import AxisName
from jaxsoftjac.optimizers._arguments import Schedule, at_step, floating, zeros_of
from jaxsoftjac.optimizers._conjugate_gradients import Arrays


class CurvatureState(NamedTuple):
    """State of `gauss_newton_cg` and `natural_gradient`.

    >>> from jaxsoftjac.optimizers import gauss_newton_cg
    >>> (state,) = gauss_newton_cg(lambda kernel, inputs: inputs @ kernel).init(jnp.zeros((1, 2)))
    >>> print(state.count, state.damping)
    0 1.0
    """

    # Steps made, taken or not, by the name that optax gives it.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    damping: jax.Array  # of the next step, unless a schedule changes it
    scale: jax.Array  # of the damping, to what the option says
    ratio: jax.Array  # of the last step's reduction of the loss to that of its quadratic model
    direction: Any  # the last solution, where the next one starts


class Options(NamedTuple):
    """The options of `gauss_newton_cg` that do not concern its loss."""

    learning_rate: Schedule
    samples: int | None
    damping: Schedule
    min_damping: ArrayLike
    max_damping: ArrayLike
    adapt_damping: bool
    cg_iterations: ArrayLike
    cg_tolerance: ArrayLike
    warm_start: ArrayLike
    precondition: bool
    seed: ArrayLike
    batch_axis_name: AxisName | None


class Step(NamedTuple):
    """A step −rate·d, the solution d, and what the quadratic model says of both."""

    direction: Arrays
    step: Arrays
    predicted: jax.Array  # reduction of the loss
    damping: jax.Array
    is_number: jax.Array  # whether the gradient is finite


def init(chosen: Options, params: Any) -> CurvatureState:
    """The state before the first step."""
    tree, dtype = floating(params)
    none = jnp.zeros([], jnp.int32)
    damping = bounded(chosen, base_of(chosen, none, dtype))
    factor, other = jnp.ones([], dtype), jnp.ones([], dtype)  # two: either may be donated
    return CurvatureState(none, damping, factor, other, zeros_of(tree))


def adapted(
    chosen: Options,
    solution: Step,
    state: CurvatureState,
    before: jax.Array,
    after: jax.Array,
    is_number: jax.Array,
) -> tuple[jax.Array, CurvatureState]:
    """Whether the step is taken, and λ according to how good its quadratic model was."""
    finite = jnp.isfinite(after) & is_number
    change = jnp.where(finite, before, 0) - jnp.where(finite, after, 0)
    predicted = jnp.where(is_number, solution.predicted, 0)
    noise = 8 * jnp.finfo(before.dtype).eps * jnp.abs(jnp.where(is_number, before, 0))
    is_blind = finite & (jnp.abs(predicted) <= noise) & (jnp.abs(change) <= noise)
    is_taken = finite & ((change > 0) | is_blind)
    known = predicted > 0
    ratio = jnp.where(known & finite, change, -1) / jnp.where(known & finite, predicted, 1)
    raised = jnp.where(is_taken, 1.5, 4.0)
    factor = jnp.where(ratio > 0.75, 1 / 3, jnp.where(ratio > 0.25, 1.0, raised))
    factor = jnp.where(is_blind | ~is_number, 1.0, factor).astype(before.dtype)
    damping = bounded(chosen, solution.damping * factor)
    base = base_of(chosen, state.count - 1, before.dtype)
    scale = jnp.where(base > 0, damping / jnp.where(base > 0, base, 1), 1)
    return is_taken, state._replace(
        damping=damping, scale=scale, ratio=jnp.where(is_blind | ~is_number, state.ratio, ratio)
    )


def base_of(chosen: Options, step: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """λ as the option has it, before it adapts."""
    damping = jnp.asarray(at_step(chosen.damping, step), dtype)
    least = jnp.asarray(chosen.min_damping, dtype)
    return jnp.maximum(damping, least) if chosen.adapt_damping else damping


def bounded(chosen: Options, damping: jax.Array) -> jax.Array:
    """λ between its bounds, if it adapts."""
    if not chosen.adapt_damping:
        return damping
    bounds = (jnp.asarray(a, damping.dtype) for a in (chosen.min_damping, chosen.max_damping))
    return jnp.clip(damping, *bounds)

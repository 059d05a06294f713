"""The loop around the steps: a line search by halves, and the one place that evaluates the loss.

A candidate θ + t·d is evaluated in each round. One that is good enough is taken, and the next
direction computed there; otherwise t is halved. So the loss and the direction are compiled once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_SHORTEST = 2.0**-30  # factor of a direction at which the search gives up
_SUFFICIENT = 1e-4  # share of the predicted fall that a step must reach
_AT_ZERO, _AT_START = -2, -1  # numbers of the rounds before the first step

Direction = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


class Minimum(NamedTuple):
    """Where the loop ended."""

    theta: jax.Array
    iterations: jax.Array
    converged: jax.Array
    is_cut_short: jax.Array  # by the number of steps
    gradient: jax.Array
    next_step: jax.Array  # the direction that would follow


class _State(NamedTuple):
    theta: jax.Array
    value: jax.Array
    gradient: jax.Array
    direction: jax.Array
    memory: Any
    t: jax.Array
    goal: jax.Array
    steps: jax.Array


def minimise(
    objective: Callable[[jax.Array], jax.Array],
    direction_of: Direction,
    memory: Any,
    shape: tuple[int, int],
    start: jax.Array | None,
    tol: jax.Array,
    steps: jax.Array,
) -> Minimum:
    """Minimises a convex function of θ [K, D + 1] from `start` on, or from 0.

    Args:
        objective: the function.
        direction_of: (gradient, θ, memory) → (descent direction d, memory).
        memory: at first.
        shape: of θ.
        start: θ at first, or None for 0.
        tol: bound on the gradient's norm, relative to that at 0.
        steps: at most so many steps.
    """
    value_and_grad = jax.value_and_grad(objective)
    rounding = jnp.finfo(tol.dtype).eps
    least = rounding * shape[1] ** 0.5

    def is_open(s: _State) -> jax.Array:
        is_moving = (s.steps < steps) & (s.t > _SHORTEST)
        return (s.steps < 0) | (is_moving & (jnp.linalg.norm(s.gradient) > s.goal))

    def is_good(s: _State, value: jax.Array, gradient: jax.Array) -> jax.Array:
        """Whether the loss falls enough or, where that is lost in rounding, the slope does."""
        slope = jnp.vdot(s.gradient, s.direction)
        falls = value <= s.value + _SUFFICIENT * s.t * slope
        is_level = value <= s.value + 8 * rounding * jnp.abs(s.value)
        return falls | (is_level & (jnp.abs(jnp.vdot(gradient, s.direction)) <= -0.9 * slope))

    def step(s: _State) -> _State:
        theta = jnp.where(s.steps == _AT_ZERO, 0, s.theta + s.t * s.direction)
        value, gradient = value_and_grad(theta)
        gradient = centred(gradient)
        at_zero = jnp.maximum(tol * jnp.linalg.norm(gradient), least)
        goal = jnp.where(s.goal < 0, at_zero, s.goal)

        def taken() -> _State:
            d, memory = direction_of(gradient, theta, s.memory)
            d = -centred(jnp.where(jnp.all(jnp.isfinite(d)), d, gradient))
            return _State(theta, value, gradient, d, memory, jnp.ones_like(s.t), goal, s.steps + 1)

        def refused() -> _State:
            is_zero = s.steps == _AT_ZERO
            t = jnp.where(is_zero, s.t, s.t / 2)
            return s._replace(t=t, goal=goal, steps=jnp.where(is_zero, _AT_START, s.steps))

        is_taken = (s.steps == _AT_START) | is_good(s, value, gradient)
        return lax.cond((s.steps != _AT_ZERO) & is_taken, taken, refused)

    theta = jnp.zeros(shape, tol.dtype) if start is None else start
    one, count = jnp.ones([], tol.dtype), _AT_START if start is None else _AT_ZERO
    zero = jnp.zeros_like(theta)
    first = _State(theta, one, zero, zero, memory, one, -one, jnp.int32(count))
    last = lax.while_loop(is_open, step, first)
    converged = jnp.linalg.norm(last.gradient) <= last.goal
    is_cut_short = ~converged & (last.t > _SHORTEST)
    return Minimum(last.theta, last.steps, converged, is_cut_short, last.gradient, last.direction)


def centred(a: jax.Array) -> jax.Array:
    """`a` of sum 0 over the classes, which is what a gradient has, and θ keeps."""
    return a - jnp.mean(a, axis=0, keepdims=True)

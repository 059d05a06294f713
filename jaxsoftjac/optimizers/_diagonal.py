"""Clipped steps by a diagonal of the Gauss–Newton matrix."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import AxisName, as_count, checked_number, wide
from jaxsoftjac.curvature._linearization import Model, check_model, linearize
from jaxsoftjac.curvature._objective import Head, fisher_objective
from jaxsoftjac.curvature._protocol import Objective
from jaxsoftjac.curvature._sampled import sampled_diagonal
from jaxsoftjac.optimizers._arguments import (
    Schedule,
    at_step,
    check_given,
    check_least,
    floating,
    key_of_step,
    loss_options,
    whole,
    zeros_of,
)


class DiagonalState(NamedTuple):
    """State of `diagonal_gauss_newton`.

    >>> (state,) = diagonal_gauss_newton(lambda k, x: x @ k, 0.1).init(jnp.zeros((1, 2)))
    >>> print(state.count, state.mean)
    0 [[0. 0.]]
    """

    # Steps taken, by the name that optax gives it.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Any  # of the gradients
    diagonal: Any  # mean of the sampled diagonals


class _Options(NamedTuple):
    learning_rate: Schedule
    b1: ArrayLike
    b2: ArrayLike
    scale: ArrayLike
    threshold: ArrayLike
    every: ArrayLike
    samples: int
    eps: ArrayLike
    seed: ArrayLike
    batch_axis_name: AxisName | None


def diagonal_gauss_newton(
    model: Model,
    learning_rate: Schedule,
    *,
    head: Head | None = None,
    ignore_index: int | None = None,
    batch_axis_name: AxisName | None = None,
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.95,
    scale: ArrayLike = 1.0,
    threshold: ArrayLike = 1.0,
    every: ArrayLike = 10,
    samples: int = 1,
    eps: ArrayLike = 1e-12,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Steps −clip(m / (scale·d)): m a mean of gradients, d of sampled Gauss–Newton diagonals.

    As in Sophia (Liu et al. 2023, arXiv 2305.14342), whose diagonal comes from sampled labels; here
    from random signs through the factor of the softmax Jacobian, see `gauss_newton_diagonal`.

    Cost: one more gradient in `every` steps; two arrays of the parameters' size. With `head`, the
    [N, V] logits are never held.

    Args:
        model: function (params, inputs) → logits [..., K], or hidden states beneath a `head`.
        learning_rate: size of a clipped step in every coordinate, or a schedule.
        head: as for `gauss_newton_product`.
        ignore_index: label whose examples do not count.
        batch_axis_name: as for `gauss_newton_cg`.
        b1: decay of m.
        b2: decay of d, per sampled diagonal.
        scale: factor of d; the smaller, the more coordinates are clipped.
        threshold: bound on a coordinate before the learning rate.
        every: steps between diagonals.
        samples: samples of each.
        eps: least scale·d.
        seed: of the samples.

    Returns:
        Transformation whose update needs `params`, and `inputs` by keyword, and `labels` where
        `ignore_index` is given; masked, `all_params`.

    Raises:
        TypeError: by `init`: a leaf of the parameters is no array.
        ValueError: an option is out of range. By the update: an argument is missing.

    Examples:
        >>> optimizer = diagonal_gauss_newton(lambda kernel, inputs: inputs @ kernel, 0.1)
        >>> kernel, gradient = jnp.zeros((1, 2)), jnp.array([[-9.0, 9.0]])
        >>> state = optimizer.init(kernel)
        >>> print(optimizer.update(gradient, state, kernel, inputs=jnp.ones((1, 1)))[0])
        [[ 0.1 -0.1]]
    """
    check_least(1, every=every)
    check_least(0, learning_rate=learning_rate, scale=scale, threshold=threshold, eps=eps)
    for name, decay in (("b1", b1), ("b2", b2)):
        checked_number(name, decay, "lie in [0, 1)", lambda b: 0 <= b < 1)
    check_model(model, batch_axis_name=batch_axis_name)
    samples = as_count("samples", samples, 1)
    top = fisher_objective(head, loss_options(ignore_index, None), batch_axis_name)
    chosen = _Options(
        learning_rate, b1, b2, scale, threshold, every, samples, eps, seed, batch_axis_name
    )
    update: Any = partial(_update, model, top, chosen)
    return optax.chain(optax.GradientTransformationExtraArgs(_init, update))


def _init(params: Any) -> DiagonalState:
    tree, _ = floating(params)
    return DiagonalState(jnp.zeros([], jnp.int32), zeros_of(tree), zeros_of(tree))


def _update(
    model: Model,
    top: Objective,
    chosen: _Options,
    updates: Any,
    state: DiagonalState,
    params: Any = None,
    *,
    inputs: Any = None,
    labels: Any = None,
    all_params: Any = None,
    **others: Any,
) -> tuple[Any, DiagonalState]:
    del others
    check_given(params=params, inputs=inputs)
    tree, dtype = floating(params)
    gradient = [wide(g) for g in tree.tangents(updates, "updates")]
    *_, b1, b2 = state_numbers = _numbers(chosen, dtype)
    taken, last = state.count + 1, tree.of(state.diagonal)

    def renewed() -> list[jax.Array]:

        def outputs_of(params: Any) -> Any:
            return top.outputs(model, whole(params, all_params), inputs)

        line = linearize(outputs_of, params, chosen.batch_axis_name)
        key = key_of_step(chosen.seed, state.count)
        sampled = sampled_diagonal(top, line, labels, key, chosen.samples)
        return _moment([wide(a) for a in sampled], last, b2)

    d = lax.cond(state.count % chosen.every == 0, renewed, lambda: last)
    mean = _moment(gradient, tree.of(state.mean), b1)
    rate = jnp.asarray(at_step(chosen.learning_rate, state.count), dtype)
    scale, threshold, eps = state_numbers[:3]
    first = 1 / (1 - b1 ** taken.astype(dtype))
    second = scale / (1 - b2 ** (state.count // chosen.every + 1).astype(dtype))

    def step(leaf: jax.Array, m: jax.Array, d: jax.Array) -> jax.Array:
        factors = (a.astype(m.dtype) for a in (first, second, eps, threshold, rate))
        first_, second_, eps_, threshold_, rate_ = factors
        ratio = first_ * m / jnp.maximum(second_ * d, eps_)
        return (-rate_ * jnp.clip(ratio, -threshold_, threshold_)).astype(jnp.result_type(leaf))

    steps = [step(*leaves) for leaves in zip(tree.arrays, mean, d, strict=True)]
    return tree.updates(steps), DiagonalState(taken, tree.updates(mean), tree.updates(d))


def _numbers(chosen: _Options, dtype: jnp.dtype) -> list[jax.Array]:
    numbers = chosen.scale, chosen.threshold, chosen.eps, chosen.b1, chosen.b2
    return [jnp.asarray(a, dtype) for a in numbers]


def _moment(values: list[jax.Array], mean: list[jax.Array], decay: jax.Array) -> list[jax.Array]:
    return [
        (1 - decay.astype(m.dtype)) * a.astype(m.dtype) + decay.astype(m.dtype) * m
        for a, m in zip(values, mean, strict=True)
    ]

"""Natural-gradient steps: those of `gauss_newton_cg` with a sampled Fisher matrix."""

from collections.abc import Mapping
from typing import Any

import optax
from jax.typing import ArrayLike

from jaxsoftjac._checks import AxisName
from jaxsoftjac.curvature._linearization import Model
from jaxsoftjac.curvature._objective import Head
from jaxsoftjac.optimizers._arguments import Schedule
from jaxsoftjac.optimizers._gauss_newton import gauss_newton_cg


def natural_gradient(
    model: Model,
    learning_rate: Schedule = 1.0,
    *,
    samples: int = 1,
    head: Head | None = None,
    ignore_index: int | None = None,
    batch_axis_name: AxisName | None = None,
    options: Mapping[str, Any] | None = None,
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
    """Damped natural-gradient steps, −(F̂ + λI)⁻¹g, with the Monte Carlo Fisher matrix F̂.

    F̂ is that of `sampled_fisher_product`, sampled anew at every step. `gauss_newton_cg` has the
    exact Fisher matrix of a softmax at the same cost, and the same options.

    Args:
        model: function (params, inputs) → logits [..., K], or hidden states beneath a `head`.
        learning_rate: factor of the step, or a schedule.
        samples: vectors per example in F̂.
        head: as for `gauss_newton_product`.
        ignore_index: label whose examples do not count.
        batch_axis_name: as for `gauss_newton_cg`.
        options: as for `gauss_newton_cg`, as are all that follow.
        damping: λ at first, or a schedule.
        min_damping: least λ.
        max_damping: greatest λ.
        adapt_damping: False keeps λ.
        cg_iterations: at most so many products per step.
        cg_tolerance: relative residual at which the solver stops.
        warm_start: factor of the last direction, where the solver starts.
        precondition: whether the solver has a diagonal preconditioner.
        seed: of the samples.

    Returns:
        As `gauss_newton_cg`.

    Raises:
        TypeError: as `gauss_newton_cg`.
        ValueError: as `gauss_newton_cg`.

    Examples:
        >>> import jax.numpy as jnp
        >>> optimizer = natural_gradient(lambda kernel, inputs: inputs @ kernel, samples=2)
        >>> print(optimizer.init(jnp.zeros((1, 2)))[0].damping)
        1.0
    """
    return gauss_newton_cg(
        model,
        learning_rate,
        samples=samples,
        head=head,
        ignore_index=ignore_index,
        batch_axis_name=batch_axis_name,
        options=options,
        damping=damping,
        min_damping=min_damping,
        max_damping=max_damping,
        adapt_damping=adapt_damping,
        cg_iterations=cg_iterations,
        cg_tolerance=cg_tolerance,
        warm_start=warm_start,
        precondition=precondition,
        seed=seed,
    )

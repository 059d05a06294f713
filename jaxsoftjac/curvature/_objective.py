"""What stands on a model: its mean loss on logits, or on hidden states and the layer beneath it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftjac.curvature._linearization import mean_softmax_hessian, number_of_rows
from jaxsoftjac.losses import (
    cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_gauss_newton,
)

Loss = str | Callable[..., jax.Array]
Head = str | tuple[str, str] | Callable[[Any], Any]


class Objective(NamedTuple):
    """What stands on the model: its outputs as a function of the parameters, and their loss."""

    outputs: Callable[..., Any]  # (model, params, inputs) → z
    loss_and_hessian: Callable[..., Any]  # (z, labels) → z ↦ mean loss, v ↦ Hv


def objective_of(loss: Loss, head: Head | None, options: dict[str, Any]) -> Objective:
    """The checked `loss` on logits, or on hidden states and a `head`."""
    return _logits_top(loss, options) if head is None else _vocabulary_top(loss, head, options)


def _logits_top(loss: Loss, options: dict[str, Any]) -> Objective:
    if loss != "cross_entropy" and not callable(loss):
        raise ValueError(f'`loss` must be "cross_entropy" or a function, got {loss!r}')
    losses = partial(loss if callable(loss) else cross_entropy, **options)

    def loss_and_hessian(z, labels):
        shape = jax.eval_shape(losses, z, labels).shape
        if shape != z.shape[:-1]:
            raise ValueError(
                f"`loss` must give one value per example, shape {z.shape[:-1]}, got {shape}"
            )
        objective = lambda z: jnp.sum(losses(z, labels)) / number_of_rows(z)  # noqa: E731
        if loss == "cross_entropy" and not options:
            return objective, mean_softmax_hessian(z)
        return objective, jax.linearize(jax.grad(objective), z)[1]

    return Objective(lambda model, params, inputs: model(params, inputs), loss_and_hessian)


def _vocabulary_top(loss: Loss, head: Head, options: dict[str, Any]) -> Objective:
    if loss != "cross_entropy":
        raise ValueError(f'`loss` must be "cross_entropy" where `head` is given, got {loss!r}')

    def outputs(model, params, inputs):
        if callable(head):
            layer = head(params)
        else:
            layer = params[head] if isinstance(head, str) else tuple(params[k] for k in head)
        return (model(params, inputs), *(layer if isinstance(layer, tuple) else (layer,)))

    def loss_and_hessian(z, labels):
        bias = {"bias": z[2]} if len(z) == 3 else {}
        objective = lambda z: linear_cross_entropy(  # noqa: E731
            z[0], z[1], labels, **({"bias": z[2]} if bias else {}), reduction="mean", **options
        )
        return objective, lambda v: linear_cross_entropy_gauss_newton(
            z[0], z[1], labels, v, **bias, reduction="mean", **options
        )

    return Objective(outputs, loss_and_hessian)

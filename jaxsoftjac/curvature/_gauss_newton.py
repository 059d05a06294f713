"""Gauss–Newton and Fisher products, exact."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsoftjac.curvature._linearization import (
    Linearization,
    Model,
    add_scaled,
    check_damping,
    linearize,
)
from jaxsoftjac.curvature._objective import Head, Loss, objective_of
from jaxsoftjac.transforms import tangents_like


def gauss_newton_product(
    model: Model,
    loss: Loss = "cross_entropy",
    *,
    damping: float | jax.Array = 0.0,
    linearized: bool = False,
    head: Head | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """Product with the Gauss–Newton matrix of the mean loss: v ↦ JᵀHJv + damping·v.

    One linearisation of the model serves v ↦ Jv and its transpose. H is the softmax Jacobian of
    each example, or the derivative of the gradient of another loss.

    Cost: about 5/3 of a gradient of the mean loss, with its memory. With `head`, the [N, V] logits
    are never held.

    Args:
        model: function (params, inputs) → logits [..., K]; `params` is a pytree of floating arrays.
        loss: "cross_entropy", or a function (logits, labels) → one loss per example, [...]; G is
            positive semi-definite if it is convex in the logits.
        damping: number ≥ 0.
        linearized: linearise once, for many products.
        head: for a `model` that returns hidden states [..., D], where the last layer is: the key
            of its kernel [D, V] in `params`, the keys of kernel and bias [V], or a function of the
            parameters to kernel or (kernel, bias), such as `lambda p: p["embedding"].T`. The loss
            is then `linear_cross_entropy`, with its mean.
        **options: of the loss, such as `ignore_index`.

    Returns:
        Function (params, inputs, labels, tangents) → product, in the structure of `params`; if
        `linearized`, (params, inputs, labels) → (value, gradient, v ↦ product).

    Raises:
        ValueError: `loss` is unknown, not one per example, or given with `head`; `damping` is
            negative; labels do not fit the logits, or tangents the parameters.
    """
    check_damping(damping)
    top = objective_of(loss, head, options)

    def product_at(line: Linearization, hessian):
        def product(tangents):
            v = tangents_like(line.params, tangents)
            return add_scaled(line.pull(hessian(line.push(v))), damping, v)

        return product

    def quadratic(params, inputs, labels):
        line = linearize(lambda p: top.outputs(model, p, inputs), params)
        objective, hessian = top.loss_and_hessian(line.outputs, labels)
        value, cotangent = jax.value_and_grad(objective)(line.outputs)
        return value, line.pull(cotangent), product_at(line, hessian)

    def product(params, inputs, labels, tangents):
        line = linearize(lambda p: top.outputs(model, p, inputs), params)
        return product_at(line, top.loss_and_hessian(line.outputs, labels)[1])(tangents)

    return quadratic if linearized else product


def fisher_product(
    model: Model, *, damping: float | jax.Array = 0.0, head: Head | None = None
) -> Callable[..., Any]:
    """Product with the Fisher matrix, E over the model's own labels of ∇log p ∇log pᵀ.

    For logits it is the Gauss–Newton matrix of cross-entropy, computed as such.

    Cost, arguments and errors as for `gauss_newton_product`.

    Returns:
        Function (params, inputs, labels, tangents) → product; the labels are not used, but for
        their shape, and may be None.
    """
    product = gauss_newton_product(model, damping=damping, head=head)

    def of_any_labels(params, inputs, labels, tangents):
        if labels is None:
            shape = jax.eval_shape(model, params, inputs).shape[:-1]
            labels = jnp.zeros(shape, jnp.int32)
        return product(params, inputs, labels, tangents)

    return of_any_labels

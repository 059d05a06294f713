"""Gauss–Newton and Fisher products, exact."""

from typing import Any, Literal, Protocol, overload

import jax
from jax.typing import ArrayLike

from jaxsoftjac._checks import AxisName
from jaxsoftjac.curvature._linearization import (
    Linearization,
    Model,
    add_scaled,
    check_model,
    linearize,
)
from jaxsoftjac.curvature._objective import Head, Loss, fisher_objective, objective_of
from jaxsoftjac.curvature._protocol import Product


class CurvatureProduct(Protocol):
    """The product of a matrix at some parameters, on a batch, with tangents of the parameters."""

    def __call__(self, params: Any, inputs: Any, labels: Any, tangents: Any) -> Any:
        """The product, in the structure of the parameters."""
        ...


class LinearizedProduct(Protocol):
    """The matrix at some parameters, on a batch, and what the same linearisation gives."""

    def __call__(self, params: Any, inputs: Any, labels: Any) -> tuple[jax.Array, Any, Product]:
        """The loss, its gradient, and the product as a function of tangents."""
        ...


@overload
def gauss_newton_product(
    model: Model,
    loss: Loss = "cross_entropy",
    *,
    damping: ArrayLike = 0.0,
    linearized: Literal[False] = False,
    head: Head | None = None,
    batch_axis_name: AxisName | None = None,
    **options: Any,
) -> CurvatureProduct: ...


@overload
def gauss_newton_product(
    model: Model,
    loss: Loss = "cross_entropy",
    *,
    damping: ArrayLike = 0.0,
    linearized: Literal[True],
    head: Head | None = None,
    batch_axis_name: AxisName | None = None,
    **options: Any,
) -> LinearizedProduct: ...


def gauss_newton_product(
    model: Model,
    loss: Loss = "cross_entropy",
    *,
    damping: ArrayLike = 0.0,
    linearized: bool = False,
    head: Head | None = None,
    batch_axis_name: AxisName | None = None,
    **options: Any,
) -> CurvatureProduct | LinearizedProduct:
    """Product with the Gauss–Newton matrix of the mean loss: v ↦ JᵀHJv + damping·v.

    One linearisation of the model serves v ↦ Jv and its transpose. H is the softmax Jacobian of
    each example, or the derivative of the gradient of another loss.

    Cost: about 5/3 of a gradient of the mean loss, with its memory. With `head`, the [N, V] logits
    are never held.

    Args:
        model: function (params, inputs) → logits [..., K]; `params` is a pytree.
        loss: "cross_entropy", or a function (logits, labels) → one loss per example, [...]; G is
            positive semi-definite if it is convex in the logits.
        damping: number ≥ 0.
        linearized: linearise once, for many products.
        head: for a `model` that returns hidden states [..., D], where the last layer is: the key
            of its kernel [D, V] in `params`, the keys of kernel and bias [V], or a function of the
            parameters to kernel or (kernel, bias), such as `lambda p: p["embedding"].T`. The loss
            is then `linear_cross_entropy`, with its mean.
        batch_axis_name: mapped axis (`shard_map`, `vmap`, `pmap`) over which examples are split,
            where all devices have the same parameters and tangents: the mean is then over the
            examples of all, and what is returned is the same on all. Without it the mean would be
            over one device's examples. Under `jit` with arrays that are split it is not needed. A
            gradient through what is returned is, as JAX has it for every psum, a device's part.
        **options: of the loss, such as `ignore_index`: the mean is over the examples that are kept,
            with or without `head`, and weighted if `weights` are given.

    Returns:
        Function (params, inputs, labels, tangents) → product, in the structure of `params`; if
        `linearized`, (params, inputs, labels) → (value, gradient, v ↦ product). Integer leaves
        of `params` are constants with products of dtype `float0`; leaves that are no arrays are
        constants too, with None in their place.

    Raises:
        ValueError: `loss` is unknown, not one per example, or given with `head`; `damping` is
            negative; labels do not fit the logits, or tangents the parameters.

    Examples:
        >>> import jax.numpy as jnp
        >>> product = gauss_newton_product(lambda kernel, inputs: inputs @ kernel)
        >>> batch = jnp.ones((1, 1)), jnp.array([0])
        >>> print(product(jnp.zeros((1, 2)), *batch, jnp.array([[1.0, 0.0]])))
        [[ 0.25 -0.25]]
    """
    check_model(model, damping, batch_axis_name)
    top = objective_of(loss, head, options, batch_axis_name)

    def at(params: Any, inputs: Any) -> Linearization:
        return linearize(lambda p: top.outputs(model, p, inputs), params, batch_axis_name)

    def quadratic(params: Any, inputs: Any, labels: Any) -> tuple[jax.Array, Any, Product]:
        line = at(params, inputs)
        value, cotangent = jax.value_and_grad(lambda z: top.loss(z, labels))(line.outputs)
        gradient = line.params.derivatives(line.pull(cotangent))
        matrix = _product(line, top.hessian(line.outputs, labels), damping)
        return top.total(value), gradient, matrix

    def product(params: Any, inputs: Any, labels: Any, tangents: Any) -> Any:
        line = at(params, inputs)
        return _product(line, top.hessian(line.outputs, labels), damping)(tangents)

    return quadratic if linearized else product


def fisher_product(
    model: Model,
    *,
    damping: ArrayLike = 0.0,
    head: Head | None = None,
    batch_axis_name: AxisName | None = None,
    **options: Any,
) -> CurvatureProduct:
    """Product with the Fisher matrix, E over the model's own labels of ∇log p ∇log pᵀ.

    For logits it is the Gauss–Newton matrix of cross-entropy, computed as such. Labels, which may
    have any value, say only which examples `ignore_index` leaves out.

    Cost and errors as for `gauss_newton_product`.

    Args:
        model: function (params, inputs) → logits [..., K], or hidden states beneath a `head`.
        damping: number ≥ 0.
        head: as for `gauss_newton_product`.
        batch_axis_name: likewise.
        **options: `ignore_index` and `weights`; with `head`, `block_size` and `logit_softcap`.

    Returns:
        Function (params, inputs, labels, tangents) → product; the labels may be None without
        `ignore_index`.

    Examples:
        >>> import jax.numpy as jnp
        >>> product = fisher_product(lambda kernel, inputs: inputs @ kernel)
        >>> print(product(jnp.zeros((1, 2)), jnp.ones((1, 1)), None, jnp.array([[1.0, 0.0]])))
        [[ 0.25 -0.25]]
    """
    check_model(model, damping, batch_axis_name)
    top = fisher_objective(head, options, batch_axis_name)

    def product(params: Any, inputs: Any, labels: Any, tangents: Any) -> Any:
        line = linearize(lambda p: top.outputs(model, p, inputs), params, batch_axis_name)
        return _product(line, top.fisher(line.outputs, labels), damping)(tangents)

    return product


def _product(line: Linearization, hessian: Product, damping: ArrayLike) -> Product:
    """Tangents in the structure of the parameters ↦ JᵀHJv + damping·v."""

    def product(tangents: Any) -> Any:
        v = line.params.tangents(tangents)
        return line.params.derivatives(add_scaled(line.pull(hessian(line.push(v))), damping, v))

    return product

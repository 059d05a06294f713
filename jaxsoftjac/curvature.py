"""Gauss–Newton and Fisher products of models that end in a softmax.

The Hessian of the mean loss of a model z(θ) is JᵀHJ, J = ∂z/∂θ and H = ∂²loss/∂z², plus a term in
∂²z/∂θ². The first part is the Gauss–Newton matrix G: positive semi-definite, and never formed.

>>> import jax.numpy as jnp
>>> product = gauss_newton_product(lambda kernel, inputs: inputs @ kernel)
>>> inputs, labels, kernel = jnp.ones((1, 1)), jnp.array([0]), jnp.zeros((1, 2))
>>> print(product(kernel, inputs, labels, jnp.array([[1.0, 0.0]])))
[[ 0.25 -0.25]]
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftjac.functions import softmax
from jaxsoftjac.linear_losses import linear_cross_entropy, linear_cross_entropy_gauss_newton
from jaxsoftjac.losses import cross_entropy
from jaxsoftjac.transforms import tangents_like

Model = Callable[[Any, Any], jax.Array]
Loss = str | Callable[..., jax.Array]
Head = str | tuple[str, str] | Callable[[Any], Any]


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
    top = top_of(loss, head, options)

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


class Linearization(NamedTuple):
    """A function of the parameters at one point: its outputs, v ↦ Jv, and u ↦ Jᵀu."""

    params: Any
    outputs: Any
    push: Callable[[Any], Any]
    pull: Callable[[Any], Any]


def linearize(outputs_of: Callable[[Any], Any], params: Any) -> Linearization:
    """The linearisation of a function, whose transpose is derived from it: one forward pass."""
    outputs, push = jax.linearize(outputs_of, params)
    transpose = jax.linear_transpose(push, params)
    return Linearization(params, outputs, push, lambda u: transpose(u)[0])


def mean_softmax_hessian(logits: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The Hessian of mean cross-entropy in the logits, v ↦ Jv/N."""
    return jax.linearize(lambda z: softmax(z) / number_of_rows(z), logits)[1]


def add_scaled(tree: Any, scale: float | jax.Array, other: Any) -> Any:
    """Tree + scale·other, in the dtypes of the tree."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(scale, a.dtype) * b, tree, other)


def number_of_rows(logits: jax.Array) -> int:
    """The examples, or tokens, that the mean is over."""
    return max(1, logits.size // max(1, logits.shape[-1]))


def check_damping(damping: float | jax.Array) -> None:
    """Raises unless it is ≥ 0, or traced."""
    if isinstance(damping, int | float) and not damping >= 0:
        raise ValueError(f"`damping` must be ≥ 0, got {damping}")


class Top(NamedTuple):
    """What stands on the model: its outputs as a function of the parameters, and their loss."""

    outputs: Callable[..., Any]  # (model, params, inputs) → z
    loss_and_hessian: Callable[..., Any]  # (z, labels) → z ↦ mean loss, v ↦ Hv


def top_of(loss: Loss, head: Head | None, options: dict[str, Any]) -> Top:
    """The checked `loss` on logits, or on hidden states and a `head`."""
    return _logits_top(loss, options) if head is None else _vocabulary_top(loss, head, options)


def _logits_top(loss: Loss, options: dict[str, Any]) -> Top:
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

    return Top(lambda model, params, inputs: model(params, inputs), loss_and_hessian)


def _vocabulary_top(loss: Loss, head: Head, options: dict[str, Any]) -> Top:
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

    return Top(outputs, loss_and_hessian)

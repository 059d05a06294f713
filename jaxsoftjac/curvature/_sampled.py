"""The Gauss–Newton matrix from the factor of the softmax Jacobian: samples of it, and its diagonal.

J = FFᵀ with F = diag(√σ) − σ√σᵀ, a product with which is O(K).

>>> import jax.numpy as jnp
>>> diagonal = gauss_newton_diagonal(lambda kernel, inputs: inputs @ kernel)
>>> print(jnp.round(diagonal(jnp.zeros((1, 2)), jnp.ones((1, 1))), 3))
[[0.25 0.25]]
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import AxisName, as_count, checked_key, wide
from jaxsoftjac._rules import varying
from jaxsoftjac._trees import Floating
from jaxsoftjac.curvature._linearization import (
    Linearization,
    Model,
    add_scaled,
    check_model,
    linearize,
)
from jaxsoftjac.curvature._objective import Head, fisher_objective
from jaxsoftjac.curvature._protocol import Objective
from jaxsoftjac.curvature._shares import share_of_device, shares_of
from jaxsoftjac.operators import SoftmaxJacobian


class SampledProduct(Protocol):
    """The product of a sampled matrix with tangents of the parameters."""

    def __call__(
        self, params: Any, inputs: Any, key: jax.Array, tangents: Any, labels: Any = None
    ) -> Any:
        """The product, in the structure of the parameters."""
        ...


class Diagonal(Protocol):
    """The diagonal of a matrix at some parameters, on a batch."""

    def __call__(self, params: Any, inputs: Any, labels: Any = None) -> Any:
        """The diagonal, in the structure of the parameters."""
        ...


class SampledDiagonal(Protocol):
    """An estimate of it."""

    def __call__(self, params: Any, inputs: Any, key: jax.Array, labels: Any = None) -> Any:
        """The estimate, in the structure of the parameters."""
        ...


def sampled_fisher_product(
    model: Model,
    *,
    samples: int = 1,
    damping: ArrayLike = 0.0,
    head: Head | None = None,
    batch_axis_name: AxisName | None = None,
    **options: Any,
) -> SampledProduct:
    """Product with a Monte Carlo Fisher matrix of rank ≤ samples·N, unbiased.

    J = FFᵀ with F = diag(√σ) − σ√σᵀ, so that E[(Fε)(Fε)ᵀ] = J for random signs ε: each example's H
    is replaced by the mean of the samples' (Fε)(Fε)ᵀ.

    Cost: that of `gauss_newton_product`, and two passes over the logits for each sample: sampling
    lowers the rank, not the cost of a product. With `head`, the [N, V] logits are never held.
    Outside of `jit`, loops over samples or blocks of classes compile at each call.

    Args:
        model: function (params, inputs) → logits [..., K], or hidden states beneath a `head`.
        samples: vectors ε per example.
        damping: number ≥ 0.
        head: as for `gauss_newton_product`.
        batch_axis_name: likewise; give all devices the same key.
        **options: as for `fisher_product`.

    Returns:
        Function (params, inputs, key, tangents, labels=None) → product; the same key gives the
        same matrix. Labels are needed for `ignore_index` only.

    Raises:
        ValueError: `samples` is not positive, `damping` is negative, or the tangents do not fit.

    Examples:
        >>> product = sampled_fisher_product(lambda kernel, inputs: inputs @ kernel, samples=8)
        >>> arguments = jnp.zeros((1, 2)), jnp.ones((1, 1)), jax.random.key(0)
        >>> print(product(*arguments, jnp.array([[1.0, 0.0]])).shape)
        (1, 2)
    """
    samples = as_count("samples", samples, 1)
    check_model(model, damping, batch_axis_name)
    top = fisher_objective(head, options, batch_axis_name)

    def product(params: Any, inputs: Any, key: jax.Array, tangents: Any, labels: Any = None) -> Any:
        line = linearize(lambda p: top.outputs(model, p, inputs), params, batch_axis_name)
        v, key = line.params.tangents(tangents), checked_key("key", key)
        hessian = top.sampled_fisher(line.outputs, labels, key, samples)
        return line.params.derivatives(add_scaled(line.pull(hessian(line.push(v))), damping, v))

    return product


@overload
def gauss_newton_diagonal(
    model: Model,
    *,
    samples: None = None,
    head: None = None,
    batch_axis_name: AxisName | None = None,
    **options: Any,
) -> Diagonal: ...


@overload
def gauss_newton_diagonal(
    model: Model,
    *,
    samples: int,
    head: Head | None = None,
    batch_axis_name: AxisName | None = None,
    **options: Any,
) -> SampledDiagonal: ...


def gauss_newton_diagonal(
    model: Model,
    *,
    samples: int | None = None,
    head: Head | None = None,
    batch_axis_name: AxisName | None = None,
    **options: Any,
) -> Diagonal | SampledDiagonal:
    """Diagonal of the Gauss–Newton matrix of mean cross-entropy, exact or sampled.

    Exact: Σ (JₙᵀF eⱼ)² over examples n and outputs j. Sampled: the mean of (Σₙ JₙᵀFεₙ)² over
    random signs ε, unbiased, because the signs of different examples are independent.

    Cost: exact, a backward pass for every output of an example (K for one row of logits), each with
    a gradient per example in memory unless the compiler fuses it away; sampled, an ordinary
    gradient for each sample, and with `head` no [N, V] logits. Outside of `jit`, loops over
    outputs, samples or blocks of classes compile at each call.

    Args:
        model: function (params, inputs) → logits [N, ..., K]; for the exact diagonal, examples
            are the leading axis of every array of `inputs`, and do not influence each other.
        samples: number of samples; None for the exact diagonal.
        head: as for `gauss_newton_product`; with `samples` only.
        batch_axis_name: as for `sampled_fisher_product`; the exact diagonal of examples that are
            split over an Explicit mesh axis needs it, in a `shard_map`.
        **options: as for `fisher_product`.

    Returns:
        Function (params, inputs, labels=None) → diagonal, in the structure of `params`; with
        `samples`, (params, inputs, key, labels=None). Labels are needed for `ignore_index` only.

    Raises:
        ValueError: `samples` is not positive, or None where `head` is given.

    Examples:
        >>> diagonal = gauss_newton_diagonal(lambda kernel, inputs: inputs @ kernel)
        >>> print(jnp.round(diagonal(jnp.zeros((1, 2)), jnp.ones((1, 1))), 3))
        [[0.25 0.25]]
    """
    check_model(model, batch_axis_name=batch_axis_name)
    top = fisher_objective(head, options, batch_axis_name)
    if samples is None:
        if head is not None:
            raise ValueError("`samples` must be given where `head` is: a backward pass a class")

        def exact(params: Any, inputs: Any, labels: Any = None) -> Any:
            return _exact_diagonal(model, params, inputs, labels, options, batch_axis_name)

        return exact
    count = as_count("samples", samples, 1)

    def diagonal(params: Any, inputs: Any, key: jax.Array, labels: Any = None) -> Any:
        line = linearize(lambda p: top.outputs(model, p, inputs), params, batch_axis_name)
        squares = sampled_diagonal(top, line, labels, checked_key("key", key), count)
        return line.params.derivatives(squares)

    return diagonal


def sampled_diagonal(
    top: Objective, line: Linearization, labels: Any, key: jax.Array, samples: int
) -> list[jax.Array]:
    """The mean over random signs ε of (JᵀFε)²."""

    def squares(key: jax.Array) -> list[jax.Array]:
        return [a**2 for a in line.pull(top.sampled_cotangent(line.outputs, labels, key))]

    if samples == 1:
        return squares(key)
    estimates = lax.map(squares, jax.random.split(key, samples))
    return [jnp.mean(a, axis=0) for a in estimates]


def _exact_diagonal(
    model: Model,
    params: Any,
    inputs: Any,
    labels: Any,
    options: Mapping[str, Any],
    batch_axis_name: AxisName | None,
) -> Any:
    tree = Floating(params)
    arrays = varying([jnp.asarray(a) for a in tree.arrays], batch_axis_name)

    def logits_of(arrays: list[Any], x: Any) -> jax.Array:
        return model(tree.with_arrays(arrays), jax.tree.map(lambda a: a[None], x))[0]

    def at_example(x: Any) -> tuple[jax.Array, Callable[..., Any]]:
        return jax.vjp(lambda arrays: logits_of(arrays, x), arrays)

    logits, pullbacks = jax.vmap(at_example)(inputs)
    kept, shares = shares_of(logits, labels, options)
    if batch_axis_name is not None:
        shares = shares * share_of_device(logits, labels, options, batch_axis_name)
    J = SoftmaxJacobian.from_logits(wide(jnp.where(kept[..., None], logits, 0)))

    def add_squares(total: list[jax.Array], j: jax.Array) -> tuple[list[jax.Array], None]:
        def of_example(pullback: Callable[..., Any], J: SoftmaxJacobian, share: jax.Array) -> Any:
            size = J.sigma.size
            unit = jnp.zeros(size, J.sigma.dtype).at[j].set(1).reshape(J.sigma.shape)
            u = jnp.sqrt(share)[..., None] * J.factor_mv(unit)
            return [wide(a) ** 2 for a in pullback(u.astype(logits.dtype))[0]]

        squares = jax.vmap(of_example)(pullbacks, J, shares)
        return [t + jnp.sum(s, axis=0) for t, s in zip(total, squares, strict=True)], None

    zeros = [jnp.zeros_like(wide(a)) for a in arrays]
    total, _ = lax.scan(add_squares, zeros, jnp.arange(logits[0].size))
    if batch_axis_name is not None:
        total = lax.psum(total, batch_axis_name)
    return tree.derivatives([t.astype(a.dtype) for t, a in zip(total, arrays, strict=True)])

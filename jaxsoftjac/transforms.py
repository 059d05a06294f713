"""Functions of functions: Jacobians, Hessians and Hessian products of any function of pytrees.

>>> import jax.numpy as jnp
>>> from jaxsoftjac.functions import logsumexp, softmax
>>> print(jacobian(softmax, batch_ndim=1)(jnp.zeros((3, 2))).shape)
(3, 2, 2)
>>> print(hvp(logsumexp)(jnp.zeros(2), jnp.array([1.0, 0.0])))      # its Hessian is J
[ 0.25 -0.25]
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Argnums = int | Sequence[int]


def jacobian(
    fun: Callable[..., Any], argnums: Argnums = 0, *, mode: str = "auto", batch_ndim: int = 0
) -> Callable[..., Any]:
    """Jacobian of a function, or one for each example of a batch: ∂fᵢ/∂xⱼ.

    Cost: min(inputs, outputs) products for "auto", each about one or two evaluations of `fun`; the
    Jacobian's memory. Those of a batch are vmapped, so that their cost is linear in its size.

    Args:
        fun: function of arrays or pytrees, of one example.
        argnums: the argument or arguments to differentiate by.
        mode: "forward" pushes one tangent per input, "reverse" pulls one cotangent per output;
            "auto" takes the one with fewer, forward where they are equal.
        batch_ndim: number of leading axes of every positional argument that run over examples.
            Keyword arguments are shared by all examples.

    Returns:
        Function of the arguments of `fun`: a pytree of its output's structure, of pytrees of the
        input's; leaves [*batch, *output, *input].

    Raises:
        ValueError: `mode` or `batch_ndim` is not among the above.
    """
    transforms = {"auto": _jacobian, "forward": jax.jacfwd, "reverse": jax.jacrev}
    if mode not in transforms:
        raise ValueError(f"`mode` must be one of {', '.join(transforms)}, got {mode!r}")
    return _per_example(lambda f: transforms[mode](f, argnums), fun, batch_ndim)


def hessian(
    fun: Callable[..., Any], argnums: Argnums = 0, *, batch_ndim: int = 0
) -> Callable[..., Any]:
    """Hessian of a function, or one for each example of a batch, forward over reverse.

    Cost: one `hvp` per input and, for outputs that are not scalar, per output; the Hessian's
    memory.

    Args:
        fun: as for `jacobian`; any output.
        argnums: as for `jacobian`.
        batch_ndim: as for `jacobian`.

    Returns:
        Function of the arguments of `fun`: leaves [*batch, *output, *input, *input].

    Raises:
        ValueError: `batch_ndim` is negative.
    """
    return _per_example(lambda f: jax.jacfwd(jax.jacrev(f, argnums), argnums), fun, batch_ndim)


def hvp(
    fun: Callable[..., Any], argnums: Argnums = 0, *, has_value: bool = False
) -> Callable[..., Any]:
    """Product of the Hessian of a scalar function with tangents: ∇²f·v, forward over reverse.

    Cost: about twice that of the gradient, with twice its memory; the Hessian is never formed.

    Args:
        fun: scalar function of arrays or pytrees.
        argnums: the argument or arguments to differentiate by.
        has_value: also return the value and the gradient, which the same pass computes.

    Returns:
        Function of the arguments of `fun`, followed by the tangents of the argument at `argnums`
        (a tuple of them where `argnums` is one): the product, in their structure, or
        (value, gradient, product).

    Raises:
        ValueError: the tangents differ in structure or shape from the arguments at `argnums`.
    """

    def product(*primals_and_tangents, **shared):
        *primals, tangents = primals_and_tangents
        at, value_and_grad = _closed_over(partial(fun, **shared), argnums, primals)
        tangents = tangents_like(at, tangents)
        (value, gradient), (_, along) = jax.jvp(value_and_grad, (at,), (tangents,))
        return (value, gradient, along) if has_value else along

    return product


def tangents_like(primals: Any, tangents: Any) -> Any:
    """The tangents in the dtypes of the primals, checked for their structure and shapes."""
    expected, got = jax.tree.structure(primals), jax.tree.structure(tangents)
    if expected != got:
        raise ValueError(f"`tangents` must have the structure {expected}, got {got}")
    for p, t in zip(jax.tree.leaves(primals), jax.tree.leaves(tangents), strict=True):
        if jnp.shape(p) != jnp.shape(t):
            raise ValueError(f"`tangents` must have shape {jnp.shape(p)}, got {jnp.shape(t)}")
    return jax.tree.map(lambda p, t: jnp.asarray(t, jnp.result_type(p)), primals, tangents)


def _closed_over(
    fun: Callable[..., Any], argnums: Argnums, primals: Sequence[Any]
) -> tuple[Any, Callable[[Any], Any]]:
    """The arguments at `argnums`, and value and gradient as a function of those alone."""
    if isinstance(argnums, int):
        at = primals[argnums]
        chosen, unpack = (argnums,), lambda at: (at,)
    else:
        chosen, unpack = tuple(argnums), lambda at: at
        at = tuple(primals[i] for i in chosen)

    def of_chosen(at):
        arguments = list(primals)
        for i, a in zip(chosen, unpack(at), strict=True):
            arguments[i] = a
        return fun(*arguments)

    return at, jax.value_and_grad(of_chosen)


def _per_example(
    transform: Callable[[Callable[..., Any]], Callable[..., Any]],
    fun: Callable[..., Any],
    batch_ndim: int,
) -> Callable[..., Any]:
    if batch_ndim < 0:
        raise ValueError(f"`batch_ndim` must be ≥ 0, got {batch_ndim}")

    def derivative(*primals, **shared):
        each = transform(partial(fun, **shared))
        for _ in range(batch_ndim):
            each = jax.vmap(each)
        return each(*primals)

    return derivative


def _jacobian(fun: Callable[..., Any], argnums: Argnums) -> Callable[..., Any]:
    """The Jacobian in the mode that needs fewer products."""

    def size(tree):
        return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))

    def derivative(*primals):
        chosen = [argnums] if isinstance(argnums, int) else argnums
        inputs = size([primals[i] for i in chosen])
        outputs = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(fun, *primals)))
        transform = jax.jacfwd if inputs <= outputs else jax.jacrev
        return transform(fun, argnums)(*primals)

    return derivative

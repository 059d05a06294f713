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
from typing import Any, Literal, ParamSpec

import jax
import jax.numpy as jnp

from jaxsoftjac._checks import as_count, as_index, check_function
from jaxsoftjac._trees import Floating, is_number

__all__ = ["jacobian", "hessian", "hvp"]

Argnums = int | Sequence[int]
Mode = Literal["auto", "forward", "reverse"]
P = ParamSpec("P")  # the arguments of a function, which its derivative takes too


def jacobian(
    fun: Callable[P, Any], argnums: Argnums = 0, *, mode: Mode = "auto", batch_ndim: int = 0
) -> Callable[P, Any]:
    """Jacobian of a function, or one for each example of a batch: ∂fᵢ/∂xⱼ.

    Cost: min(inputs, outputs) products for "auto", each about one or two evaluations of `fun`; the
    Jacobian's memory. Those of a batch are vmapped, so that their cost is linear in its size.

    Args:
        fun: function of arrays or pytrees, of one example.
        argnums: the argument or arguments to differentiate by.
        mode: "forward" pushes one tangent per input, "reverse" pulls one cotangent per output;
            "auto" takes the one with fewer, forward where they are equal or an output is not real.
        batch_ndim: number of leading axes of every positional argument that run over examples.
            Keyword arguments are shared by all examples.

    Returns:
        Function of the arguments of `fun`: a pytree of its output's structure, of pytrees of the
        input's; leaves [*batch, *output, *input].

    Raises:
        ValueError: `mode` or `batch_ndim` is not among the above.

    Examples:
        >>> from jaxsoftjac.functions import softmax
        >>> of_examples = jacobian(lambda x, t: softmax(x / t), batch_ndim=1)
        >>> print(of_examples(jnp.zeros((5, 3)), t=2.0).shape)
        (5, 3, 3)
    """
    transforms = {"auto": _jacobian, "forward": jax.jacfwd, "reverse": jax.jacrev}
    if mode not in transforms:
        raise ValueError(f"`mode` must be one of {', '.join(transforms)}, got {mode!r}")
    return _per_example(transforms[mode], 1, fun, argnums, batch_ndim)


def hessian(
    fun: Callable[P, Any], argnums: Argnums = 0, *, batch_ndim: int = 0
) -> Callable[P, Any]:
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

    Examples:
        >>> from jaxsoftjac.functions import logsumexp
        >>> print(hessian(logsumexp)(jnp.zeros(2)))
        [[ 0.25 -0.25]
         [-0.25  0.25]]
    """

    def dense(fun: Callable[..., Any], argnums: Argnums) -> Callable[..., Any]:
        return jax.jacfwd(jax.jacrev(fun, argnums), argnums)

    return _per_example(dense, 2, fun, argnums, batch_ndim)


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

    Examples:
        >>> def loss(params):
        ...     return params["scale"] * params["shift"] ** 2
        >>> at, along = {"scale": 1.0, "shift": 3.0}, {"scale": 0.0, "shift": 1.0}
        >>> print(jax.tree.map(float, hvp(loss)(at, along)))
        {'scale': 6.0, 'shift': 2.0}
    """
    check_function("fun", fun)
    argnums = _static_argnums(argnums)

    def product(*primals_and_tangents: Any, **shared: Any) -> Any:
        if len(primals_and_tangents) < 2:
            got = len(primals_and_tangents)
            raise TypeError(f"the product takes arguments of `fun` and then tangents, got {got}")
        *primals, tangents = primals_and_tangents
        at, of_chosen = _closed_over(partial(fun, **shared), argnums, primals)
        tree = _with_arrays(at)
        value_and_grad = jax.value_and_grad(lambda arrays: of_chosen(tree.with_arrays(arrays)))
        moves = tree.arrays, tree.tangents(tangents)
        (value, gradient), (_, along) = jax.jvp(value_and_grad, moves[:1], moves[1:])
        along = tree.derivatives(along)
        return (value, tree.derivatives(gradient), along) if has_value else along

    return product


def _static_argnums(argnums: Argnums) -> Argnums:
    """One position or several as Python ints."""
    if isinstance(argnums, Sequence):
        return tuple(as_index("argnums", i) for i in argnums)
    return as_index("argnums", argnums)


def _closed_over(
    fun: Callable[..., Any], argnums: Argnums, primals: Sequence[Any]
) -> tuple[Any, Callable[[Any], Any]]:
    """The arguments at `argnums`, and `fun` as a function of those alone."""
    count = len(primals)
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if any(not -count <= i < count for i in chosen):
        arguments = f"{count} positional arguments"
        raise ValueError(
            f"`argnums` must lie in [{-count}, {count}) for {arguments}, got {argnums}"
        )
    if len({i % count for i in chosen}) < len(chosen):
        raise ValueError(f"`argnums` must not name an argument twice, got {argnums}")
    at = primals[argnums] if isinstance(argnums, int) else tuple(primals[i] for i in chosen)

    def of_chosen(at: Any) -> Any:
        arguments = list(primals)
        for i, a in zip(chosen, (at,) if isinstance(argnums, int) else at, strict=True):
            arguments[i] = a
        return fun(*arguments)

    return at, of_chosen


def _with_arrays(at: Any) -> Floating:
    """What is differentiated by, which has floating arrays."""
    tree = Floating(at)
    if not tree.arrays:
        kinds = {str(jnp.result_type(a)) for a in jax.tree.leaves(at) if is_number(a)}
        got = " and ".join(sorted(kinds)) or "none"
        raise TypeError(f"what `argnums` chooses must hold floating arrays, got {got}")
    return tree


def _per_example(
    transform: Callable[[Callable[..., Any], Argnums], Callable[..., Any]],
    order: int,
    fun: Callable[..., Any],
    argnums: Argnums,
    batch_ndim: int,
) -> Callable[..., Any]:
    """The transform of `order` of `fun`, of each example."""
    check_function("fun", fun)
    batch_ndim = as_count("batch_ndim", batch_ndim, 0)
    argnums = _static_argnums(argnums)

    def derivative(*primals: Any, **shared: Any) -> Any:
        def each(*primals: Any) -> Any:
            one = partial(fun, **shared)
            at, of_chosen = _closed_over(one, argnums, primals)
            tree = _with_arrays(at)
            if tree.is_whole:
                return transform(one, argnums)(*primals)
            return _of_floating(transform, order, of_chosen, tree)

        if not batch_ndim:
            return each(*primals)
        leaves, structure = jax.tree.flatten(primals)
        batched = [i for i, leaf in enumerate(leaves) if is_number(leaf)]

        def of_batched(*arrays: jax.Array) -> Any:
            filled = list(leaves)
            for i, a in zip(batched, arrays, strict=True):
                filled[i] = a
            return each(*jax.tree.unflatten(structure, filled))

        for _ in range(batch_ndim):
            of_batched = jax.vmap(of_batched)
        return of_batched(*(leaves[i] for i in batched))

    return derivative


def _of_floating(
    transform: Callable[..., Any], order: int, fun: Callable[[Any], Any], tree: Floating
) -> Any:
    """The transform of `fun` by the floating leaves of its argument, as a tree of trees."""
    outputs = []

    def of_arrays(arrays: list[jax.Array]) -> Any:
        y = fun(tree.with_arrays(arrays))
        outputs[:] = [jax.tree.structure(y), [jnp.shape(a) for a in jax.tree.leaves(y)]]
        return y

    dense = transform(of_arrays, 0)(tree.arrays)
    structure, shapes = outputs

    def nested(block: Any, shape: tuple[int, ...], order: int) -> Any:
        if not order:
            return block
        inner = [
            nested(b, (*shape, *jnp.shape(a)), order - 1)
            for a, b in zip(tree.arrays, block, strict=True)
        ]
        return tree.derivatives(inner, shape)

    blocks = zip(structure.flatten_up_to(dense), shapes, strict=True)
    return jax.tree.unflatten(structure, [nested(b, shape, order) for b, shape in blocks])


def _jacobian(fun: Callable[..., Any], argnums: Argnums) -> Callable[..., Any]:
    """The Jacobian in the mode that needs fewer products."""

    def size(tree: Any) -> int:
        return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))

    def derivative(*primals: Any) -> Any:
        chosen = [argnums] if isinstance(argnums, int) else argnums
        inputs = size([primals[i] for i in chosen])
        outputs = jax.tree.leaves(jax.eval_shape(fun, *primals))
        is_real = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in outputs)
        is_short = sum(leaf.size for leaf in outputs) < inputs
        return (jax.jacrev if is_real and is_short else jax.jacfwd)(fun, argnums)(*primals)

    return derivative

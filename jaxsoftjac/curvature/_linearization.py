"""A model at one point of its parameters: outputs, v ↦ Jv and u ↦ Jᵀu, and what stands beside.

>>> line = linearize(lambda x: 3 * x, jnp.array(2.0))
>>> print(line.outputs, line.push(jnp.array(1.0)), line.pull(jnp.array(1.0)))
6.0 3.0 3.0
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftjac.functions import softmax

Model = Callable[[Any, Any], jax.Array]


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

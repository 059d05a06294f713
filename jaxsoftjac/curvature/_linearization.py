"""A model at one point of its parameters: its outputs, v ↦ Jv and u ↦ Jᵀu.

>>> line = linearize(lambda x: 3 * x, jnp.array(2.0))
>>> print(line.outputs, line.push([jnp.array(1.0)]), *line.pull(jnp.array(1.0)))
6.0 3.0 3.0
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import AxisName, check_axis_name, check_function, checked_number
from jaxsoftjac._rules import varying
from jaxsoftjac._trees import Floating

Model = Callable[[Any, Any], jax.Array]


class Linearization(NamedTuple):
    """A function of the parameters at one point: its outputs, v ↦ Jv, and u ↦ Jᵀu.

    Both v and Jᵀu are lists, of the floating arrays among the parameters.
    """

    params: Floating
    outputs: Any
    push: Callable[[Sequence[Any]], Any]
    pull: Callable[[Any], list[Any]]


def linearize(
    outputs_of: Callable[[Any], Any], params: Any, batch_axis_name: AxisName | None = None
) -> Linearization:
    """The linearisation of a function, and its transpose, from one forward pass.

    The outputs may be those of a part of the examples, which are split over a mapped axis: Jᵀu is
    added up over it.
    """
    tree = Floating(params)
    arrays = varying([jnp.asarray(a) for a in tree.arrays], batch_axis_name)
    outputs, push = jax.linearize(lambda arrays: outputs_of(tree.with_arrays(arrays)), arrays)
    transpose = jax.linear_transpose(push, arrays)

    def pull(u: Any) -> list[Any]:
        own = transpose(u)[0]
        return own if batch_axis_name is None else lax.psum(own, batch_axis_name)

    return Linearization(tree, outputs, lambda v: push(varying(list(v), batch_axis_name)), pull)


def add_scaled(tree: Any, scale: ArrayLike, other: Any) -> Any:
    """The sum tree + scale·other, in the dtypes of the tree."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(scale, a.dtype) * b, tree, other)


def check_model(
    model: Any, damping: ArrayLike = 0.0, batch_axis_name: AxisName | None = None
) -> None:
    """Raises unless the model is a function, and the damping ≥ 0 or traced."""
    check_function("model", model)
    check_axis_name(batch_axis_name, "batch_axis_name")
    checked_number("damping", damping, "be ≥ 0", lambda damping: damping >= 0)

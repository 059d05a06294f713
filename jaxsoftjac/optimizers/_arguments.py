"""What the optimizers take: their options, the arguments of an update, and its parameters."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_index, checked_number, wide, working_dtype
from jaxsoftjac._trees import Floating

Schedule = ArrayLike | Callable[[Any], Any]


def at_step(value: Schedule, step: jax.Array) -> ArrayLike:
    """A number, or what a schedule says at this step."""
    return value(step) if callable(value) else value


def check_least(least: float, **options: Any) -> None:
    """Raises where an option is no number, or a known one that is less."""
    for name, value in options.items():
        if not callable(value):  # a schedule
            checked_number(name, value, f"be ≥ {least}", lambda number: number >= least)


def check_given(**arguments: Any) -> None:
    """Raises where the update lacks an argument."""
    for name, value in arguments.items():
        if value is None:
            raise ValueError(f"`{name}` must be given to the update")


def loss_options(ignore_index: int | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of the loss, of parameters that each device has whole."""
    if "axis_name" in (options or {}):
        advice = "call the update under `jit`, with arrays that are split"
        raise ValueError(f"`options` must not have `axis_name`: {advice}")
    ignored = (
        {} if ignore_index is None else {"ignore_index": as_index("ignore_index", ignore_index)}
    )
    return {**(options or {}), **ignored}


def floating(params: Any) -> tuple[Floating, jnp.dtype]:
    """The floating arrays of the parameters, and the dtype of numbers that belong to all."""
    tree = Floating(params)
    tree.check_arrays("params")
    dtypes = [jnp.result_type(a) for a in tree.arrays] or [jnp.result_type(float)]
    return tree, working_dtype(max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits))


def zeros_of(tree: Floating) -> Any:
    """Zeros in the structure of the parameters, in their working dtype."""
    return tree.updates([jnp.zeros_like(wide(jnp.asarray(a))) for a in tree.arrays])


def whole(params: Any, all_params: Any) -> Any:
    """The parameters, with those that optax masks taken from `all_params`."""
    if all_params is None:
        if any(map(_is_masked, jax.tree.leaves(params, is_leaf=_is_masked))):
            raise ValueError(
                "`all_params` must be given to the update, whose parameters are masked"
            )
        return params
    return jax.tree.map(
        lambda p, of_all: of_all if _is_masked(p) else p, params, all_params, is_leaf=_is_masked
    )


def _is_masked(p: Any) -> bool:
    return isinstance(p, optax.MaskedNode)


def called(function: Callable[..., Any], params: Any, arguments: Mapping[str, Any]) -> Any:
    """`function` at the parameters, given those of the arguments that it has a name for."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(params, **arguments)
    names = {p.name for p in parameters}
    return function(params, **{k: v for k, v in arguments.items() if k in names})


def key_of_step(seed: ArrayLike, step: jax.Array) -> jax.Array:
    """A key for each step, so that none has to be kept in the state."""
    return jax.random.fold_in(jax.random.key(seed), step)

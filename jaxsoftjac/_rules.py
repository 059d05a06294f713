"""How the rules of differentiation are written here.

`jax.custom_vjp` alone refuses jvp and jacfwd. Here a rule is a `jax.custom_jvp`, linear in the
tangents: JAX runs its transpose in reverse mode, so that one rule serves every mode and nesting. A
product with J is a `lax.custom_linear_solve`, which is its own transpose by declaration (see
`products.softmax_product`). Three habits make this hold to every order:

- The value in a rule comes from the function itself, not from its formula: otherwise the second
  derivative would see the formula and lose the structure.
- The linear program runs under `jax.checkpoint`, so that a linearisation keeps the arguments and
  nothing computed from them.
- Each formula is differentiable as it stands: JAX 0.10 drops the rules of what it has linearised
  inside `lax.scan`, and second derivatives there rest on it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._checks import AxisName


def recomputed(
    function: Callable[..., Any] | None = None, *, static_argnums: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """`function`, whose derivatives keep its arguments only and compute the rest again.

    A function with static arguments is a program of its own: it is traced once for all that call
    it, and an eager backward pass is one dispatch.
    """
    if function is None:
        return partial(recomputed, static_argnums=static_argnums)
    if static_argnums:
        function = jax.jit(function, static_argnums=static_argnums)
    return jax.checkpoint(function, prevent_cse=False, static_argnums=static_argnums)


def compiled(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function once for each value of its `static` keyword arguments.

    A call outside of jit then costs one dispatch; inside, nothing is left of it.
    """
    return partial(jax.jit, static_argnames=static, inline=True)


def varying(tree: Any, axis_name: AxisName | None) -> Any:
    """The arrays, which JAX then takes to differ between the slices of a mapped axis.

    Their cotangents are added over the slices once, outside a loop over blocks and not inside it.
    """
    if axis_name is None:
        return tree
    zero = 0 * lax.axis_index(axis_name)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)


def quotient(a: jax.Array, b: jax.Array) -> jax.Array:
    """a/b, and 0 where b is 0, with derivatives that stay in range.

    It is the solution q of b·q = a, so that q̇ = (ȧ − ḃq)/b to every order. JAX's own rule for a
    division forms 1/b², which overflows where b is small.
    """
    inverse = lax.stop_gradient(jnp.where(b == 0, 0, 1 / jnp.where(b == 0, 1, b)))
    return lax.custom_linear_solve(lambda q: b * q, a, lambda _, a: a * inverse, symmetric=True)

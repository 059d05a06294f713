"""A member of the family at one row: softmax or α-entmax, and its Jacobian in several ways.

>>> import jax.numpy as jnp
>>> print(member(jnp.array([1.0, 0.5, -1.0]), 2.0).product(jnp.array([1.0, 0.0, 7.0])))
[ 0.5 -0.5  0. ]
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftjac.functions import softmax
from jaxsoftjac.operators import EntmaxJacobian
from jaxsoftjac.products import softmax_vjp
from jaxsoftjac.sparse import entmax
from jaxsoftjac.sparse._functions import alpha_in_range


class Member(NamedTuple):
    """One row of softmax or α-entmax, and how its Jacobian can be had.

    Attributes:
        function: of which J is the derivative.
        p: its value.
        sigma: s/Σs, at which J is Σs times that of softmax.
        scale: Σs.
        product: v → Jv.
    """

    function: Callable[[jax.Array], jax.Array]
    p: jax.Array
    sigma: jax.Array
    scale: jax.Array
    product: Callable[[jax.Array], jax.Array]


def member(x: jax.Array, alpha: float) -> Member:
    """The member of the family at this row."""
    if alpha == 1:
        sigma = softmax(x)
        return Member(softmax, sigma, sigma, jnp.ones_like(x[0]), lambda v: softmax_vjp(v, sigma))
    J = EntmaxJacobian.from_logits(x, alpha)
    return Member(lambda x: entmax(x, alpha), entmax(x, alpha), J.softmax.sigma, J.scale, J.mv)


def one_alpha(alpha: float) -> float:
    """The α of all rows, a Python number."""
    checked = alpha_in_range(alpha)
    if not isinstance(checked, float):
        raise ValueError(f"`alpha` must be one number, got an array of shape {jnp.shape(alpha)}")
    return checked


def amplification(p: jax.Array, alpha: float) -> jax.Array:
    """How much larger the relative rounding errors of s may be than those of a softmax."""
    if alpha == 1:
        return jnp.ones_like(p[0])
    ratio = jnp.where(p > 0, jnp.max(p) / jnp.where(p > 0, p, 1), 1)
    return 1 + abs(2 - alpha) * jnp.max(ratio ** (alpha - 1) - 1) / (alpha - 1)

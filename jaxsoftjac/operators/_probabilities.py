"""The probabilities at which J is taken, and which of their classes count.

>>> rows = Probabilities(jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, -200.0, -jnp.inf]))
>>> print(rows.kept, rows.on_simplex)       # σ₁ has underflowed, the last class is excluded
[ True  True False] True
"""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from jaxsoftjac._checks import wide
from jaxsoftjac._row_functions import log_softmax_rows, softmax_rows
from jaxsoftjac._rows import LAST, class_logits
from jaxsoftjac._rules import compiled


class Probabilities(NamedTuple):
    """σ, and log σ where it is known: then σ comes from logits, and Σσ̇ = 0."""

    sigma: jax.Array
    log_sigma: jax.Array | None

    @property
    def on_simplex(self) -> bool:
        """Whether every tangent of σ has Σσ̇ = 0."""
        return self.log_sigma is not None

    @property
    def kept(self) -> jax.Array:
        """Which classes are not excluded."""
        if self.log_sigma is None:
            return jnp.ones_like(self.sigma, bool)
        return self.log_sigma != -jnp.inf

    @property
    def counted(self) -> jax.Array:
        """Which of them have an eigenvalue that is not 0; from logits all, σ may underflow."""
        return self.sigma > 0 if self.log_sigma is None else self.kept

    @property
    def log_counted(self) -> jax.Array:
        """Log σ of those, 0 elsewhere."""
        if self.log_sigma is None:
            return jnp.log(jnp.where(self.counted, self.sigma, 1))
        return jnp.where(self.counted, self.log_sigma, 0)

    def astype(self, dtype: jnp.dtype) -> "Probabilities":
        """The same in another precision."""
        return jax.tree.map(lambda a: a.astype(dtype), self)


class OfProbabilities:
    """What a frozen pytree of probabilities is made of."""

    sigma: jax.Array
    log_sigma: jax.Array | None
    dtype: jnp.dtype

    def _set(self, sigma: jax.Array, log_sigma: jax.Array | None, dtype: jnp.dtype) -> None:
        for name, value in (("sigma", sigma), ("log_sigma", log_sigma), ("dtype", dtype)):
            object.__setattr__(self, name, value)

    @classmethod
    def _make(cls, sigma: jax.Array, log_sigma: jax.Array | None, dtype: jnp.dtype) -> Self:
        operator = object.__new__(cls)
        operator._set(sigma, log_sigma, dtype)
        return operator

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], jnp.dtype]:
        """Leaves σ and log σ; the dtype is static."""
        keys = GetAttrKey("sigma"), GetAttrKey("log_sigma")
        return tuple(zip(keys, (self.sigma, self.log_sigma), strict=True)), self.dtype

    @classmethod
    def tree_unflatten(cls, dtype: jnp.dtype, leaves: tuple[Any, Any]) -> Self:
        """The operator of given leaves, unchecked: they need not be arrays."""
        sigma, log_sigma = leaves
        return cls._make(sigma, log_sigma, dtype)


@compiled("axis")
def of_logits(x: jax.Array, where: jax.Array | None, *, axis: int) -> tuple[jax.Array, jax.Array]:
    """σ and log σ of checked logits, whose classes are moved last."""
    x, _ = class_logits("x", x, axis, where)
    row = wide(jnp.moveaxis(x, axis, -1))
    return softmax_rows(row, LAST), log_softmax_rows(row, LAST)

"""The probabilities at which J is taken, and which of their classes count.

>>> rows = Probabilities(jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, -200.0, -jnp.inf]))
>>> print(rows.kept, rows.on_simplex)       # σ₁ has underflowed, the last class is excluded
[ True  True False] True
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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

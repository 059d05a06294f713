"""The Jacobian of α-entmax: a number times that of softmax at another point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_index, as_real, wide, working_dtype
from jaxsoftjac._row_functions import logsumexp_rows
from jaxsoftjac._rows import LAST, class_logits
from jaxsoftjac._rules import compiled
from jaxsoftjac.operators._arguments import checked_damping, compiled_method
from jaxsoftjac.operators._lineax import semidefinite_operator
from jaxsoftjac.operators._operator import SoftmaxJacobian
from jaxsoftjac.operators._secular import Eigh
from jaxsoftjac.sparse._functions import (
    alpha_in_range,
    checked_alpha,
    family_rows,
    parts_of,
    whole_of,
)
from jaxsoftjac.sparse._powers import log_weights

if TYPE_CHECKING:
    from lineax import FunctionLinearOperator


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class EntmaxJacobian:
    """J = diag(s) − ssᵀ/Σs with s = p^{2−α} of each row p of α-entmax, never stored.

    It is Σs·(diag(σ) − σσᵀ) at σ = s/Σs: every method is that of `SoftmaxJacobian`, times a power
    of Σs, and costs the same. Classes outside the support are outside the operator: products,
    eigenvalues and solutions are 0 there, and rank (support less one) and determinant do without.

    A frozen pytree, batched over leading axes: usable under jit, vmap, grad and scan.

    Attributes:
        softmax: the operator at σ = s/Σs.
        scale: Σs of each row, shape [...]; 1 for a row without classes.
        dtype: of the results, together with the dtype of what J is applied to.

    >>> J = EntmaxJacobian.from_logits(jnp.array([1.0, 0.5, -1.0]), alpha=2)
    >>> print(J @ jnp.array([1.0, 0.0, 7.0]), J.rank())
    [ 0.5 -0.5  0. ] 1
    """

    softmax: SoftmaxJacobian
    scale: jax.Array
    dtype: Any

    @classmethod
    def from_logits(
        cls,
        x: ArrayLike,
        alpha: ArrayLike = 1.5,
        axis: int = -1,
        where: ArrayLike | None = None,
    ) -> "EntmaxJacobian":
        """J at p = entmax(x, alpha).

        Args:
            x: logits; integers are cast to float first.
            alpha: α in [1, 4], a number or an array of the shape of `x` without `axis`.
            axis: the class axis, moved last.
            where: boolean, broadcast to `x`: the classes to keep.

        Returns:
            The operator; 0 for a row without classes.

        Raises:
            TypeError: `x` or `alpha` is boolean or complex, or `where` is not boolean.
            ValueError: `axis` or `alpha` is out of range, or `where` or `alpha` does not broadcast.
        """
        x, where = as_real("x", x), None if where is None else as_array("where", where)
        known, traced = parts_of(alpha_in_range(alpha))
        axis = as_index("axis", axis)
        softmax, scale = _parts(x, where, traced, axis=axis, alpha=known)
        return cls(softmax, scale, x.dtype)

    @compiled_method("v")
    def mv(self, v: ArrayLike) -> jax.Array:
        """Jv for `v` of the shape of x. O(K)."""
        return self._times("v", v, self.softmax.mv, self._per_class(1))

    def __matmul__(self, v: ArrayLike) -> jax.Array:
        """Jv for a vector of the shape of x, or for each column of a matrix [..., K, M]."""
        v = as_real("v", v)
        if v.ndim == self.softmax.sigma.ndim + 1:
            return jax.vmap(self.mv, in_axes=-1, out_axes=-1)(v)
        return self.mv(v)

    @compiled_method()
    def as_matrix(self) -> jax.Array:
        """Dense J [..., K, K], symmetric to the bit. O(K²)."""
        return (self.scale[..., None, None] * self.softmax.as_matrix()).astype(self.dtype)

    @compiled_method()
    def diagonal(self) -> jax.Array:
        """sᵢ(1 − sᵢ/Σs). O(K)."""
        return self._rounded(self._per_class(1) * self.softmax.diagonal())

    @compiled_method()
    def trace(self) -> jax.Array:
        """Σs − Σs²/Σs. O(K)."""
        return self._rounded(self.scale * self.softmax.trace())

    @compiled_method()
    def frobenius_norm(self) -> jax.Array:
        """‖J‖_F. O(K)."""
        return self._rounded(self.scale * self.softmax.frobenius_norm())

    @compiled_method("v")
    def quadratic(self, v: ArrayLike) -> jax.Array:
        """vᵀJv ≥ 0: Σs times the variance of v under σ. O(K)."""
        return self._times("v", v, self.softmax.quadratic, self.scale)

    @compiled_method("v")
    def pinv_mv(self, v: ArrayLike) -> jax.Array:
        """J⁺v: the least-norm solution, of sum 0 on the support. O(K)."""
        return self._times("v", v, self.softmax.pinv_mv, self._per_class(-1))

    def solve(self, b: ArrayLike, damping: ArrayLike) -> jax.Array:
        """(J + diag(δ))⁻¹b on the support, 0 outside of it; arguments as `SoftmaxJacobian`'s. O(K).

        Raises:
            TypeError: an argument is boolean or complex.
            ValueError: `b` or `damping` has a wrong shape, or `damping` is a Python or NumPy
                value that is not positive.
        """
        return self._solve(as_real("b", b), checked_damping(damping, self.softmax.sigma))

    @compiled_method("b", "damping")
    def _solve(self, b: jax.Array, damping: jax.Array) -> jax.Array:
        delta = damping.astype(self.scale.dtype) * self._per_class(-1)
        return self._times("b", b, partial(self.softmax.solve, damping=delta), self._per_class(-1))

    @compiled_method("w")
    def factor_mv(self, w: ArrayLike) -> jax.Array:
        """Fw with FFᵀ = J. O(K)."""
        return self._times("w", w, self.softmax.factor_mv, self._per_class(0.5))

    @compiled_method("v")
    def factor_t_mv(self, v: ArrayLike) -> jax.Array:
        """Fᵀv, the transpose of `factor_mv`. O(K)."""
        return self._times("v", v, self.softmax.factor_t_mv, self._per_class(0.5))

    def sample(self, key: jax.Array, shape: int | Sequence[int] = ()) -> jax.Array:
        """Draws from the normal distribution N(0, J): array [*shape, ..., K]. O(K) each."""
        draws = self.softmax.sample(key, shape)
        return self._rounded(jnp.broadcast_to(self._per_class(0.5), draws.shape) * draws)

    @compiled_method("v")
    def sqrt_mv(self, v: ArrayLike) -> jax.Array:
        """J^{1/2}v, the symmetric square root. O(K)."""
        return self._times("v", v, self.softmax.sqrt_mv, self._per_class(0.5))

    @compiled_method()
    def spectral_norm(self) -> jax.Array:
        """λ_max ≤ Σs/2. O(K) per iteration."""
        return self._rounded(self.scale * self.softmax.spectral_norm())

    @compiled_method()
    def spectral_bounds(self) -> tuple[jax.Array, jax.Array]:
        """Lower and upper bound of λ_max. O(K)."""
        lower, upper = self.softmax.spectral_bounds()
        return self._rounded(self.scale * lower), self._rounded(self.scale * upper)

    @compiled_method()
    def eigvalsh(self) -> jax.Array:
        """All eigenvalues [..., K], ascending. O(K²), no K×K in memory."""
        return self._rounded(self._per_class(1) * self.softmax.eigvalsh())

    @compiled_method()
    def eigh(self) -> Eigh:
        """Eigenvalues and orthonormal eigenvectors. O(K²)."""
        values, vectors = self.softmax.eigh()
        return Eigh(self._rounded(self._per_class(1) * values), self._rounded(vectors))

    @compiled_method("rtol")
    def rank(self, *, rtol: ArrayLike | None = None) -> jax.Array:
        """Number of eigenvalues above rtol·λ_max: one less than the support has classes. O(K)."""
        return self.softmax.rank(rtol=rtol)

    @compiled_method()
    def log_pdet(self) -> jax.Array:
        """Log of the product of the eigenvalues that are not 0. O(K)."""
        count = jnp.maximum(jnp.sum(self.softmax.sigma > 0, -1) - 1, 0).astype(self.scale.dtype)
        return self._rounded(count * jnp.log(self.scale) + self.softmax.log_pdet())

    def as_lineax(self) -> "FunctionLinearOperator":
        """A `lineax` operator, symmetric and positive semi-definite.

        Raises:
            ImportError: lineax is not installed.
        """
        vectors = jax.ShapeDtypeStruct(self.softmax.sigma.shape, self.dtype)
        return semidefinite_operator(self.mv, vectors)

    def _per_class(self, power: float) -> jax.Array:
        """A power of the scale, beside the classes."""
        return (self.scale**power)[..., None]

    def _rounded(self, a: jax.Array) -> jax.Array:
        return a.astype(self.dtype)

    def _times(
        self,
        name: str,
        v: ArrayLike,
        method: Callable[[jax.Array], jax.Array],
        factor: jax.Array,
    ) -> jax.Array:
        """The factor times what a method of the softmax operator makes of `v`, rounded once."""
        v = as_real(name, v)
        dtype = jnp.promote_types(v.dtype, self.dtype)
        compute = working_dtype(dtype)
        return (factor.astype(compute) * method(v.astype(compute))).astype(dtype)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        """Leaves: the softmax operator and the scale; the dtype is static."""
        keys = jax.tree_util.GetAttrKey("softmax"), jax.tree_util.GetAttrKey("scale")
        return tuple(zip(keys, (self.softmax, self.scale), strict=True)), self.dtype

    @classmethod
    def tree_unflatten(cls, dtype: Any, leaves: tuple[Any, Any]) -> "EntmaxJacobian":
        """The operator of given leaves, unchecked: they need not be arrays."""
        softmax, scale = leaves
        return cls(softmax, scale, dtype)


@compiled("axis", "alpha")
def _parts(
    x: jax.Array,
    where: jax.Array | None,
    traced: jax.Array | None,
    *,
    axis: int,
    alpha: float | None,
) -> tuple[SoftmaxJacobian, jax.Array]:
    """The operator at s/Σs, and Σs."""
    x, _ = class_logits("x", x, axis, where)
    row = wide(jnp.moveaxis(x, axis, -1))
    of_rows = checked_alpha(whole_of(alpha, traced), row, LAST)
    if isinstance(of_rows, float) and of_rows == 1:  # p = s may underflow
        return SoftmaxJacobian.from_logits(row), jnp.ones_like(row[..., 0])
    log_s = log_weights(family_rows(row, of_rows, LAST), of_rows)
    total = logsumexp_rows(log_s, LAST)[..., 0]
    is_empty = total == -jnp.inf
    scale = jnp.where(is_empty, 1, jnp.exp(jnp.where(is_empty, 0, total)))
    return SoftmaxJacobian.from_logits(log_s), scale

"""The operator itself: its methods, and the derivatives along which σ moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_array, as_index, as_real, same_shape, wide, working_dtype
from jaxsoftjac._closed_forms import (
    dense_jacobian,
    diagonal,
    frobenius_norm,
    largest_eigenvalue_bounds,
)
from jaxsoftjac.operators._arguments import checked_damping, checked_sigma, compiled_method, normal
from jaxsoftjac.operators._lineax import semidefinite_operator
from jaxsoftjac.operators._matrix_products import (
    damped_solution,
    factor_product,
    factor_t_product,
    product,
    pseudo_inverse_product,
    square_root_product,
    variance,
)
from jaxsoftjac.operators._probabilities import OfProbabilities, Probabilities, of_logits
from jaxsoftjac.operators._secular import (
    Eigh,
    count_above,
    eigensystem,
    eigenvalues,
    largest_eigenvalue,
)

if TYPE_CHECKING:
    from lineax import FunctionLinearOperator


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, init=False, eq=False)
class SoftmaxJacobian(OfProbabilities):
    """J = diag(σ) − σσᵀ of each row of σ, never stored: symmetric, positive semi-definite, J1 = 0.

    A frozen pytree, batched over leading axes: usable under jit, vmap, grad and scan. Built from
    σ, its derivatives are those of the matrix diag(σ) − σσᵀ. Built by `from_logits` it also holds
    log σ, so that what is lost when σ underflows is kept, and derivatives are along Σσ̇ = 0.

    Classes that `where` or a logit −∞ excludes are outside the operator: products are 0 there, and
    rank, determinant and eigenvalues (0 there) leave them out. With one class J is 0.

    Args:
        sigma: probabilities [..., K], Σσ = 1 along the last axis (the caller's promise).

    Attributes:
        sigma: σ in the precision of the computations, at least float32.
        log_sigma: log σ, −∞ at excluded classes; None if built from σ.
        dtype: of the results, together with the dtype of what J is applied to.

    Raises:
        TypeError: `sigma` is not floating.
        ValueError: `sigma` has no axis.

    Examples:
        >>> J = SoftmaxJacobian(jnp.array([0.5, 0.25, 0.25]))
        >>> print(J.mv(jnp.array([1.0, 0.0, 0.0])), J.trace())
        [ 0.25  -0.125 -0.125] 0.625
    """

    sigma: jax.Array
    log_sigma: jax.Array | None
    dtype: jnp.dtype

    def __init__(self, sigma: ArrayLike):
        """J of given probabilities."""
        sigma = checked_sigma(sigma)
        self._set(wide(sigma), None, sigma.dtype)

    @classmethod
    def from_logits(
        cls, x: ArrayLike, axis: int = -1, where: ArrayLike | None = None
    ) -> "SoftmaxJacobian":
        """J at σ = softmax(x).

        Args:
            x: logits; integers are cast to float first.
            axis: the class axis, moved last.
            where: boolean, broadcast to `x`: the classes to keep.

        Returns:
            The operator; 0 for a row without classes.

        Raises:
            TypeError: `x` is boolean or complex, or `where` is not boolean.
            ValueError: `axis` is out of range, or `where` does not broadcast to `x`.

        Examples:
            >>> J = SoftmaxJacobian.from_logits(jnp.array([0.0, -200.0], jnp.float32))
            >>> print(J.sigma, J.log_pdet())        # log det from log σ: σ₁ underflows
            [1. 0.] -199.30685
        """
        where = None if where is None else as_array("where", where)
        x = as_real("x", x)
        sigma, log_sigma = of_logits(x, where, axis=as_index("axis", axis))
        return cls._make(sigma, log_sigma, x.dtype)

    @compiled_method("v")
    def mv(self, v: ArrayLike) -> jax.Array:
        """Jv = σ⊙(v − ⟨σ, v⟩) for `v` of the shape of σ, centred as in `softmax_vjp`. O(K)."""
        v, rows, dtype = self._with("v", v)
        return product(v, rows.sigma, rows.on_simplex).astype(dtype)

    def __matmul__(self, v: ArrayLike) -> jax.Array:
        """Jv for a vector of the shape of σ, or for each column of a matrix [..., K, M]."""
        v = as_real("v", v)
        if v.ndim == self.sigma.ndim + 1:
            return jax.vmap(self.mv, in_axes=-1, out_axes=-1)(v)
        return self.mv(v)

    @compiled_method()
    def as_matrix(self) -> jax.Array:
        """Dense J [..., K, K]: symmetric to the bit, its diagonal right at any gap. O(K²)."""
        return dense_jacobian(self.sigma).astype(self.dtype)

    @compiled_method()
    def diagonal(self) -> jax.Array:
        """σᵢ(1 − σᵢ), the complement of a class above 1/2 summed over the others. O(K)."""
        return diagonal(self.sigma).astype(self.dtype)

    @compiled_method()
    def trace(self) -> jax.Array:
        """Σσᵢ(1 − σᵢ) = 1 − ‖σ‖². O(K)."""
        return jnp.sum(diagonal(self.sigma), axis=-1).astype(self.dtype)

    @compiled_method()
    def frobenius_norm(self) -> jax.Array:
        """‖J‖_F, from ‖J‖_F² = Σᵢ σᵢ²(1 − σᵢ)² + Σᵢ σᵢ² Σ_{j≠i} σⱼ²: no term cancels. O(K)."""
        return frobenius_norm(self.sigma).astype(self.dtype)

    @compiled_method("v")
    def quadratic(self, v: ArrayLike) -> jax.Array:
        """vᵀJv = Σσ(v − ⟨σ, v⟩)², the variance of v under σ, ≥ 0. O(K)."""
        v, rows, dtype = self._with("v", v)
        return variance(v, rows.sigma, rows.on_simplex).astype(dtype)

    @compiled_method("v")
    def pinv_mv(self, v: ArrayLike) -> jax.Array:
        """J⁺v = M diag(1/σ) Mv, M = I − 11ᵀ/K: the least-norm solution, of sum 0. O(K).

        Classes with σ = 0 take no part, unless J was built from logits.

        >>> J = SoftmaxJacobian(jnp.array([0.5, 0.25, 0.25]))
        >>> print(J.mv(J.pinv_mv(jnp.array([2.0, -1.0, -1.0]))).round(4))
        [ 2. -1. -1.]
        """
        v, rows, dtype = self._with("v", v)
        return pseudo_inverse_product(v, rows.log_counted, rows.counted).astype(dtype)

    def solve(self, b: ArrayLike, damping: ArrayLike) -> jax.Array:
        """(J + diag(δ))⁻¹b, differentiable in σ, b and δ. O(K).

        By Sherman and Morrison, with 1 − Σσ²/(σ + δ) = Σδσ/(σ + δ), which does not cancel.

        Args:
            b: right side, of the shape of σ.
            damping: δ > 0: a scalar, one per row [...], or a diagonal [..., K].

        Returns:
            The solution, of the shape of σ; 0 at excluded classes.

        Raises:
            TypeError: an argument is boolean or complex.
            ValueError: `b` or `damping` has a wrong shape, or `damping` is a Python or NumPy
                value that is not positive.

        Examples:
            >>> J = SoftmaxJacobian(jnp.array([0.5, 0.5]))
            >>> print(J.solve(jnp.array([1.0, -1.0]), 0.5))     # J + I/2 has eigenvalues ½ and 1
            [ 1. -1.]
        """
        b = as_real("b", b)
        same_shape("b", b, "sigma", self.sigma)
        return self._solve(b, checked_damping(damping, b))

    @compiled_method("b", "damping")
    def _solve(self, b: jax.Array, damping: jax.Array) -> jax.Array:
        b, rows, dtype = self._with("b", b)
        kept = rows.kept
        delta = damping.astype(b.dtype)
        x = damped_solution(jnp.where(kept, b, 0), rows.sigma, delta, rows.on_simplex)
        return jnp.where(kept, x, 0).astype(dtype)

    @compiled_method("w")
    def factor_mv(self, w: ArrayLike) -> jax.Array:
        """Fw with F = diag(√σ) − σ√σᵀ, FFᵀ = J; a root of 0 is a constant of derivatives. O(K).

        >>> J, v = SoftmaxJacobian(jnp.array([0.25, 0.75])), jnp.array([1.0, 0.0])
        >>> print(J.factor_mv(J.factor_t_mv(v)), J.mv(v))
        [ 0.1875 -0.1875] [ 0.1875 -0.1875]
        """
        w, rows, dtype = self._with("w", w)
        return factor_product(w, rows.sigma, rows.on_simplex).astype(dtype)

    @compiled_method("v")
    def factor_t_mv(self, v: ArrayLike) -> jax.Array:
        """Fᵀv = √σ⊙(v − ⟨σ, v⟩), the transpose of `factor_mv`. O(K)."""
        v, rows, dtype = self._with("v", v)
        return factor_t_product(v, rows.sigma, rows.on_simplex).astype(dtype)

    def sample(self, key: jax.Array, shape: int | Sequence[int] = ()) -> jax.Array:
        """Draws from the normal distribution N(0, J) as Fw: array [*shape, ..., K]. O(K) each."""
        w = normal(key, shape, self.sigma)
        draws = factor_product(w, jnp.broadcast_to(self.sigma, w.shape), self._rows.on_simplex)
        return draws.astype(self.dtype)

    @compiled_method("v")
    def sqrt_mv(self, v: ArrayLike) -> jax.Array:
        """J^{1/2}v, the symmetric square root, by a sum of resolvents of O(K) each."""
        v, rows, dtype = self._with("v", v)
        upper = largest_eigenvalue_bounds(rows.sigma)[1]
        return square_root_product(v, rows.sigma, upper).astype(dtype)

    @compiled_method()
    def spectral_norm(self) -> jax.Array:
        """λ_max ≤ 1/2 to full precision, differentiable. O(K) per iteration, 2 to 7 are needed."""
        return largest_eigenvalue(self.sigma, self._rows.on_simplex).astype(self.dtype)

    @compiled_method()
    def spectral_bounds(self) -> tuple[jax.Array, jax.Array]:
        """Lower and upper bound of λ_max. O(K).

        max(K/(K−1)·max σ(1−σ), σ₍₂₎) ≤ λ_max ≤ min(2 max σ(1−σ), σ₍₁₎, 1 − ‖σ‖²).
        """
        lower, upper = largest_eigenvalue_bounds(self.sigma)
        return lower.astype(self.dtype), upper.astype(self.dtype)

    @compiled_method()
    def eigvalsh(self) -> jax.Array:
        """All eigenvalues [..., K], ascending, by the secular equation: O(K²), no K×K in memory.

        Each is right to a few units in its last place. Derivatives are Hellmann and Feynman's;
        eigenvalues that tie have the mean derivative of their group.
        """
        return eigenvalues(self.sigma, self._rows.on_simplex).astype(self.dtype)

    @compiled_method()
    def eigh(self) -> Eigh:
        """Eigenvalues and orthonormal eigenvectors. O(K²).

        Derivatives are finite; eigenvectors of tied eigenvalues and of 0 have derivative 0.

        >>> J = SoftmaxJacobian(jnp.array([0.5, 0.25, 0.25]))
        >>> values, vectors = jax.jit(SoftmaxJacobian.eigh)(J)
        >>> print(values, jnp.allclose(J @ vectors, vectors * values[None]))
        [0.    0.25  0.375] True
        """
        system = eigensystem(self.sigma, self._rows.on_simplex)
        return Eigh(*(a.astype(self.dtype) for a in system))

    @compiled_method("rtol")
    def rank(self, *, rtol: ArrayLike | None = None) -> jax.Array:
        """Number of eigenvalues above rtol·λ_max, by inertia; `rtol` is K·ε as in NumPy. O(K)."""
        sigma = self.sigma
        rtol = sigma.shape[-1] * float(jnp.finfo(sigma.dtype).eps) if rtol is None else rtol
        least = jnp.asarray(rtol, sigma.dtype) * largest_eigenvalue(sigma)
        return count_above(sigma, least[..., None])

    @compiled_method()
    def log_pdet(self) -> jax.Array:
        """Log of the product of the eigenvalues that are not 0: log K + Σ log σ. O(K)."""
        count = jnp.maximum(jnp.sum(self._rows.counted, axis=-1), 1).astype(self.sigma.dtype)
        return (jnp.log(count) + jnp.sum(self._rows.log_counted, axis=-1)).astype(self.dtype)

    def as_lineax(self) -> "FunctionLinearOperator":
        """A `lineax` operator on vectors of the shape of σ, symmetric and positive semi-definite.

        >>> print(SoftmaxJacobian(jnp.array([0.5, 0.5])).as_lineax().mv(jnp.array([1.0, 0.0])))
        [ 0.25 -0.25]

        Raises:
            ImportError: lineax is not installed.
        """
        vectors = jax.ShapeDtypeStruct(self.sigma.shape, self.dtype)
        return semidefinite_operator(self.mv, vectors)

    @property
    def _rows(self) -> Probabilities:
        return Probabilities(self.sigma, self.log_sigma)

    def _with(self, name: str, v: ArrayLike) -> tuple[jax.Array, Probabilities, jnp.dtype]:
        """Checked `v` and the probabilities in one working precision, and the result's dtype."""
        v = as_real(name, v)
        same_shape(name, v, "sigma", self.sigma)
        dtype = jnp.promote_types(v.dtype, self.dtype)
        compute = working_dtype(dtype)
        return v.astype(compute), self._rows.astype(compute), dtype

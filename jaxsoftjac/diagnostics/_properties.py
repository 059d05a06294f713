"""The properties of J = diag(σ) − σσᵀ, verified on its dense matrix: for teaching and for small K.

They are those of α-entmax too, whose J is Σs times that of softmax at σ = s/Σs, s = p^{2−α}.

Why they hold, with E and Var taken under σ:

- J = Jᵀ, for σᵢσⱼ = σⱼσᵢ.
- J·1 = 0 and 1ᵀJ = 0, for Σⱼ σᵢ(δᵢⱼ − σⱼ) = σᵢ − σᵢ·Σσ = 0: probabilities keep their sum.
- vᵀJv = Σσᵢvᵢ² − (Σσᵢvᵢ)² = Var[v] ≥ 0: J is positive semi-definite.
- Var[v] = 0 only where v is constant (all σᵢ > 0), so that J·v = 0 only there: rank K − 1.
- λ_max = max Var[v] over ‖v‖ = 1, and Var[v] ≤ (max v − min v)²/4 ≤ ‖v‖²/2 (Popoviciu): λ_max is
  at most 1/2, at σ = (½, ½). The 1/4 that is often written bounds the diagonal σᵢ(1 − σᵢ).

>>> import jax.numpy as jnp
>>> bool(verify_jacobian_properties(jnp.array([2.0, 1.0, 0.5, -0.5])).all_hold)
True
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, working_dtype
from jaxsoftjac._closed_forms import largest_eigenvalue_bounds
from jaxsoftjac.dense import softmax_jacobian
from jaxsoftjac.diagnostics._member import amplification, member, one_alpha
from jaxsoftjac.operators import EntmaxJacobian

Measurements = TypeVar("Measurements")


class JacobianProperties(NamedTuple):
    """What `verify_jacobian_properties` measured, one entry per row of logits.

    Errors are absolute; a property holds when its error is within `tolerance`. The formulas are
    those of softmax: for α-entmax read s for σ, sᵢ(1 − sᵢ/Σs) for the diagonal, Σs/2 for the bound
    1/2, and for K − 1 one less than the support has classes.

    Attributes:
        tolerance: 4Ku·λ_max, u the unit roundoff: what float arithmetic can promise for this row.
        symmetry_error: max |Jᵢⱼ − Jⱼᵢ|.
        row_sum_error: max |Σⱼ Jᵢⱼ|.
        column_sum_error: max |Σᵢ Jᵢⱼ|.
        eigenvalues: eigenvalues of J, ascending, [..., K].
        smallest_eigenvalue: λ_min, 0 in exact arithmetic.
        largest_eigenvalue: λ_max, at most 1/2.
        rank: number of eigenvalues above `tolerance`.
        expected_rank: the rank in exact arithmetic, one less than there are classes (a logit −∞
            excludes one).
        smallest_numerical_rank: least rank above `tolerance` that interlacing allows (ascending,
            σ₍ᵢ₎ ≤ λᵢ₊₁ ≤ σ₍ᵢ₊₁₎); below K − 1 on peaked rows, whose numerical rank is smaller.
        largest_numerical_rank: greatest rank that interlacing allows above `tolerance`.
        null_vector_error: max |J·1|, by the O(K) product.
        diagonal_error: max |Jᵢᵢ − σᵢ(1 − σᵢ)|.
        largest_eigenvalue_lower_bound: K/(K−1)·max σᵢ(1−σᵢ), or the second largest σ if greater.
        largest_eigenvalue_upper_bound: min(2 max σᵢ(1−σᵢ), max σ, 1 − ‖σ‖²), at most 1/2.
        jacfwd_error: max |J − jacfwd(softmax)|.
        jacrev_error: max |J − jacrev(softmax)|.
        is_symmetric: J = Jᵀ.
        rows_sum_to_zero: Σⱼ Jᵢⱼ = 0.
        columns_sum_to_zero: Σᵢ Jᵢⱼ = 0.
        is_positive_semidefinite: λ_min ≥ 0.
        rank_is_expected: the rank lies between the two numerical ranks.
        annihilates_ones: J·1 = 0.
        diagonal_matches: Jᵢᵢ = σᵢ(1 − σᵢ).
        largest_eigenvalue_is_bounded: λ_max lies within its bounds, and under 1/2.
        agrees_with_autodiff: J = jacfwd = jacrev; where α is not 1, to the tolerance times what the
            rounding of p becomes in s, 1 + |2 − α|·max ((p_max/p)^{α−1} − 1)/(α − 1).
        all_hold: all of the above.

    Examples:
        >>> measured = verify_jacobian_properties(jnp.zeros(4))
        >>> print(measured.rank, measured.is_symmetric, f"{measured.largest_eigenvalue:.2f}")
        3 True 0.25
    """

    tolerance: jax.Array
    symmetry_error: jax.Array
    row_sum_error: jax.Array
    column_sum_error: jax.Array
    eigenvalues: jax.Array
    smallest_eigenvalue: jax.Array
    largest_eigenvalue: jax.Array
    rank: jax.Array
    expected_rank: jax.Array
    smallest_numerical_rank: jax.Array
    largest_numerical_rank: jax.Array
    null_vector_error: jax.Array
    diagonal_error: jax.Array
    largest_eigenvalue_lower_bound: jax.Array
    largest_eigenvalue_upper_bound: jax.Array
    jacfwd_error: jax.Array
    jacrev_error: jax.Array
    is_symmetric: jax.Array
    rows_sum_to_zero: jax.Array
    columns_sum_to_zero: jax.Array
    is_positive_semidefinite: jax.Array
    rank_is_expected: jax.Array
    annihilates_ones: jax.Array
    diagonal_matches: jax.Array
    largest_eigenvalue_is_bounded: jax.Array
    agrees_with_autodiff: jax.Array
    all_hold: jax.Array


def verify_jacobian_properties(x: ArrayLike, *, alpha: float = 1.0) -> JacobianProperties:
    """The properties of the softmax Jacobian, measured on its dense matrix.

    Symmetric, rows and columns sum to 0, positive semi-definite, rank K − 1, J·1 = 0,
    Jᵢᵢ = σᵢ(1 − σᵢ), λ_max ≤ 1/2 (1/4 bounds the diagonal, not the eigenvalues: K = 2, σ = (½, ½)
    has the eigenvalue ½), and equal to what autodiff gives.

    Cost: O(K³) per row; for wide rows there is `probe_jacobian_properties`.

    Args:
        x: logits [..., K], K ≥ 1; float16 and bfloat16 are measured in float32.
        alpha: α in [1, 4] of `entmax`, whose J = diag(s) − ssᵀ/Σs is measured; 1 is softmax.

    Returns:
        Measurements and one boolean per property, of shape [...].

    Raises:
        TypeError: `x` is boolean or complex.
        ValueError: `x` has no class axis or no classes, or `alpha` is not a number in [1, 4].

    Examples:
        >>> measured = verify_jacobian_properties(jnp.array([2.0, 1.0, 0.5, -0.5]))
        >>> print(measured.all_hold, f"λ_max = {measured.largest_eigenvalue:.3f}")
        True λ_max = 0.352
        >>> sparse = verify_jacobian_properties(jnp.array([2.0, 1.0, 0.5, -0.5]), alpha=1.5)
        >>> print(sparse.all_hold, sparse.rank)
        True 2
    """
    return over_rows(partial(_verify_row, alpha=one_alpha(alpha)), x)


def _verify_row(x: jax.Array, alpha: float) -> JacobianProperties:
    f, p, sigma, scale, product = member(x, alpha)
    ones = jnp.ones_like(x)
    J = softmax_jacobian(x) if alpha == 1 else EntmaxJacobian.from_logits(x, alpha).as_matrix()
    eigenvalues = jnp.linalg.eigvalsh(J)
    tolerance = rounding_tolerance(eigenvalues[-1], x)
    ascending = jnp.sort(scale * sigma)
    lower, upper = (scale * bound for bound in largest_eigenvalue_bounds(sigma))
    measured = {
        # Compared before it is subtracted: compilers contract σᵢσⱼ − σⱼσᵢ into a multiply-add.
        "symmetry_error": largest(jnp.where(J == J.T, 0, J - J.T)),
        "row_sum_error": largest(J.sum(axis=1)),
        "column_sum_error": largest(J.sum(axis=0)),
        "null_vector_error": largest(product(ones)),
        "diagonal_error": largest(jnp.diag(J) - scale * (sigma * _complement(sigma))),
        "jacfwd_error": largest(J - jax.jacfwd(f)(x)),
        "jacrev_error": largest(J - jax.jacrev(f)(x)),
    }
    within = {name: error <= tolerance for name, error in measured.items()}
    differing = jnp.maximum(measured["jacfwd_error"], measured["jacrev_error"])
    rank = jnp.sum(eigenvalues > tolerance)
    # An eigenvalue may err by half the tolerance on either side of it.
    ranks = jnp.sum(ascending[:-1] > 1.5 * tolerance), jnp.sum(ascending[1:] > 0.5 * tolerance)
    properties = {
        "is_symmetric": within["symmetry_error"],
        "rows_sum_to_zero": within["row_sum_error"],
        "columns_sum_to_zero": within["column_sum_error"],
        "is_positive_semidefinite": eigenvalues[0] >= -tolerance,
        "rank_is_expected": (ranks[0] <= rank) & (rank <= ranks[1]),
        "annihilates_ones": within["null_vector_error"],
        "diagonal_matches": within["diagonal_error"],
        "largest_eigenvalue_is_bounded": (lower - tolerance <= eigenvalues[-1])
        & (eigenvalues[-1] <= jnp.minimum(upper, 0.5 * scale) + tolerance),
        "agrees_with_autodiff": differing <= tolerance * amplification(p, alpha),
    }
    support = jnp.sum(x != -jnp.inf) if alpha == 1 else jnp.sum(p > 0)
    return JacobianProperties(
        tolerance=tolerance,
        eigenvalues=eigenvalues,
        smallest_eigenvalue=eigenvalues[0],
        largest_eigenvalue=eigenvalues[-1],
        rank=rank,
        expected_rank=jnp.maximum(support - 1, 0),
        smallest_numerical_rank=ranks[0],
        largest_numerical_rank=ranks[1],
        largest_eigenvalue_lower_bound=lower,
        largest_eigenvalue_upper_bound=upper,
        **measured,
        **properties,
        all_hold=all_hold(properties),
    )


def over_rows(measure: Callable[[jax.Array], Measurements], x: ArrayLike) -> Measurements:
    """`measure` of each row of logits, in the shape of the batch."""
    x = as_real("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"`x` must have shape [..., K] with K ≥ 1, got {x.shape}")
    rows = x.astype(working_dtype(x.dtype)).reshape(-1, x.shape[-1])
    measured = jax.vmap(measure)(rows)
    return jax.tree.map(lambda a: a.reshape(x.shape[:-1] + a.shape[1:]), measured)


def rounding_tolerance(scale: jax.Array, x: jax.Array) -> jax.Array:
    """4Ku·scale: what sums of K terms of that size can promise."""
    info = jnp.finfo(x.dtype)
    return 4 * x.size * jnp.maximum(float(info.eps) / 2 * scale, float(info.tiny))


def largest(error: jax.Array) -> jax.Array:
    """The largest magnitude."""
    return jnp.max(jnp.abs(error))


def all_hold(properties: dict[str, jax.Array]) -> jax.Array:
    """Whether every property holds."""
    return jnp.all(jnp.stack(list(properties.values())))


def _complement(sigma: jax.Array) -> jax.Array:
    """1 − σᵢ; for the top class the sum of the others, which does not cancel.

    Not that of `_closed_forms`, from which the matrix is made: it would be compared with itself.
    """
    is_top = jnp.arange(sigma.size) == jnp.argmax(sigma)
    return jnp.where(is_top, jnp.sum(jnp.where(is_top, 0, sigma)), 1 - sigma)

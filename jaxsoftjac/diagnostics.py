"""Measurements of J = diag(σ) − σσᵀ on given logits: pure array functions, nothing is printed.

>>> import jax.numpy as jnp
>>> bool(verify_jacobian_properties(jnp.array([2.0, 1.0, 0.5, -0.5])).all_hold)
True
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real, working_dtype
from jaxsoftjac.dense import softmax_jacobian
from jaxsoftjac.functions import log_softmax, softmax
from jaxsoftjac.products import softmax_vjp

Measurements = TypeVar("Measurements")


class JacobianProperties(NamedTuple):
    """What `verify_jacobian_properties` measured, one entry per row of logits.

    Errors are absolute; a property holds when its error is within `tolerance`.

    Attributes:
        tolerance: 4Ku·λ_max, u the unit roundoff: what float arithmetic can promise for this row.
        symmetry_error: max |Jᵢⱼ − Jⱼᵢ|.
        row_sum_error: max |Σⱼ Jᵢⱼ|.
        column_sum_error: max |Σᵢ Jᵢⱼ|.
        eigenvalues: eigenvalues of J, ascending, [..., K].
        smallest_eigenvalue: λ_min, 0 in exact arithmetic.
        largest_eigenvalue: λ_max, at most 1/2.
        rank: number of eigenvalues above `tolerance`.
        expected_rank: K − 1, the rank in exact arithmetic.
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
        agrees_with_autodiff: J = jacfwd = jacrev.
        all_hold: all of the above.
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


class JacobianProbes(NamedTuple):
    """What `probe_jacobian_properties` measured, one entry per row of logits.

    Attributes:
        tolerance: 4Ku·λ, with λ the upper bound of λ_max and u the unit roundoff.
        max_probability: max σ.
        entropy: −Σ σ log σ, nats.
        trace: Σ σᵢ(1 − σᵢ).
        frobenius_norm: ‖J‖_F.
        largest_eigenvalue_lower_bound: as in `JacobianProperties`.
        largest_eigenvalue_upper_bound: as in `JacobianProperties`.
        adjoint_error: |⟨a, Jb⟩ − ⟨b, Ja⟩| for two fixed probes with entries in [−1, 1].
        sum_error: |Σ Ja|.
        null_vector_error: max |J·1|.
        quadratic_form: ⟨a, Ja⟩, the variance of the probe under σ.
        rayleigh_quotient: ⟨w, Jw⟩/⟨w, w⟩ with w = Ja, at most λ_max.
        autodiff_error: max difference of `softmax_vjp`, `jax.vjp` and `jax.jvp` on the probe.
        is_symmetric: ⟨a, Jb⟩ = ⟨b, Ja⟩.
        products_sum_to_zero: Σ Ja = 0.
        annihilates_ones: J·1 = 0.
        is_positive_semidefinite: ⟨a, Ja⟩ ≥ 0.
        largest_eigenvalue_is_bounded: the Rayleigh quotient is under the upper bound, and that 1/2.
        agrees_with_autodiff: formula, reverse and forward mode agree.
        all_hold: all of the above.
    """

    tolerance: jax.Array
    max_probability: jax.Array
    entropy: jax.Array
    trace: jax.Array
    frobenius_norm: jax.Array
    largest_eigenvalue_lower_bound: jax.Array
    largest_eigenvalue_upper_bound: jax.Array
    adjoint_error: jax.Array
    sum_error: jax.Array
    null_vector_error: jax.Array
    quadratic_form: jax.Array
    rayleigh_quotient: jax.Array
    autodiff_error: jax.Array
    is_symmetric: jax.Array
    products_sum_to_zero: jax.Array
    annihilates_ones: jax.Array
    is_positive_semidefinite: jax.Array
    largest_eigenvalue_is_bounded: jax.Array
    agrees_with_autodiff: jax.Array
    all_hold: jax.Array


def verify_jacobian_properties(x: ArrayLike) -> JacobianProperties:
    """The properties of the softmax Jacobian, measured on its dense matrix.

    Symmetric, rows and columns sum to 0, positive semi-definite, rank K − 1, J·1 = 0,
    Jᵢᵢ = σᵢ(1 − σᵢ), λ_max ≤ 1/2 (1/4 bounds the diagonal, not the eigenvalues: K = 2, σ = (½, ½)
    has the eigenvalue ½), and equal to what autodiff gives.

    Cost: O(K³) per row; for wide rows there is `probe_jacobian_properties`.

    Args:
        x: logits [..., K], K ≥ 1; float16 and bfloat16 are measured in float32.

    Returns:
        Measurements and one boolean per property, of shape [...].

    Raises:
        TypeError: `x` is boolean or complex.
        ValueError: `x` has no class axis or no classes.
    """
    return _over_rows(_verify_row, x)


def probe_jacobian_properties(x: ArrayLike) -> JacobianProbes:
    """The properties of the softmax Jacobian, probed by products: no matrix, any K.

    Cost: O(K) per row.

    Args:
        x: logits [..., K], K ≥ 1; float16 and bfloat16 are measured in float32.

    Returns:
        Statistics, measurements and one boolean per property, of shape [...].

    Raises:
        TypeError: `x` is boolean or complex.
        ValueError: `x` has no class axis or no classes.
    """
    return _over_rows(_probe_row, x)


def _over_rows(measure: Callable[[jax.Array], Measurements], x: ArrayLike) -> Measurements:
    x = as_real("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"`x` must have shape [..., K] with K ≥ 1, got {x.shape}")
    rows = x.astype(working_dtype(x.dtype)).reshape(-1, x.shape[-1])
    measured = jax.vmap(measure)(rows)
    return jax.tree.map(lambda a: a.reshape(x.shape[:-1] + a.shape[1:]), measured)


def _verify_row(x: jax.Array) -> JacobianProperties:
    sigma, J, ones = softmax(x), softmax_jacobian(x), jnp.ones_like(x)
    eigenvalues = jnp.linalg.eigvalsh(J)
    tolerance = _tolerance(eigenvalues[-1], x)
    ascending = jnp.sort(sigma)
    lower, upper = _largest_eigenvalue_bounds(sigma)
    measured = {
        # Compared before it is subtracted: compilers contract σᵢσⱼ − σⱼσᵢ into a multiply-add.
        "symmetry_error": _largest(jnp.where(J == J.T, 0, J - J.T)),
        "row_sum_error": _largest(J.sum(axis=1)),
        "column_sum_error": _largest(J.sum(axis=0)),
        "null_vector_error": _largest(softmax_vjp(ones, sigma)),
        "diagonal_error": _largest(jnp.diag(J) - sigma * _complement(sigma)),
        "jacfwd_error": _largest(J - jax.jacfwd(softmax)(x)),
        "jacrev_error": _largest(J - jax.jacrev(softmax)(x)),
    }
    within = {name: error <= tolerance for name, error in measured.items()}
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
        & (eigenvalues[-1] <= jnp.minimum(upper, 0.5) + tolerance),
        "agrees_with_autodiff": within["jacfwd_error"] & within["jacrev_error"],
    }
    return JacobianProperties(
        tolerance=tolerance,
        eigenvalues=eigenvalues,
        smallest_eigenvalue=eigenvalues[0],
        largest_eigenvalue=eigenvalues[-1],
        rank=rank,
        expected_rank=jnp.asarray(x.size - 1),
        smallest_numerical_rank=ranks[0],
        largest_numerical_rank=ranks[1],
        largest_eigenvalue_lower_bound=lower,
        largest_eigenvalue_upper_bound=upper,
        **measured,
        **properties,
        all_hold=_all(properties),
    )


def _probe_row(x: jax.Array) -> JacobianProbes:
    sigma, log_sigma, index = softmax(x), log_softmax(x), jnp.arange(x.size, dtype=x.dtype)
    a, b = jnp.cos(index), jnp.cos(2 * index + 1)
    Ja, Jb = softmax_vjp(a, sigma), softmax_vjp(b, sigma)
    (reverse,) = jax.vjp(softmax, x)[1](a)
    _, forward = jax.jvp(softmax, (x,), (a,))
    lower, upper = _largest_eigenvalue_bounds(sigma)
    tolerance = _tolerance(upper, x)
    measured = {
        "adjoint_error": jnp.abs(a @ Jb - b @ Ja),
        "sum_error": jnp.abs(jnp.sum(Ja)),
        "null_vector_error": _largest(softmax_vjp(jnp.ones_like(x), sigma)),
        "autodiff_error": jnp.maximum(_largest(Ja - reverse), _largest(Ja - forward)),
    }
    quadratic_form = a @ Ja
    w = Ja / jnp.maximum(_largest(Ja), float(jnp.finfo(x.dtype).tiny))  # its square must not vanish
    rayleigh_quotient = w @ softmax_vjp(w, sigma) / jnp.maximum(w @ w, 1)
    properties = {
        "is_symmetric": measured["adjoint_error"] <= tolerance,
        "products_sum_to_zero": measured["sum_error"] <= tolerance,
        "annihilates_ones": measured["null_vector_error"] <= tolerance,
        "is_positive_semidefinite": quadratic_form >= -tolerance,
        "largest_eigenvalue_is_bounded": rayleigh_quotient <= jnp.minimum(upper, 0.5) + tolerance,
        "agrees_with_autodiff": measured["autodiff_error"] <= tolerance,
    }
    return JacobianProbes(
        tolerance=tolerance,
        max_probability=jnp.max(sigma),
        entropy=-jnp.sum(jnp.where(sigma == 0, 0, sigma * log_sigma)),
        trace=jnp.sum(sigma * _complement(sigma)),
        frobenius_norm=_frobenius_norm(sigma),
        largest_eigenvalue_lower_bound=lower,
        largest_eigenvalue_upper_bound=upper,
        quadratic_form=quadratic_form,
        rayleigh_quotient=rayleigh_quotient,
        **measured,
        **properties,
        all_hold=_all(properties),
    )


def _largest_eigenvalue_bounds(sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bounds of λ_max that cost O(K) and do not cancel on a peaked row."""
    K = sigma.size
    if K == 1:
        return jnp.zeros_like(sigma[0]), jnp.zeros_like(sigma[0])
    diagonal = sigma * _complement(sigma)
    second = jnp.max(jnp.where(_is_top(sigma), 0, sigma))
    lower = jnp.maximum(K / (K - 1) * jnp.max(diagonal), second)
    upper = jnp.minimum(2 * jnp.max(diagonal), jnp.max(sigma))
    return lower, jnp.minimum(upper, jnp.sum(diagonal))


def _complement(sigma: jax.Array) -> jax.Array:
    """1 − σᵢ; for the top class the sum of the others, which does not cancel."""
    others = jnp.sum(jnp.where(_is_top(sigma), 0, sigma))
    return jnp.where(_is_top(sigma), others, 1 - sigma)


def _is_top(sigma: jax.Array) -> jax.Array:
    return jnp.arange(sigma.size) == jnp.argmax(sigma)


def _frobenius_norm(sigma: jax.Array) -> jax.Array:
    """‖J‖_F, with Σ_{i≠j} σᵢ²σⱼ² split at the top class so that nothing cancels."""
    top = jnp.max(sigma) ** 2
    others = jnp.where(_is_top(sigma), 0, sigma) ** 2
    rest = jnp.sum(others)
    off_diagonal = 2 * top * rest + (rest**2 - jnp.sum(others**2))
    return jnp.sqrt(jnp.sum((sigma * _complement(sigma)) ** 2) + off_diagonal)


def _tolerance(scale: jax.Array, x: jax.Array) -> jax.Array:
    info = jnp.finfo(x.dtype)
    return 4 * x.size * jnp.maximum(float(info.eps) / 2 * scale, float(info.tiny))


def _largest(error: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(error))


def _all(properties: dict[str, jax.Array]) -> jax.Array:
    return jnp.all(jnp.stack(list(properties.values())))

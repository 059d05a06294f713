"""The properties of J = diag(σ) − σσᵀ, probed by products: no matrix, rows of any width.

>>> import jax.numpy as jnp
>>> bool(probe_jacobian_properties(jnp.linspace(0.0, 9.0, 5000)).all_hold)
True
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsoftjac._closed_forms import diagonal, frobenius_norm, largest_eigenvalue_bounds
from jaxsoftjac.diagnostics._member import amplification, member, one_alpha
from jaxsoftjac.diagnostics._properties import (
    all_hold,
    largest,
    over_rows,
    rounding_tolerance,
)
from jaxsoftjac.functions import log_softmax
from jaxsoftjac.sparse._powers import log_weights


class JacobianProbes(NamedTuple):
    """What `probe_jacobian_properties` measured, one entry per row of logits.

    Attributes:
        tolerance: 4Ku·λ, with λ the upper bound of λ_max and u the unit roundoff.
        max_probability: max p, which is σ for softmax.
        entropy: −Σ p log p, nats.
        trace: Σ σᵢ(1 − σᵢ); of α-entmax Σ sᵢ(1 − sᵢ/Σs).
        frobenius_norm: ‖J‖_F.
        largest_eigenvalue_lower_bound: as in `JacobianProperties`.
        largest_eigenvalue_upper_bound: as in `JacobianProperties`.
        adjoint_error: |⟨a, Jb⟩ − ⟨b, Ja⟩| for two fixed probes with entries in [−1, 1].
        sum_error: |Σ Ja|.
        null_vector_error: max |J·1|.
        quadratic_form: ⟨a, Ja⟩, the variance of the probe under σ, or Σs times that under s/Σs.
        rayleigh_quotient: ⟨w, Jw⟩/⟨w, w⟩ with w = Ja, at most λ_max.
        autodiff_error: max difference of the product by its formula, `jax.vjp` and `jax.jvp` on the
            probe.
        is_symmetric: ⟨a, Jb⟩ = ⟨b, Ja⟩.
        products_sum_to_zero: Σ Ja = 0.
        annihilates_ones: J·1 = 0.
        is_positive_semidefinite: ⟨a, Ja⟩ ≥ 0.
        largest_eigenvalue_is_bounded: the Rayleigh quotient is under the upper bound, and that 1/2
            (Σs/2).
        agrees_with_autodiff: formula, reverse and forward mode agree, to the tolerance of
            `JacobianProperties`.
        all_hold: all of the above.

    Examples:
        >>> probes = probe_jacobian_properties(jnp.zeros(4))
        >>> print(probes.trace, probes.annihilates_ones)
        0.75 True
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


def probe_jacobian_properties(x: ArrayLike, *, alpha: float = 1.0) -> JacobianProbes:
    """The properties of the softmax Jacobian, probed by products: no matrix, any K.

    Cost: O(K) per row.

    Args:
        x: logits [..., K], K ≥ 1; float16 and bfloat16 are measured in float32.
        alpha: α in [1, 4] of `entmax`, whose J = diag(s) − ssᵀ/Σs is probed; 1 is softmax.

    Returns:
        Statistics, measurements and one boolean per property, of shape [...].

    Raises:
        TypeError: `x` is boolean or complex.
        ValueError: `x` has no class axis or no classes, or `alpha` is not a number in [1, 4].

    Examples:
        >>> probes = probe_jacobian_properties(jnp.array([30.0, 0.0, 0.0, 0.0]))
        >>> print(probes.is_symmetric, probes.agrees_with_autodiff, f"{probes.quadratic_form:.1e}")
        True True 5.8e-13
        >>> print(probe_jacobian_properties(jnp.array([1.0, 0.5, -1.0]), alpha=2).trace)
        1.0
    """
    return over_rows(partial(_probe_row, alpha=one_alpha(alpha)), x)


def _probe_row(x: jax.Array, alpha: float) -> JacobianProbes:
    f, p, sigma, scale, product = member(x, alpha)
    log_p = log_softmax(x) if alpha == 1 else log_weights(p, 1.0)
    # Constants, not `jnp.cos`: a compiler would compute that in each loop that reads it, rounded
    # once this way and once that, and a probe's value at the pivot would not cancel exactly.
    index = np.arange(x.size)
    a, b = (jnp.asarray(np.cos(angle), x.dtype) for angle in (index, 2 * index + 1))
    Ja, Jb = product(a), product(b)
    (reverse,) = jax.vjp(f, x)[1](a)
    _, forward = jax.jvp(f, (x,), (a,))
    lower, upper = (scale * bound for bound in largest_eigenvalue_bounds(sigma))
    tolerance = rounding_tolerance(upper, x)
    measured = {
        "adjoint_error": jnp.abs(a @ Jb - b @ Ja),
        "sum_error": jnp.abs(jnp.sum(Ja)),
        "null_vector_error": largest(product(jnp.ones_like(x))),
        "autodiff_error": jnp.maximum(largest(Ja - reverse), largest(Ja - forward)),
    }
    quadratic_form = a @ Ja
    w = Ja / jnp.maximum(largest(Ja), float(jnp.finfo(x.dtype).tiny))  # its square must not vanish
    rayleigh_quotient = w @ product(w) / jnp.maximum(w @ w, 1)
    highest = jnp.minimum(upper, 0.5 * scale) + tolerance
    properties = {
        "is_symmetric": measured["adjoint_error"] <= tolerance,
        "products_sum_to_zero": measured["sum_error"] <= tolerance,
        "annihilates_ones": measured["null_vector_error"] <= tolerance,
        "is_positive_semidefinite": quadratic_form >= -tolerance,
        "largest_eigenvalue_is_bounded": rayleigh_quotient <= highest,
        "agrees_with_autodiff": measured["autodiff_error"] <= tolerance * amplification(p, alpha),
    }
    return JacobianProbes(
        tolerance=tolerance,
        max_probability=jnp.max(p),
        entropy=-jnp.sum(jnp.where(p == 0, 0, p * log_p)),
        trace=scale * jnp.sum(diagonal(sigma)),
        frobenius_norm=scale * frobenius_norm(sigma),
        largest_eigenvalue_lower_bound=lower,
        largest_eigenvalue_upper_bound=upper,
        quadratic_form=quadratic_form,
        rayleigh_quotient=rayleigh_quotient,
        **measured,
        **properties,
        all_hold=all_hold(properties),
    )

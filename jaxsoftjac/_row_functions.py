"""softmax, log_softmax and logsumexp of checked rows, with their rules of differentiation.

In a row without classes σ is 0 and log σ is −∞; in a row with +∞ they are the limits, with all of σ
there.

>>> import jax, jax.numpy as jnp
>>> from jaxsoftjac._rows import LAST
>>> print(jax.jacfwd(lambda x: softmax_rows(x, LAST))(jnp.zeros(2)))
[[ 0.25 -0.25]
 [-0.25  0.25]]
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._checks import wide, working_dtype
from jaxsoftjac._pivots import where_positive
from jaxsoftjac._rows import ClassAxes, RowStatistics, depth, exp_depth, statistics, top_of
from jaxsoftjac._rules import recomputed
from jaxsoftjac.products import PivotedRow, log_softmax_product, softmax_product


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_rows(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """`softmax` of checked input."""
    row = wide(x)
    return (exp_depth(row, top_of(row, classes)) * top_probability(row, classes)).astype(x.dtype)


def top_probability(row: jax.Array, classes: ClassAxes) -> jax.Array:
    """1/Σ exp(x − top), by which σ is normalized: the largest σ of each row."""
    return of_top(statistics(row, classes).rest)


@softmax_rows.defjvp
def _softmax_jvp(
    classes: ClassAxes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    sigma, pullback = jax.vjp(lambda x: _softmax_reverse(x, classes), *primals)
    (pushed,) = pullback(*tangents)  # J = Jᵀ: the pullback is the pushforward
    return jnp.asarray(sigma), pushed


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax_reverse(x: jax.Array, classes: ClassAxes) -> jax.Array:
    return softmax_rows(x, classes)


def _softmax_forward(
    x: jax.Array, classes: ClassAxes
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    sigma = softmax_rows(x, classes)
    return sigma, (_unrounded(sigma, x), lax.stop_gradient(top_probability(wide(x), classes)))


def _softmax_backward(
    classes: ClassAxes, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array]:
    return (_softmax_pullback(g, *residuals, classes),)


_softmax_reverse.defvjp(_softmax_forward, _softmax_backward)


@recomputed(static_argnums=(3,))
def _softmax_pullback(
    g: jax.Array, kept: jax.Array, top: jax.Array, classes: ClassAxes
) -> jax.Array:
    sigma = kept if _is_wide(kept) else softmax_rows(wide(kept), classes)
    return softmax_product(wide(g), sigma, classes, top).astype(g.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax_rows(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """`log_softmax` of checked input."""
    row = wide(x)
    top, rest = statistics(row, classes)
    return (depth(row, top) - log1p_rest(rest)).astype(x.dtype)


@log_softmax_rows.defjvp
def _log_softmax_jvp(
    classes: ClassAxes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    of_row = statistics(wide(x), classes)
    return log_softmax_rows(x, classes), _log_softmax_pushforward(tangent, x, of_row, classes)


@recomputed(static_argnums=(3,))
def _log_softmax_pushforward(
    tangent: jax.Array, x: jax.Array, of_row: RowStatistics, classes: ClassAxes
) -> jax.Array:
    row = wide(x)
    y = log_softmax_product(
        wide(tangent), softmax_rows(row, classes), pivoted(row, of_row), classes
    )
    return y.astype(tangent.dtype)


def pivoted(row: jax.Array, of_row: RowStatistics) -> PivotedRow:
    """What a product needs of rows and their statistics."""
    row, (top, rest) = lax.stop_gradient((row, of_row))
    return PivotedRow(row, exp_depth(row, top), rest, of_top(rest))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp_rows(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """`logsumexp` of checked input, the summed axes kept."""
    row = wide(x)
    top, rest = statistics(row, classes)
    highest = classes.max(row)
    infinite = highest + 0 * rest  # NaN where XLA's maximum has lost one, see `largest`
    return jnp.where(jnp.isinf(highest), infinite, top + log1p_rest(rest)).astype(x.dtype)


@logsumexp_rows.defjvp
def _logsumexp_jvp(
    classes: ClassAxes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return logsumexp_rows(x, classes), _logsumexp_pushforward(tangent, x, classes)


@recomputed(static_argnums=(2,))
def _logsumexp_pushforward(tangent: jax.Array, x: jax.Array, classes: ClassAxes) -> jax.Array:
    sigma = softmax_rows(wide(x), classes)
    return classes.sum(sigma * where_positive(wide(tangent), sigma)).astype(tangent.dtype)


def log1p_rest(rest: jax.Array) -> jax.Array:
    """Log(1 + rest), and 0 in a row without classes."""
    return jnp.log1p(jnp.where(rest < 0, 0, rest))


def of_top(rest: jax.Array) -> jax.Array:
    """1/(1 + rest), the largest σ of the row; 1 in a row without classes."""
    return 1 / (1 + jnp.where(rest < 0, 0, rest))


def _is_wide(x: jax.Array) -> bool:
    return x.dtype == working_dtype(x.dtype)


def _unrounded(result: jax.Array, x: jax.Array) -> jax.Array:
    """What a derivative keeps: the result, or the logits where the result was rounded."""
    return result if _is_wide(x) else x

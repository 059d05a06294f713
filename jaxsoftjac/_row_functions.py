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
from jaxsoftjac._rows import LOWEST, ClassAxes, depth, exp_depth, statistics, top_of
from jaxsoftjac._rules import recomputed
from jaxsoftjac.products import centre, peaked, softmax_product, where_positive


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_rows(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """`softmax` of checked input."""
    row = wide(x)
    return (exp_depth(row, top_of(row, classes)) * top_probability(row, classes)).astype(x.dtype)


def top_probability(row: jax.Array, classes: ClassAxes) -> jax.Array:
    """1/Σ exp(x − top), by which σ is normalized: the largest σ of each row."""
    total = classes.sum(exp_depth(row, top_of(row, classes)))
    return 1 / jnp.where(total == 0, 1, total)


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
    log_sigma = log_softmax_rows(x, classes)
    log_top = lax.stop_gradient(-log1p_rest(statistics(wide(x), classes).rest))
    kept = _unrounded(log_sigma, x)
    return log_sigma, _log_softmax_pushforward(tangent, kept, log_top, classes)


@recomputed(static_argnums=(3,))
def _log_softmax_pushforward(
    tangent: jax.Array, kept: jax.Array, log_top: jax.Array, classes: ClassAxes
) -> jax.Array:
    log_sigma = kept if _is_wide(kept) else log_softmax_rows(wide(kept), classes)
    moves = log_sigma != -jnp.inf
    sigma = jnp.exp(jnp.maximum(log_sigma, LOWEST))
    # The pivot as in `products.pivot_excess`, but found in logs: log σ of the top is `log_top` to
    # the bit, where its exponential may be rounded differently in two places of a program.
    is_peaked = peaked(jnp.exp(log_top))
    is_top = is_peaked * jnp.clip(1 + (lax.stop_gradient(log_sigma) - log_top) * 1e30, 0, 1)
    excess = is_top + (1 - is_peaked) * lax.stop_gradient(sigma)
    centred = centre(jnp.where(moves, wide(tangent), 0), sigma, classes, excess)
    return jnp.where(moves, centred, 0).astype(tangent.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp_rows(x: jax.Array, classes: ClassAxes) -> jax.Array:
    """`logsumexp` of checked input, the summed axes kept."""
    row = wide(x)
    top, rest = statistics(row, classes)
    highest = classes.max(row)
    return jnp.where(jnp.isinf(highest), highest, top + log1p_rest(rest)).astype(x.dtype)


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


def _is_wide(x: jax.Array) -> bool:
    return x.dtype == working_dtype(x.dtype)


def _unrounded(result: jax.Array, x: jax.Array) -> jax.Array:
    """What a derivative keeps: the result, or the logits where the result was rounded."""
    return result if _is_wide(x) else x

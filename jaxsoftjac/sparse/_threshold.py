"""The threshold of each row, as the scale c ≥ 1 at which its probabilities sum to 1.

With depths d = x − max x ≤ 0 and β = α − 1, p = r/Σr with r = [1 + βcd]₊^{1/β}, and c is the root
of N(c) = c, N = (Σr)^β. Written so, p sums to 1 whatever the error of c, the largest r is exactly
1, and at β = 0, where c = 1, p is softmax.

For β ≤ 1, N is a norm of (1 + βcd)₊: convex in c. Newton's method from c = 1 then rises to the root
without passing it, and as each step halves the residual or the slope, it takes O(log(K/u)) steps at
most, u the unit roundoff; a few on rows as they come. Other rows are bracketed as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._rows import ClassAxes, depth, top_of
from jaxsoftjac.sparse._powers import Beta, is_number, log_of_root


def probabilities(row: jax.Array, beta: Beta, classes: ClassAxes) -> jax.Array:
    """P of rows in their working dtype; 0 in a row without classes.

    The scale is found on constants. The derivatives of Newton steps, whose own size is left out,
    then make it a function of the row and of β: two are right to the third order as they stand.
    """
    fixed = beta if isinstance(beta, float) else lax.stop_gradient(beta)
    d = depth(row, top_of(row, classes))
    d = jnp.maximum(d, -4 / jnp.maximum(fixed, 1e-20))  # beyond −1/β there is no support
    base, rest = _scale(lax.stop_gradient(d), fixed, classes)
    for _ in range(1 if is_number(beta, 1) else 2):
        residual, slope = _residual(d, base, rest, beta, classes)
        step = residual / slope
        rest = rest + (step - lax.stop_gradient(step))
    r, _ = _roots(d, base, rest, beta)
    total = classes.sum(r)
    return r / jnp.where(total == 0, 1, total)


def _scale(d: jax.Array, beta: Beta, classes: ClassAxes) -> tuple[jax.Array, jax.Array]:
    """The scale of each row as a sum of two numbers, the second of which makes up for the first.

    That leaves an error of about u^{2/β} in a class of α > 3 at the edge of the support.
    """
    one = jnp.ones_like(classes.max(d))
    zero = jnp.zeros_like(one)
    if isinstance(beta, float) and beta <= 1:
        return zero, _rising(d, one, beta, classes)
    highest = jnp.exp(beta * jnp.log(classes.sum(jnp.ones_like(d)) + 1)) * one
    base = _bracketed(d, zero, one, highest, beta, classes)
    return base, _bracketed(d, base, -base / 64, base / 64, beta, classes)


def _rising(d: jax.Array, start: jax.Array, beta: Beta, classes: ClassAxes) -> jax.Array:
    """Newton's method from below, until no row's scale rises."""
    zero, least = jnp.zeros_like(start), 4 * float(jnp.finfo(d.dtype).eps)

    def rise(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        c, _ = state
        residual, slope = _residual(d, zero, c, beta, classes)
        return c + residual / slope, residual / slope

    def rises(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(state[1] > least * state[0])

    return lax.while_loop(rises, rise, (start, jnp.full_like(start, jnp.inf)))[0]


class _Bracket(NamedTuple):
    """Numbers on both sides of the root, a guess, how far it moved last, and the best one yet."""

    low: jax.Array
    high: jax.Array
    guess: jax.Array
    moved: jax.Array
    best: jax.Array
    error: jax.Array


def _bracketed(
    d: jax.Array, base: jax.Array, low: jax.Array, high: jax.Array, beta: Beta, classes: ClassAxes
) -> jax.Array:
    """The root, less `base`, by Newton's method, or by halves where its steps do not shrink so.

    A row is done when its residual is the rounding error of N, or when the guess no longer moves:
    to the last bit of c without a base, and of its correction with one.
    """
    eps = float(jnp.finfo(d.dtype).eps)
    least = jnp.where(base == 0, 4 * eps, eps * eps)

    def improve(state: _Bracket) -> _Bracket:
        residual, slope = _residual(d, base, state.guess, beta, classes)
        step = residual / slope
        low = jnp.where(step >= 0, state.guess, state.low)
        high = jnp.where(step <= 0, state.guess, state.high)
        guess = state.guess + step
        is_good = (low <= guess) & (guess <= high) & (jnp.abs(step) <= state.moved / 2)
        guess = jnp.where(is_good, guess, low + (high - low) / 2)
        error = jnp.abs(residual)
        guess = jnp.where(error <= 8 * eps * (base + state.guess), state.guess, guess)
        best = jnp.where(error < state.error, state.guess, state.best)
        moved = jnp.abs(guess - state.guess)
        return _Bracket(low, high, guess, moved, best, jnp.minimum(error, state.error))

    def moves(state: _Bracket) -> jax.Array:
        return jnp.any(state.moved > least * jnp.abs(base + state.guess))

    guess = jnp.maximum(low, 0)
    start = _Bracket(low, high, guess, high - low, guess, jnp.full_like(guess, jnp.inf))
    return lax.while_loop(moves, improve, start).best


def _residual(
    d: jax.Array, base: jax.Array, rest: jax.Array, beta: Beta, classes: ClassAxes
) -> tuple[jax.Array, jax.Array]:
    """N − c at c = base + rest, and minus its slope, 1 − N′ ≥ 1: N falls as c rises."""
    r, w = _roots(d, base, rest, beta)
    total, moment = classes.sum(r), classes.sum(w * d)
    total = jnp.where(total == 0, 1, total)
    norm = total if is_number(beta, 1) else jnp.exp(beta * jnp.log(total))
    return (norm - base) - rest, 1 - beta * (norm / total) * moment


def _roots(
    d: jax.Array, base: jax.Array, rest: jax.Array, beta: Beta
) -> tuple[jax.Array, jax.Array]:
    """R = z^{1/β} and its power w = r^{1−β}, where z = 1 + βcd > 0; 0 elsewhere.

    c = base + rest: where a class hardly belongs to the support of α > 2, r is steeper in c than
    one float resolves. The minimum, which is never reached, keeps a compiler from contracting the
    product with the sum, in which the digits of the base cancel. Masks are arithmetic where they
    can be, because XLA's CPU kernels do not vectorise comparisons in a reduction.
    """
    if is_number(beta, 1):
        z = 1 + rest * d
        w = lax.stop_gradient(jnp.clip(z * 1e30, 0, 1))
        return w * z, w
    if is_number(beta, 0.5):
        z = jnp.maximum(1 + rest * (d / 2), 0)
        return z * z, z
    z = (1 + jnp.minimum(base * (beta * d), 1)) + rest * (beta * d)
    is_inside = z > 0
    z = jnp.where(is_inside, z, 1)
    r = jnp.exp(log_of_root(z, jnp.where(is_inside, (base + rest) * d, 0), beta))
    return jnp.where(is_inside, r, 0), jnp.where(is_inside, r / z, 0)

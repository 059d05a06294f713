"""What float32 products with J lose, measured against long double.

>>> found = product_errors(gaps=(0, 12), offsets=(0,), rows=8)
>>> bool(found.errors["textbook"][1, 0] > 100 * found.errors["jaxsoftjac"][1, 0])
True
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac.products import softmax_vjp


class ProductErrors(NamedTuple):
    """Worst relative errors ‖err‖₁/‖Jv‖₁ of float32 products with J.

    Attributes:
        gaps: nats that one class is ahead of the others, [n].
        offsets: the common offset of the vector, [m].
        errors: for each formula, errors [n, m].

    Examples:
        >>> found = product_errors(gaps=(0, 12), offsets=(0,), rows=8)
        >>> print(found.gaps, list(found.errors), found.errors["centred"].shape)
        [ 0. 12.] ['textbook', 'centred', 'jaxsoftjac'] (2, 1)
    """

    gaps: np.ndarray
    offsets: np.ndarray
    errors: dict[str, np.ndarray]


def textbook(v: jax.Array, sigma: jax.Array) -> jax.Array:
    """σ⊙(v − ⟨σ, v⟩)."""
    return sigma * (v - jnp.sum(sigma * v, axis=-1, keepdims=True))


def centred(v: jax.Array, sigma: jax.Array) -> jax.Array:
    """The textbook product, its sum put back to zero: w − σΣw."""
    w = textbook(v, sigma)
    return w - sigma * jnp.sum(w, axis=-1, keepdims=True)


FORMULAS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "textbook": textbook,
    "centred": centred,
    "jaxsoftjac": softmax_vjp,
}


def product_errors(
    gaps: Sequence[float], offsets: Sequence[float], *, K: int = 32, rows: int = 64
) -> ProductErrors:
    """The errors of each formula for J·v, over gaps of the logits and offsets of the vector.

    Args:
        gaps: nats that the first class is ahead.
        offsets: what is added to a standard normal vector.
        K: classes.
        rows: how many random rows the worst is taken of.

    Returns:
        Errors of the textbook product, the centred one and `softmax_vjp`.

    Examples:
        >>> errors = product_errors(gaps=(12,), offsets=(0, 1000), rows=8).errors
        >>> print(bool(errors["textbook"].max() > 1e-2), bool(errors["jaxsoftjac"].max() < 1e-6))
        True True
    """
    programs = {
        name: jax.jit(lambda x, v, f=f: f(v, jax.nn.softmax(x))) for name, f in FORMULAS.items()
    }
    errors = {name: np.empty((len(gaps), len(offsets))) for name in programs}
    for i, gap in enumerate(gaps):
        for j, offset in enumerate(offsets):
            x, v = random_rows(gap, offset, K=K, rows=rows)
            exact = exact_product(x, v)
            for name, program in programs.items():
                errors[name][i, j] = worst_error(program(x, v), exact)
    return ProductErrors(np.asarray(gaps, float), np.asarray(offsets, float), errors)


def random_rows(gap: float, offset: float, *, K: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits whose first class is `gap` ahead, and vectors around `offset`."""
    x, v = np.random.default_rng(0).normal(size=(2, rows, K))
    x[:, 0] = x.max(axis=1) + gap
    return x.astype(np.float32), (v + offset).astype(np.float32)


def exact_softmax(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """σ, log σ and the complement 1 − σ of rows, in long double."""
    x = np.asarray(x, np.longdouble)
    top = x.argmax(-1)[..., None]
    depth = x - np.take_along_axis(x, top, -1)
    e = np.exp(depth)
    np.put_along_axis(e, top, 0, -1)
    rest = e.sum(-1, keepdims=True)
    complement = 1 - e / (1 + rest)
    np.put_along_axis(complement, top, rest / (1 + rest), -1)
    np.put_along_axis(e, top, 1, -1)
    return e / (1 + rest), depth - np.log1p(rest), complement


def exact_product(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """J·v of rows in long double: measured from the top class, whose entry closes the sum."""
    sigma, _, _ = exact_softmax(x)
    top = sigma.argmax(-1)[..., None]
    v = np.asarray(v, np.longdouble)
    d = v - np.take_along_axis(v, top, -1)
    w = sigma * (d - (sigma * d).sum(-1, keepdims=True))
    np.put_along_axis(w, top, 0, -1)
    np.put_along_axis(w, top, -w.sum(-1, keepdims=True), -1)
    return w


def worst_error(found: jax.Array | np.ndarray, exact: np.ndarray) -> float:
    """The largest ‖found − exact‖₁/‖exact‖₁ of a row; a NaN is not lost."""
    error = np.abs(np.asarray(found, np.longdouble) - exact).sum(-1) / np.abs(exact).sum(-1)
    return float(np.max(error))

"""The numbers and the parts of a lesson on one row of logits; `_steps` says what they mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac.cli._cells import number, shown_places
from jaxsoftjac.dense import jacobian_block, softmax_jacobian
from jaxsoftjac.diagnostics import gradient_flow
from jaxsoftjac.functions import softmax
from jaxsoftjac.losses import cross_entropy
from jaxsoftjac.products import softmax_second_derivative, softmax_vjp

DIFFERENCES = "differences"  # the head of their columns
H = 1e-5  # step of the central differences: in float64 they err by about 1e-10
FORMED_LIMIT = 2048  # widest row whose J is formed


class Formula(NamedTuple):
    """A formula, in Unicode and in TeX."""

    text: str
    tex: str


class Numbers(NamedTuple):
    """A line of arithmetic, or of words."""

    text: str


class Columns(NamedTuple):
    """Columns of cells under their heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


Array = jax.Array | np.ndarray
Step = tuple[str, list[Formula | Numbers | Columns]]


class Shown(Protocol):
    """A row of which some classes are shown, and some entries of its J."""

    @property
    def places(self) -> list[int | None]: ...
    @property
    def corner(self) -> list[int | None]: ...
    @property
    def entries(self) -> np.ndarray: ...


class Row(NamedTuple):
    """What is explained: logits z, a cotangent g, and what was computed of them.

    Attributes:
        z: the logits.
        g: the cotangent.
        top: subtracted from the logits; 0 where their exponentials are of ordinary size.
        places: classes to show, None for those between.
        corner: those of them whose entries of J are shown.
        sigma: softmax of z.
        entries: of J, at `corner`.
        spectral_norm: λ_max.
        product: J·g.
        by_matrix: the same by the whole matrix, where that is formed.
        second: D²σ[g, g].
        loss: −log σ_c.
        gradient: its gradient.
        differences: what central differences give for some of these.
    """

    z: np.ndarray
    g: np.ndarray
    top: float
    places: list[int | None]
    corner: list[int | None]
    sigma: np.ndarray
    entries: np.ndarray
    spectral_norm: np.ndarray
    product: np.ndarray
    by_matrix: np.ndarray | None
    second: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray
    differences: "Differences"


class Differences(NamedTuple):
    """Central differences, (f(z + hv) − f(z − hv)) / 2h, of σ, L (where shown) and J·g."""

    first: Array  # ∂σ₀/∂z₀ and ∂σ₀/∂z₁
    product: Array
    gradient: Array
    second: Array


def row_of(z: np.ndarray, vector: Sequence[float] | None, label: int | None) -> Row:
    """All numbers of the lesson on z, in float64.

    Args:
        z: K ≥ 2 logits.
        vector: The cotangent; from −1 to 1 in even steps if None.
        label: The true class, or None.
    """
    g = np.linspace(-1, 1, len(z)) if vector is None else np.array(vector, float)
    top = 0.0 if np.abs(z).max() <= 20 else float(z.max())
    places = shown_places(z, 12)
    if label is not None and label not in places:
        middle = places.index(None)
        places[middle:middle] = [None, label]
    corner, shown = shown_places(z), np.array([i for i in places if i is not None])
    indices = np.array([i for i in corner if i is not None])
    found = jax.jit(_computed)(z, g, 0 if label is None else label, indices, shown)
    return Row(z, g, top, places, corner, **jax.tree.map(np.asarray, found))


def _computed(
    z: jax.Array, g: jax.Array, label: jax.Array, indices: jax.Array, shown: jax.Array
) -> dict:
    sigma = softmax(z)
    loss, gradient = jax.value_and_grad(cross_entropy)(z, label)
    is_narrow = len(z) <= FORMED_LIMIT
    return {
        "sigma": sigma,
        "entries": jacobian_block(sigma, indices),
        "spectral_norm": gradient_flow(z).spectral_norm,
        "product": softmax_vjp(g, sigma),
        "by_matrix": softmax_jacobian(z) @ g if is_narrow else None,
        "second": softmax_second_derivative(g, g, sigma),
        "loss": loss,
        "gradient": gradient,
        "differences": _differences(z, g, label, shown),
    }


def _differences(z: jax.Array, g: jax.Array, label: jax.Array, shown: jax.Array) -> Differences:
    def slope(j: jax.Array) -> jax.Array:
        return central(lambda z: cross_entropy(z, label), z, unit(z, j))

    at_shown = jax.lax.map(slope, shown)
    return Differences(
        first=jnp.stack([central(softmax, z, unit(z, j))[0] for j in range(2)]),
        product=central(softmax, z, g),
        gradient=jnp.zeros_like(z).at[shown].set(at_shown),
        second=central(lambda z: softmax_vjp(g, softmax(z)), z, g),
    )


def central(f: Callable, z: jax.Array, v: jax.Array) -> jax.Array:
    """The central difference of f along v, by steps of h in the largest component."""
    size = jnp.max(jnp.abs(v))
    v = v / jnp.where(size > 0, size, 1)
    return (f(z + H * v) - f(z - H * v)) / (2 * H) * size


def unit(z: jax.Array, j: jax.Array | int) -> jax.Array:
    """The vector e_j."""
    return (jnp.arange(z.size) == j).astype(z.dtype)


def exponentials(row: Row) -> tuple[np.ndarray, float]:
    """The exponentials of the logits less `top`, and their sum."""
    e = np.exp(row.z - row.top)
    return e, float(e.sum())


def entry(row: Shown, i: int | None, j: int | None) -> str:
    """Jᵢⱼ as text."""
    if i is None or j is None:
        return "…"
    shown = [k for k in row.corner if k is not None]
    return number(float(row.entries[shown.index(i), shown.index(j)]))


def by_class(row: Shown, columns: Mapping[str, Array], index: str = "i") -> Columns:
    """Vectors side by side, a line for each class that is shown."""
    rows = [
        [name(i), *("…" if i is None else number(float(c[i])) for c in columns.values())]
        for i in row.places
    ]
    return Columns([index, *columns], rows)


def name(i: int | None) -> str:
    """The class, or dots for those between."""
    return "…" if i is None else str(i)

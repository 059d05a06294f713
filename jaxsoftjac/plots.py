"""Pictures of the softmax Jacobian, as matplotlib Figures that are returned and never shown.

matplotlib is the optional extra `plots`; it is imported when a picture is asked for.

>>> figure = plot_jacobian(jnp.array([2.0, 1.0, 0.5]))
>>> [axes.get_title() for axes in figure.axes[:3]]
['Jacobian J = diag(σ) − σσᵀ', 'Diagonal σᵢ(1 − σᵢ)', 'Probabilities σ']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac.functions import softmax
from jaxsoftjac.products import softmax_vjp

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A heat map of more cells than this has several to a pixel, and J takes O(K²) memory.
_MAX_CELLS = 512
_MOST_PROBABLE = 32  # of the classes of a wider row: nearly all that is not 0 lies among them
_MAX_BARS = 128  # beyond, bars are narrower than a pixel and fade: draw lines of fixed width
_BLUE, _VERMILION = "#0072B2", "#D55E00"  # of the palette of Okabe and Ito: safe for all eyes


def plot_jacobian(x: jax.Array) -> Figure:
    """The softmax Jacobian of one row of logits in three panels.

    A heat map of J = diag(σ) − σσᵀ, bars of its diagonal σᵢ(1 − σᵢ), and bars of σ. Of rows wider
    than 512 the heat map shows the 32 most probable classes: nothing is averaged, J never formed.

    Args:
        x: Logits of shape [K].

    Returns:
        A Figure that belongs to no window: `savefig` it, or display it in a notebook.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `x` does not have exactly one dimension, or is empty.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plots need matplotlib: pip install "jaxsoftjac[plots]"', name="matplotlib"
        ) from error
    if jnp.ndim(x) != 1 or jnp.size(x) == 0:
        raise ValueError(f"`x` must have shape (K,) with K ≥ 1, got {jnp.shape(x)}")
    sigma = softmax(x)
    figure = Figure(figsize=(10, 3), layout="constrained")
    matrix, diagonal, probabilities = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _heat_map(figure, matrix, sigma)
    values = np.asarray(sigma, np.float64)
    _bars(diagonal, values * (1 - values), _BLUE)
    diagonal.set(title="Diagonal σᵢ(1 − σᵢ)", xlabel="index i", ylabel="∂σᵢ/∂xᵢ")
    _bars(probabilities, values, _VERMILION)
    probabilities.set(title="Probabilities σ", xlabel="class i", ylabel="σᵢ")
    return figure


def jacobian_block(sigma: jax.Array, indices: np.ndarray) -> jax.Array:
    """The entries J[indices][:, indices], each row a product J eᵢ = σ ⊙ (eᵢ − σᵢ) of O(K).

    Args:
        sigma: Probabilities of shape [K].
        indices: The rows, and columns, to give: n integers.

    Returns:
        Entries of shape [n, n]; J itself is never formed.
    """

    def row(index):
        basis = jnp.zeros_like(sigma).at[index].set(1)
        return softmax_vjp(basis, sigma)[indices]

    return jax.lax.map(row, jnp.asarray(indices))


def _heat_map(figure: Figure, axes: Axes, sigma: jax.Array) -> None:
    width = len(sigma)
    shown = np.arange(width)
    if width > _MAX_CELLS:
        shown = np.sort(np.argsort(-np.asarray(sigma, np.float64))[:_MOST_PROBABLE])
    block = np.asarray(jacobian_block(sigma, shown), np.float64)
    limit = np.abs(block).max() or 1.0  # a saturated σ has J = 0: any symmetric limits will do
    image = axes.imshow(
        block,
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )
    figure.colorbar(image, ax=axes)
    axes.set(title="Jacobian J = diag(σ) − σσᵀ", xlabel="logit j", ylabel="probability i")
    if len(shown) == width:
        _thin_ticks(axes.xaxis)
        _thin_ticks(axes.yaxis)
    else:
        places = np.arange(0, len(shown), 4)
        axes.set_xticks(places, map(str, shown[places]), rotation=90)
        axes.set_yticks(places, map(str, shown[places]))
        axes.set_xlabel(f"logit j (the {len(shown)} most probable of {width})")


def _bars(axes: Axes, values: np.ndarray, color: str) -> None:
    indices = np.arange(len(values))
    if len(values) <= _MAX_BARS:
        axes.bar(indices, values, color=color)
    else:
        axes.vlines(indices, 0, values, color=color, linewidth=0.8)
    axes.set_ylim(0, 1.05 * values.max() or 1.0)
    axes.spines[["top", "right"]].set_visible(False)
    _thin_ticks(axes.xaxis)


def _thin_ticks(axis) -> None:
    """Whole numbers only, and at most about ten of them, or five where they are long."""
    from matplotlib.ticker import MaxNLocator

    few = 9 if max(axis.get_view_interval()) < 1000 else 4
    axis.set_major_locator(MaxNLocator(nbins=few, integer=True, min_n_ticks=1))

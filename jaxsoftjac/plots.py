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
_MAX_BARS = 128  # beyond, bars are narrower than a pixel and fade: draw lines of fixed width
_BLUE, _VERMILION = "#0072B2", "#D55E00"  # of the palette of Okabe and Ito: safe for all eyes


def plot_jacobian(x: jax.Array) -> Figure:
    """The softmax Jacobian of one row of logits in three panels.

    A heat map of J = diag(σ) − σσᵀ, bars of its diagonal σᵢ(1 − σᵢ), and bars of σ. Rows wider than
    512 show evenly spaced entries of J, each as it is: nothing is averaged and J is never formed.

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
    shown = np.unique(np.linspace(0, width - 1, min(width, _MAX_CELLS)).round().astype(int))
    block = np.asarray(jacobian_block(sigma, shown), np.float64)
    limit = np.abs(block).max() or 1.0  # a saturated σ has J = 0: any symmetric limits will do
    image = axes.imshow(
        block,
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        extent=(-0.5, width - 0.5, width - 0.5, -0.5),
        interpolation="nearest",
    )
    figure.colorbar(image, ax=axes)
    axes.set(title="Jacobian J = diag(σ) − σσᵀ", xlabel="logit j", ylabel="probability i")
    _thin_ticks(axes.xaxis)
    _thin_ticks(axes.yaxis)
    if len(shown) < width:
        axes.set_xlabel(f"logit j ({len(shown)} of {width} shown)")


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
    """Whole numbers only, and at most about ten of them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))

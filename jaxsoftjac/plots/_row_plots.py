"""Pictures of J at one row: its entries, its diagonal, its spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac.dense import jacobian_block
from jaxsoftjac.operators import EntmaxJacobian
from jaxsoftjac.plots._style import (
    BLUE,
    DOUBLE_COLUMN,
    SINGLE_COLUMN,
    VERMILION,
    guide,
    journal_style,
    whole_ticks,
)
from jaxsoftjac.sparse import entmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A heat map of more cells than this has several to a pixel, and J takes O(K²) memory.
_MAX_CELLS = 512
_MOST_PROBABLE = 32  # of the classes of a wider row: nearly all that is not 0 lies among them
_LINEAR_CLASSES = 16  # up to so many the colours are linear
_DECADES = 6  # of the logarithmic part of the colour scale, on either side of 0
_MAX_BARS = 128  # beyond, bars are narrower than a pixel and fade: draw lines of fixed width


def plot_jacobian(x: jax.Array, *, alpha: float = 1.0) -> Figure:
    """The Jacobian of softmax, or of α-entmax, at one row of logits in three panels.

    A heat map of J = diag(σ) − σσᵀ, bars of its diagonal σᵢ(1 − σᵢ), and bars of σ; for α-entmax of
    J = diag(s) − ssᵀ/Σs with s = p^{2−α}, its diagonal, and p. Of rows wider than 512 the heat map
    shows the 32 most probable classes: nothing is averaged, J never formed.

    Args:
        x: Logits of shape [K].
        alpha: α in [1, 4]: 1 is softmax, 2 sparsemax.

    Returns:
        A Figure that belongs to no window: `savefig` it, or display it in a notebook.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `x` does not have exactly one dimension, or is empty, or `alpha` is out of
            range.

    Examples:
        >>> _, diagonal, probabilities, *_ = plot_jacobian(jnp.zeros(4)).axes
        >>> print(*(bar.get_height() for bar in diagonal.patches))
        0.1875 0.1875 0.1875 0.1875
    """
    _require_row(x)
    J = EntmaxJacobian.from_logits(x, alpha)
    p = np.asarray(entmax(x, alpha), np.float64)
    s, of_diagonal, letter = "s", "sᵢ(1 − sᵢ/Σs)", "p"
    if alpha == 1:
        s, of_diagonal, letter = "σ", "σᵢ(1 − σᵢ)", "σ"
    with journal_style(DOUBLE_COLUMN, 2.2) as figure:
        matrix, diagonal, probabilities = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        _heat_map(figure, matrix, J, p)
        matrix.set_title(f"Jacobian J = diag({s}) − {s}{s}ᵀ" + ("" if alpha == 1 else "/Σs"))
        _bars(diagonal, np.asarray(J.diagonal(), np.float64), BLUE)
        diagonal.set(title=f"Diagonal {of_diagonal}", xlabel="index i", ylabel=f"∂{letter}ᵢ/∂zᵢ")
        _bars(probabilities, p, VERMILION)
        probabilities.set(title=f"Probabilities {letter}", xlabel="class i", ylabel=f"{letter}ᵢ")
    return figure


def plot_spectrum(x: jax.Array, *, alpha: float = 1.0) -> Figure:
    """The eigenvalues of J at one row of logits, each between its two poles, below the bound ½.

    Sorted, each nonzero eigenvalue lies between two neighbouring probabilities (interlacing), and
    none is above ½; ¼ bounds only the diagonal. The eigenvalue 0 is not drawn. For α-entmax the
    poles are s = p^{2−α} of the classes of the support, the bounds Σs/2 and Σs/4.

    Args:
        x: Logits of shape [K], K ≥ 2.
        alpha: α in [1, 4]: 1 is softmax, 2 sparsemax.

    Returns:
        A Figure in the width of one journal column.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `x` does not have exactly one dimension, or fewer than two logits, or `alpha`
            is out of range.

    Examples:
        >>> (axes,) = plot_spectrum(jnp.array([1.0, 0.0, 0.0, 0.0])).axes
        >>> print(axes.get_title())
        Spectrum of J = diag(σ) − σσᵀ
    """
    _require_row(x, at_least=2)
    J = EntmaxJacobian.from_logits(x, alpha)
    s, matrix, total = "s", "diag(s) − ssᵀ/Σs", float(J.scale)
    half, quarter = "λ ≤ Σs/2", "sᵢ(1 − sᵢ/Σs) ≤ Σs/4"
    if alpha == 1:
        s, matrix, half, quarter = "σ", "diag(σ) − σσᵀ", "λ ≤ ½", "σᵢ(1 − σᵢ) ≤ ¼"
    poles = np.sort(np.asarray(J.scale * J.softmax.sigma, np.float64))
    outside = 0 if alpha == 1 else np.count_nonzero(poles == 0)
    poles, eigenvalues = poles[outside:], np.asarray(J.eigvalsh())[outside + 1 :]
    k = np.arange(1, len(poles))
    with journal_style(SINGLE_COLUMN, 2.6) as figure:
        axes = figure.subplots()
        axes.vlines(k, poles[:-1], poles[1:], color=BLUE, linewidth=_interval_width(k), alpha=0.5)
        axes.plot(k, poles[:-1], "_", color=BLUE, label=f"poles {s}₍ₖ₎ ≤ λ ≤ {s}₍ₖ₊₁₎")
        axes.plot(k, poles[1:], "_", color=BLUE)
        axes.plot(k, eigenvalues, ".", color=VERMILION, label="eigenvalues λₖ₊₁")
        guide(axes, total / 2, half)
        guide(axes, total / 4, quarter, ":")
        if poles[0] < 1e-2 * poles[-1]:
            axes.set_yscale("log", nonpositive="clip")
        axes.set(xlabel="k", ylabel="eigenvalue", title=f"Spectrum of J = {matrix}")
        whole_ticks(axes.xaxis)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _require_row(x: jax.Array, at_least: int = 1) -> None:
    if jnp.ndim(x) != 1 or jnp.size(x) < at_least:
        raise ValueError(f"`x` must have shape (K,) with K ≥ {at_least}, got {jnp.shape(x)}")


def _interval_width(k: np.ndarray) -> float:
    return 3 if len(k) <= _MAX_BARS else 0.8


def _heat_map(figure: Figure, axes: Axes, J: EntmaxJacobian, p: np.ndarray) -> None:
    width = len(p)
    shown = np.arange(width)
    if width > _MAX_CELLS:
        shown = np.sort(np.argsort(-p, stable=True)[:_MOST_PROBABLE])
    block = np.asarray(J.scale * jacobian_block(J.softmax.sigma, shown), np.float64)
    from matplotlib.colors import Normalize, SymLogNorm

    # Entries off the diagonal are smaller by a factor of about K: a linear scale shows them blank.
    limit = np.abs(block).max() or 1.0  # a saturated σ has J = 0: any symmetric limits will do
    if width <= _LINEAR_CLASSES:
        scale, ticks = Normalize(-limit, limit), None
    else:
        scale = SymLogNorm(linthresh=limit / 10**_DECADES, vmin=-limit, vmax=limit)
        decade = 10 ** np.floor(np.log10(limit))
        ticks = [-decade, -decade / 100, 0, decade / 100, decade]
    image = axes.imshow(block, cmap="RdBu", norm=scale, interpolation="nearest")
    figure.colorbar(image, ax=axes, ticks=ticks)
    axes.set(xlabel="logit j", ylabel="probability i")
    if len(shown) == width:
        whole_ticks(axes.xaxis)
        whole_ticks(axes.yaxis)
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
    whole_ticks(axes.xaxis)

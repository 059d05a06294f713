"""Pictures of J at one row: its entries, its diagonal, its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsoftjac._checks import as_real
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
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# A heat map of more cells than this has several to a pixel, and J takes O(K²) memory.
_MAX_CELLS = 512
_MOST_PROBABLE = 32  # of the classes of a wider row: nearly all that is not 0 lies among them
_LINEAR_CLASSES = 16  # up to so many the colours are linear
_DECADES = 6  # of the logarithmic part of the colour scale, on either side of 0
_MOST_NAMES = 16  # of classes that have room beside an axis
_LONGEST = 12  # letters of a name
_MAX_BARS = 128  # beyond, bars are narrower than a pixel and fade: draw lines of fixed width


def plot_jacobian(
    x: ArrayLike, *, alpha: float = 1.0, classes: Sequence[str] | None = None
) -> Figure:
    """The Jacobian of softmax, or of α-entmax, at one row of logits in three panels.

    A heat map of J = diag(σ) − σσᵀ, bars of its diagonal σᵢ(1 − σᵢ), and bars of σ; for α-entmax of
    J = diag(s) − ssᵀ/Σs with s = p^{2−α}, its diagonal, and p. Of rows wider than 512 the heat map
    shows the 32 most probable classes: nothing is averaged, J never formed.

    Args:
        x: Logits of shape [K].
        alpha: α in [1, 4]: 1 is softmax, 2 sparsemax.
        classes: Names of the K classes; numbers stand for those of more than 16.

    Returns:
        A Figure that belongs to no window: `savefig` it, or display it in a notebook.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `x` does not have exactly one dimension, is empty, or holds NaN or −∞ only,
            `alpha` is out of range, or there are more or fewer names.

    Examples:
        >>> _, diagonal, probabilities, *_ = plot_jacobian(np.zeros(4)).axes
        >>> print(*(bar.get_height() for bar in diagonal.patches))
        0.1875 0.1875 0.1875 0.1875
    """
    x = _row(x)
    if classes is not None and len(classes) != len(x):
        raise ValueError(f"`classes` must be {len(x)} names, got {len(classes)}")
    J = _jacobian(x, alpha)
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
        if classes is not None and len(classes) <= _MOST_NAMES:
            _write_names(matrix.yaxis, classes)
            for panel in (matrix, diagonal, probabilities):
                _write_names(panel.xaxis, classes, is_crowded=sum(map(len, classes)) > _LONGEST)
    return figure


def plot_spectrum(x: ArrayLike, *, alpha: float = 1.0) -> Figure:
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
        ValueError: if `x` does not have exactly one dimension, has fewer than two logits, or holds
            NaN or −∞ only, or `alpha` is out of range.

    Examples:
        >>> (axes,) = plot_spectrum(np.array([1.0, 0.0, 0.0, 0.0])).axes
        >>> print(axes.get_title())
        Spectrum of J = diag(σ) − σσᵀ
    """
    x = _row(x, at_least=2)
    J = _jacobian(x, alpha)
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


def _row(x: ArrayLike, at_least: int = 1) -> jax.Array:
    x = as_real("x", x)
    if x.ndim != 1 or x.size < at_least:
        raise ValueError(f"`x` must have shape (K,) with K ≥ {at_least}, got {x.shape}")
    return x


def _jacobian(x: jax.Array, alpha: float) -> EntmaxJacobian:
    J = EntmaxJacobian.from_logits(x, alpha)
    if not jnp.max(x) > -jnp.inf or jnp.any(jnp.isnan(x)):
        raise ValueError(f"`x` must have no NaN and not be −∞ throughout, got {np.asarray(x)}")
    return J


def _write_names(axis: Axis, names: Sequence[str], is_crowded: bool = False) -> None:
    """Names of classes as ticks, upright where it is crowded."""
    short = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]
    axis.set_ticks(range(len(short)), short, rotation=90 * is_crowded)


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

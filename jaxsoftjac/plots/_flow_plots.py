"""Pictures of gradient flow and of rounding errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxsoftjac.diagnostics import (
    GradientFlow,
    ProductErrors,
    TemperatureSweep,
    product_errors,
    summarize,
)
from jaxsoftjac.plots._style import (
    BLUE,
    DOUBLE_COLUMN,
    GREEN,
    GREY,
    VERMILION,
    guide,
    journal_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is shown of a flow, with its symbol and whether its scale is logarithmic.
_PANELS = {
    "entropy_share": ("H / log K", False),
    "spectral_norm_share": ("2‖J‖₂", True),
    "gradient_gain": ("‖J‖$_F$ / √(K − 1)", True),
    "digits_lost": ("digits lost, log₁₀ κ", False),
}
_FLOAT32_DIGITS = 7.2
_FAINTEST = 1e-12  # factor on a gradient: what is below is as good as 0
_DECADE = 0.1  # with 1 it is the least that a logarithmic scale shows
_MOST_LABELS = 24
_LINES = {
    "textbook": (VERMILION, "--", "o", "textbook σ⊙(v − ⟨σ, v⟩)"),
    "centred": (GREEN, ":", "s", "centred"),
    "jaxsoftjac": (BLUE, "-", "^", "jaxsoftjac: centred at a pivot"),
}


def plot_gradient_flow(
    flows: Mapping[str, GradientFlow] | GradientFlow, *, alpha: float = 1.0
) -> Figure:
    """The distribution of the gradient flow over the rows of each layer or head.

    Boxes hold half of the rows around the median, whiskers nine tenths. Rows with fewer than two
    classes are left out.

    Args:
        flows: by name, or one `GradientFlow` whose first axis is of layers or heads.
        alpha: the α they were measured at: where it is not 1, ‖J‖₂ is shown over its bound Σs/2.

    Returns:
        A Figure of four panels, in the width of two journal columns.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is nothing to show.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxsoftjac.diagnostics import gradient_flow
        >>> logits = {"flat": jnp.zeros((4, 4)), "peaked": 9 * jnp.eye(4)}
        >>> figure = plot_gradient_flow({name: gradient_flow(x) for name, x in logits.items()})
        >>> print([label.get_text() for label in figure.axes[-1].get_xticklabels()])
        ['flat', 'peaked']
    """
    if isinstance(flows, GradientFlow):
        count = flows.entropy.shape[0] if flows.entropy.ndim else 0
        flows = {str(i): jax.tree.map(lambda a, i=i: a[i], flows) for i in range(count)}
    if not flows:
        raise ValueError("`flows` must hold at least one layer or head, got none")
    quantiles = [summarize(flow).quantiles for flow in flows.values()]
    shown = np.arange(0, len(flows), -(-len(flows) // _MOST_LABELS))
    with journal_style(DOUBLE_COLUMN, 3.4) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        for axes, name in zip(panels.flat, _PANELS, strict=True):
            _boxes(axes, np.stack([getattr(q, name) for q in quantiles]))
            _label(axes, name, alpha)
            axes.set_xticks(shown, [list(flows)[i] for i in shown], rotation=90 * (len(flows) > 8))
            room = max(0.6, 1.6 - len(flows) / 2)  # so that a few boxes are no wider than many
            axes.set_xlim(-room, len(flows) - 1 + room)
        figure.supxlabel("boxes: half of the rows, whiskers: nine tenths", fontsize=7)
    return figure


def plot_temperature_sweep(sweep: TemperatureSweep, *, alpha: float = 1.0) -> Figure:
    """The gradient flow against the temperature: the median row, and a band of nine tenths.

    Args:
        sweep: what `temperature_sweep` returned.
        alpha: the α it was measured at, as in `plot_gradient_flow`.

    Returns:
        A Figure of four panels, in the width of two journal columns.

    Raises:
        ImportError: if matplotlib is not installed.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxsoftjac.diagnostics import temperature_sweep
        >>> sweep = temperature_sweep(jnp.zeros((5, 4)), [0.5, 1.0, 2.0])
        >>> print(plot_temperature_sweep(sweep).axes[0].get_xlabel())
        temperature T
    """
    rows = tuple(range(1, sweep.flow.entropy.ndim))
    quantiles = summarize(sweep.flow, axis=rows).quantiles
    with journal_style(DOUBLE_COLUMN, 1.9) as figure:
        for axes, name in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            low, _, median, _, high = np.asarray(getattr(quantiles, name))
            axes.plot(sweep.temperatures, median, "o-", color=BLUE)
            axes.fill_between(sweep.temperatures, low, high, color=BLUE, alpha=0.25, linewidth=0)
            _temperatures(axes, np.asarray(sweep.temperatures))
            _label(axes, name, alpha)
        figure.supxlabel("line: median row, band: nine tenths of the rows", fontsize=7)
    return figure


def plot_accuracy(errors: ProductErrors | None = None) -> Figure:
    """The float32 errors of products with J against the gap of the logits, by offset of the vector.

    Args:
        errors: what `product_errors` returned; measured on this machine if None.

    Returns:
        A Figure of one panel for each offset, in the width of two journal columns.

    Raises:
        ImportError: if matplotlib is not installed.

    Examples:
        >>> errors = product_errors(gaps=(0, 12), offsets=(0, 1000), rows=8)
        >>> print([axes.get_title() for axes in plot_accuracy(errors).axes])
        ['v ~ N(0, 1)', 'v ~ N(1000, 1)']
    """
    if errors is None:
        errors = product_errors(gaps=[2.5 * i for i in range(13)], offsets=(0.0, 1e3, 1e6))
    with journal_style(DOUBLE_COLUMN, 2.3) as figure:
        panels = figure.subplots(1, len(errors.offsets), sharey=True, squeeze=False)[0]
        for j, (axes, offset) in enumerate(zip(panels, errors.offsets, strict=True)):
            for name, found in errors.errors.items():
                color, dashes, marker, label = _LINES[name]
                axes.semilogy(
                    errors.gaps, found[:, j], dashes, color=color, marker=marker, label=label
                )
            guide(axes, 2.0**-24, "unit roundoff 2⁻²⁴")
            axes.set(title=f"v ~ N({offset:g}, 1)", xlabel="gap of the top logit, nats")
        panels[0].set_ylabel("‖error of Jv‖₁ / ‖Jv‖₁")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _boxes(axes: Axes, quantiles: np.ndarray) -> None:
    names = "whislo", "q1", "med", "q3", "whishi"
    axes.bxp(
        [dict(zip(names, row, strict=True)) for row in quantiles],
        positions=range(len(quantiles)),
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": BLUE, "alpha": 0.35, "linewidth": 0.6},
        medianprops={"color": VERMILION},
        whiskerprops={"linewidth": 0.6},
        capprops={"linewidth": 0.6},
    )


def _temperatures(axes: Axes, shown: np.ndarray) -> None:
    """A logarithmic axis of a few powers of two."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xlim(shown.min() / 1.25, shown.max() * 1.25)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("temperature T")


def _label(axes: Axes, name: str, alpha: float) -> None:
    title, is_logarithmic = _PANELS[name]
    title += " / Σs" if name == "spectral_norm_share" and alpha != 1 else ""
    axes.set_title(title)
    if is_logarithmic and axes.dataLim.y1 > 0:
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(max(min(axes.get_ylim()[0], _DECADE) / 1.5, _FAINTEST), 1.5)
    elif is_logarithmic or name == "entropy_share":
        axes.set_ylim(-0.02, 1.05)
    else:
        guide(axes, _FLOAT32_DIGITS, "")
        axes.set_ylim(-0.2, _FLOAT32_DIGITS + 1)
        place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate("all of float32's", (1, _FLOAT32_DIGITS), **place, fontsize=6, color=GREY)

"""What all pictures share: figures of journal width, colours safe for all eyes, whole ticks.

>>> figure = new_figure(SINGLE_COLUMN, 2.0)
>>> float(figure.get_figwidth())
3.5
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SINGLE_COLUMN, DOUBLE_COLUMN = 3.5, 7.2  # inches

# Of the palette of Okabe and Ito: safe for all eyes. Lines differ in dashes and markers too.
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty Figure that belongs to no window; sizes in inches.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plots need matplotlib: pip install "jaxsoftjac[plots]"', name="matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def journal_style(width: float, height: float) -> Iterator[Figure]:
    """A new Figure, and small type for all that is drawn into it."""
    figure = new_figure(width, height)
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield figure


def whole_ticks(axis: Axis) -> None:
    """Whole numbers only, and at most about ten of them, or five where they are long."""
    from matplotlib.ticker import MaxNLocator

    few = 9 if max(axis.get_view_interval()) < 1000 else 4
    axis.set_major_locator(MaxNLocator(nbins=few, integer=True, min_n_ticks=1))


def guide(axes: Axes, height: float, label: str, dashes: str = "--") -> None:
    """A thin horizontal line, labelled in the legend."""
    axes.axhline(height, color=GREY, linewidth=0.8, linestyle=dashes, label=label, zorder=0)

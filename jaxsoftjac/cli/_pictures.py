"""Pictures that `--plot` asks for.

>>> beside("out/worst.png", "flow")
'out/worst-flow.png'
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jaxsoftjac.cli._chunks import Measurements
from jaxsoftjac.cli._errors import InputError, shortened
from jaxsoftjac.diagnostics import GradientFlow, TemperatureSweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def beside(path: str, name: str) -> str:
    """The path of one more picture, called after the first."""
    return str(Path(path).with_stem(f"{Path(path).stem}-{name}"))


def save_pictures(path: str, pictures: dict[str, Callable[[], "Figure"]]) -> dict[str, str]:
    """Draws and saves each picture, the first at `path` and the others beside it.

    Raises:
        InputError: if a file cannot be written.
    """
    files = {}
    for name, draw in pictures.items():
        files[name] = beside(path, name) if files else path
        save_picture(draw(), files[name])
    return files


def save_picture(figure: "Figure", path: str) -> None:
    """Write one picture.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=200)
    except OSError as error:
        raise InputError(f"--plot {path}: cannot be written: {error.strerror or error}") from None


def flow_of(measured: Measurements, lead: tuple[int, ...]) -> GradientFlow:
    """The measured flow, by the first axis of an array of several dimensions (layers, examples)."""
    groups = lead[0] if len(lead) > 1 and len(measured["entropy"]) > 1 else 1
    return GradientFlow(**{name: jnp.reshape(v, (groups, -1)) for name, v in measured.items()})


def sweep_of(temperatures: Sequence[float], flows: list[Measurements]) -> TemperatureSweep:
    """The flows at each temperature, stacked."""
    fields = {name: jnp.stack([flow[name] for flow in flows]) for name in flows[0]}
    return TemperatureSweep(jnp.asarray(np.array(temperatures, np.float32)), GradientFlow(**fields))


def check_picture(path: str) -> None:
    """Find out that a picture cannot be written before anything is computed for it.

    Raises:
        InputError: if its format is unknown, its folder missing, or matplotlib not installed.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise InputError('--plot needs matplotlib: pip install "jaxsoftjac[plots]"') from None
    formats = sorted(set(FigureCanvasBase.get_supported_filetypes()) - {"pgf"})  # which needs TeX
    named = f"--plot {shortened(path, 200) or repr(path)}"
    if Path(path).suffix[1:].lower() not in formats:
        raise InputError(f"{named}: unknown picture format: expected {', '.join(formats)}")
    if not Path(path).parent.is_dir():
        raise InputError(f"{named}: there is no folder {shortened(str(Path(path).parent), 200)}")

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


_MOST_BOXES = 64


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


def flows_of(measured: Measurements, lead: tuple[int, ...], row: int) -> dict[str, GradientFlow]:
    """The measured flow by name: of the row, of all rows, or of each of few first indices."""
    count = len(measured["entropy"])
    names = [f"row {row}" if count == 1 else f"{count} rows"]
    if len(lead) > 1 and count > 1 and lead[0] <= _MOST_BOXES:
        names = [str(i) for i in range(lead[0])]
    parts = {field: np.split(values, len(names)) for field, values in measured.items()}
    return {
        name: GradientFlow(**{field: jnp.asarray(part[i]) for field, part in parts.items()})
        for i, name in enumerate(names)
    }


def sweep_of(temperatures: Sequence[float], flows: list[Measurements]) -> TemperatureSweep:
    """The flows at each temperature, stacked in the order of the temperatures."""
    order = np.argsort(temperatures)
    fields = {name: jnp.stack([flows[i][name] for i in order]) for name in flows[0]}
    ordered = np.array(temperatures, np.float32)[order]
    return TemperatureSweep(jnp.asarray(ordered), GradientFlow(**fields))


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

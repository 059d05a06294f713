"""What `jaxsoftjac inspect` reports of gradient flow: numbers, for JSON and for text.

>>> spectrum_report(jnp.zeros(2, jnp.float32), 1.0)["eigenvalues"]
[0.0, 0.5]
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac._checks import wide
from jaxsoftjac.cli._chunks import Measurements
from jaxsoftjac.operators import EntmaxJacobian, SoftmaxJacobian


def plain(value: Any) -> Any:
    """Python numbers and lists of an array; None for what strict JSON cannot say."""
    array = np.asarray(value)
    if array.dtype.kind in "iub":
        return array.tolist()
    wide = array.astype(np.float64)
    return np.where(np.isfinite(wide), wide, np.array(None)).tolist()


def summary(measured: Measurements) -> dict:
    """Least, median and greatest value of each field of numbers, that of some row."""
    median = partial(np.quantile, q=0.5, method="inverted_cdf")
    statistics = {"min": np.min, "median": median, "max": np.max}
    return {
        name: {k: plain(f(values.astype(np.float64))) for k, f in statistics.items()}
        for name, values in measured.items()
        if values.dtype != bool
    }


def flow_report(measured: Measurements) -> dict:
    """The gradient flow of one row, or in summary of all that have two classes or more."""
    if len(measured["classes"]) == 1:
        return {name: plain(value[0]) for name, value in measured.items()}
    counted = (measured["classes"] >= 2) | np.isnan(measured["entropy"])
    if counted.any():
        measured = {name: value[counted] for name, value in measured.items()}
    return {**summary(measured), "collapsed_rows": int(measured["is_collapsed"].sum())}


def spectrum_report(x: jax.Array, alpha: float) -> dict:
    """The eigenvalues of J at one row, and the probabilities, or s, between which they lie."""
    if alpha != 1:
        J = EntmaxJacobian.from_logits(wide(x), alpha)
        s = jnp.sort(J.scale * J.softmax.sigma)
        return {"eigenvalues": plain(J.eigvalsh()), "weights": plain(s)}
    J = SoftmaxJacobian.from_logits(wide(x))
    return {"eigenvalues": plain(J.eigvalsh()), "probabilities": plain(jnp.sort(J.sigma))}

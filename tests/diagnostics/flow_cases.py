"""Gradient flow compiled, and what it is of rows in which nothing flows."""

import jax
import numpy as np

from jaxsoftjac.diagnostics import GradientFlow, gradient_flow

FLOW = jax.jit(gradient_flow, static_argnames="axis")

NONE = {
    **dict.fromkeys(GradientFlow._fields, 0.0),
    "condition_number": 1.0,
}
ONE = {**NONE, **dict.fromkeys(["classes", "max_probability", "effective_classes", "support"], 1.0)}
SPOILT = {**dict.fromkeys(GradientFlow._fields, np.nan), "is_collapsed": 0.0}

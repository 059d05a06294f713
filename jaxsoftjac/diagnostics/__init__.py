"""Measurements of J = diag(σ) − σσᵀ on given logits: pure array functions, nothing is printed.

`verify_jacobian_properties` and `probe_jacobian_properties` ask whether J is what it should be;
`gradient_flow`, its `temperature_sweep` and its `attention_flow` what J does to gradients. With
`alpha` they measure the J of α-entmax, diag(s) − ssᵀ/Σs with s = p^{2−α}.

>>> import jax.numpy as jnp
>>> flow = gradient_flow(jnp.array([2.0, 1.0, 0.5, -0.5]))
>>> print(f"{flow.entropy_share:.3f} {flow.spectral_norm:.3f} {flow.effective_rank:.3f}")
0.763 0.352 2.144
"""

from jaxsoftjac.diagnostics._attention_flow import attention_flow
from jaxsoftjac.diagnostics._flow import GradientFlow, gradient_flow
from jaxsoftjac.diagnostics._probes import JacobianProbes, probe_jacobian_properties
from jaxsoftjac.diagnostics._properties import JacobianProperties, verify_jacobian_properties
from jaxsoftjac.diagnostics._rounding import ProductErrors, product_errors
from jaxsoftjac.diagnostics._summaries import (
    FlowSummary,
    TemperatureSweep,
    summarize,
    temperature_sweep,
)

__all__ = [
    "FlowSummary",
    "GradientFlow",
    "JacobianProbes",
    "JacobianProperties",
    "ProductErrors",
    "TemperatureSweep",
    "attention_flow",
    "gradient_flow",
    "probe_jacobian_properties",
    "product_errors",
    "summarize",
    "temperature_sweep",
    "verify_jacobian_properties",
]

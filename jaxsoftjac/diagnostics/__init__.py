"""Measurements of J = diag(σ) − σσᵀ on given logits: pure array functions, nothing is printed.

`verify_jacobian_properties` and `probe_jacobian_properties` ask whether J is what it should be;
`gradient_flow`, its `temperature_sweep` and its `attention_flow` what J does to gradients.

>>> import jax.numpy as jnp
>>> flow = gradient_flow(jnp.array([2.0, 1.0, 0.5, -0.5]))
>>> print(f"{flow.entropy_share:.3f} {flow.spectral_norm:.3f} {flow.effective_rank:.3f}")
0.763 0.352 2.144
"""

from jaxsoftjac.diagnostics._attention_flow import attention_flow as attention_flow
from jaxsoftjac.diagnostics._flow import GradientFlow as GradientFlow
from jaxsoftjac.diagnostics._flow import gradient_flow as gradient_flow
from jaxsoftjac.diagnostics._probes import JacobianProbes as JacobianProbes
from jaxsoftjac.diagnostics._probes import probe_jacobian_properties as probe_jacobian_properties
from jaxsoftjac.diagnostics._properties import JacobianProperties as JacobianProperties
from jaxsoftjac.diagnostics._properties import (
    verify_jacobian_properties as verify_jacobian_properties,
)
from jaxsoftjac.diagnostics._rounding import ProductErrors as ProductErrors
from jaxsoftjac.diagnostics._rounding import product_errors as product_errors
from jaxsoftjac.diagnostics._summaries import FlowSummary as FlowSummary
from jaxsoftjac.diagnostics._summaries import TemperatureSweep as TemperatureSweep
from jaxsoftjac.diagnostics._summaries import summarize as summarize
from jaxsoftjac.diagnostics._summaries import temperature_sweep as temperature_sweep

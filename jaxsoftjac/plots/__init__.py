"""Pictures of the softmax Jacobian, as matplotlib Figures that are returned and never shown.

matplotlib is the optional extra `plots`; it is imported when a picture is asked for.

>>> import jax.numpy as jnp
>>> figure = plot_jacobian(jnp.array([2.0, 1.0, 0.5]))
>>> [axes.get_title() for axes in figure.axes[:3]]
['Jacobian J = diag(σ) − σσᵀ', 'Diagonal σᵢ(1 − σᵢ)', 'Probabilities σ']
"""

from jaxsoftjac.plots._flow_plots import plot_accuracy, plot_gradient_flow, plot_temperature_sweep
from jaxsoftjac.plots._row_plots import plot_jacobian, plot_spectrum

__all__ = [
    "plot_accuracy",
    "plot_gradient_flow",
    "plot_jacobian",
    "plot_spectrum",
    "plot_temperature_sweep",
]

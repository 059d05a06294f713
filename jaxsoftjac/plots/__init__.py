"""Pictures of the softmax Jacobian, as matplotlib Figures that are returned and never shown.

matplotlib is the optional extra `plots`; it is imported when a picture is asked for.

>>> import jax.numpy as jnp
>>> figure = plot_jacobian(jnp.array([2.0, 1.0, 0.5]))
>>> [axes.get_title() for axes in figure.axes[:3]]
['Jacobian J = diag(σ) − σσᵀ', 'Diagonal σᵢ(1 − σᵢ)', 'Probabilities σ']
"""

from jaxsoftjac.plots._flow_plots import plot_accuracy as plot_accuracy
from jaxsoftjac.plots._flow_plots import plot_gradient_flow as plot_gradient_flow
from jaxsoftjac.plots._flow_plots import plot_temperature_sweep as plot_temperature_sweep
from jaxsoftjac.plots._row_plots import plot_jacobian as plot_jacobian
from jaxsoftjac.plots._row_plots import plot_spectrum as plot_spectrum

"""The gradient flow of many rows: its quantiles, and what becomes of it over temperatures."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftjac._checks import Axis, as_array, as_real, canonical_axes, checked_number, wide
from jaxsoftjac._rules import compiled
from jaxsoftjac.diagnostics._flow import GradientFlow, gradient_flow
from jaxsoftjac.sparse._functions import alpha_in_range, parts_of, whole_of


class FlowSummary(NamedTuple):
    """What `summarize` makes of many rows.

    Attributes:
        levels: the Q quantile levels, [Q].
        rows: how many rows with at least two classes there are.
        collapsed_share: the share of them that `is_collapsed`.
        quantiles: a `GradientFlow` of quantiles, [Q, ...] each.

    Examples:
        >>> summary = summarize(gradient_flow(jnp.zeros((2, 4), jnp.float32)))
        >>> print(summary.rows, summary.collapsed_share, summary.quantiles.entropy_share)
        2 0.0 [1. 1. 1. 1. 1.]
    """

    levels: jax.Array
    rows: jax.Array
    collapsed_share: jax.Array
    quantiles: GradientFlow


class TemperatureSweep(NamedTuple):
    """The flow of `x / T` for each temperature T.

    Attributes:
        temperatures: T, [n].
        flow: a `GradientFlow` with a leading axis of n.

    Examples:
        >>> sweep = temperature_sweep(jnp.zeros(3), [0.25, 1.0, 4.0])
        >>> print(sweep.temperatures, sweep.flow.entropy_share)
        [0.25 1.   4.  ] [1. 1. 1.]
    """

    temperatures: jax.Array
    flow: GradientFlow


def summarize(
    flow: GradientFlow,
    *,
    axis: Axis = None,
    levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
) -> FlowSummary:
    """Quantiles of a flow over its rows, each of them the value of one row.

    Rows with fewer than two classes (the first of causal attention) are left out; a NaN is not.

    Args:
        flow: what `gradient_flow` or `attention_flow` returned.
        axis: axis or axes to reduce; None for all. (0, 2) of [B, N, T] gives one summary per head.
        levels: of the quantiles, in [0, 1].

    Returns:
        A `FlowSummary`; NaN where no row counts, or one of them is NaN.

    Raises:
        ValueError: `axis` is out of range, or a level does not lie in [0, 1].

    Examples:
        >>> rows = jnp.array([[0.0, 0.0, 0.0, 0.0], [40.0, 0.0, 0.0, 0.0]], jnp.float32)
        >>> summary = summarize(gradient_flow(rows))
        >>> print(summary.collapsed_share, summary.quantiles.gradient_gain.round(2))
        0.5 [0.   0.   0.   0.25 0.25]
    """
    axes = canonical_axes(axis, flow.classes.ndim)
    for level in levels:
        checked_number("levels", level, "lie in [0, 1]", lambda p: 0 <= p <= 1)
    counted = (flow.classes >= 2) | jnp.isnan(flow.entropy)
    rows = jnp.sum(counted, axis=axes)

    def quantiles(field: jax.Array) -> jax.Array:
        field = jnp.where(counted, field.astype(flow.entropy.dtype), jnp.nan)
        spoilt = jnp.any(counted & jnp.isnan(field), axis=axes)
        at = jnp.asarray(levels, field.dtype)
        found = jnp.nanquantile(field, at, axis=axes, method="nearest")
        return jnp.where(jnp.broadcast_to(spoilt, found.shape), jnp.nan, found)

    collapsed = jnp.sum(counted & flow.is_collapsed, axis=axes)
    return FlowSummary(
        levels=jnp.asarray(levels, flow.entropy.dtype),
        rows=rows,
        collapsed_share=(collapsed / rows).astype(flow.entropy.dtype),
        quantiles=jax.tree.map(quantiles, flow),
    )


def temperature_sweep(
    x: ArrayLike,
    temperatures: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    alpha: ArrayLike = 1.0,
) -> TemperatureSweep:
    """The gradient flow of `x / T` at each temperature T.

    Cost: O(nK) time per row and O(K) memory beside the result: temperatures are taken in turn.

    Args:
        x: logits [..., K].
        temperatures: n positive numbers; the flow at any other is NaN.
        axis: as for `gradient_flow`.
        where: as for `gradient_flow`.
        alpha: as for `gradient_flow`.

    Returns:
        The temperatures and the flow, with a leading axis of n.

    Raises:
        TypeError: as `gradient_flow`, or `temperatures` are boolean or complex.
        ValueError: as `gradient_flow`, or `temperatures` do not have shape (n,).

    Examples:
        >>> sweep = temperature_sweep(jnp.array([4.0, 0.0, 0.0]), [0.25, 1.0, 4.0])
        >>> print(sweep.flow.entropy_share.round(2))    # hotter is flatter
        [0.   0.16 0.89]
    """
    x, temperatures = wide(as_real("x", x)), as_real("temperatures", temperatures)
    if temperatures.ndim != 1:
        raise ValueError(f"`temperatures` must have shape (n,), got {temperatures.shape}")
    known, traced = parts_of(alpha_in_range(alpha))
    where = None if where is None else as_array("where", where)
    axes = canonical_axes(axis, x.ndim)
    temperatures = temperatures.astype(x.dtype)
    flow = _flows(x, temperatures, where, traced, alpha=known, axes=axes)
    return TemperatureSweep(temperatures, flow)


@compiled("alpha", "axes")
def _flows(
    x: jax.Array,
    temperatures: jax.Array,
    where: jax.Array | None,
    traced: jax.Array | None,
    *,
    alpha: float | None,
    axes: tuple[int, ...],
) -> GradientFlow:
    of_rows = whole_of(alpha, traced)

    def at(temperature: jax.Array) -> GradientFlow:
        positive = jnp.where(temperature > 0, temperature, jnp.nan)
        return gradient_flow(x / positive, axis=axes, where=where, alpha=of_rows)

    return jax.lax.map(at, temperatures)

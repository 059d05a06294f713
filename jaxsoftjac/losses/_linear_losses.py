"""The loss of each example beneath a vocabulary, from the terms of its row of logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac.losses._arguments import LossOptions, counted, mixed, weighted
from jaxsoftjac.losses._running import log_sum
from jaxsoftjac.losses._vocabulary import Constants, Terms


class OfClasses(NamedTuple):
    """What class weights w make of the terms of the loss."""

    at_label: jax.Array  # w of the label, [..., 1]
    mean: jax.Array  # Σw over the classes that are not excluded, over their number
    mean_logits: jax.Array | None  # Σwz likewise, [..., 1]; None without smoothing


def log_normalizer(terms: Terms, constants: Constants) -> jax.Array:
    """The logsumexp of each example, [..., 1]; −∞ without classes."""
    value = terms.peak + log_sum(terms.rest, terms.tail)
    if constants.origin is not None:
        value = value + constants.origin
    return jnp.where(terms.rest < 0, -jnp.inf, value)


def loss(
    terms: Terms,
    constants: Constants,
    options: LossOptions,
    of_classes: OfClasses | None = None,
) -> jax.Array:
    """The loss of each example, [..., 1]."""
    surprise, uniform, lse = terms.surprise, None, None
    if options.has_z_loss:
        lse = log_normalizer(terms, constants)
    if of_classes is not None:
        surprise = weighted(of_classes.at_label, counted(surprise, options))
    if of_classes is not None and of_classes.mean_logits is not None:
        from_origin = log_normalizer(terms, constants._replace(origin=None))
        uniform = weighted(of_classes.mean, from_origin) - of_classes.mean_logits
    elif options.has_smoothing:
        moved = terms.peak - lax.stop_gradient(terms.peak)  # by which the top is ahead of its value
        uniform = (terms.descent + moved) + log_sum(terms.rest, terms.tail)
    return mixed(surprise, uniform, lse, options)


def slopes_by_terms(
    terms: Terms, constants: Constants, weights: jax.Array, options: LossOptions
) -> Terms:
    """The derivatives of Σ w·loss by the terms; None by those it does not use."""
    _, pullback = jax.vjp(lambda terms: loss(terms, constants, options), terms)
    by_terms = pullback(weights)[0]._replace(target=None)
    if options.is_plain:
        by_terms = by_terms._replace(tail=None, rest=None, peak=None)
    return by_terms


def mass_of_target(
    weights: jax.Array, options: LossOptions, of_classes: OfClasses | None
) -> tuple[jax.Array, LossOptions]:
    """Weights and options of a loss that has the same Gauss–Newton product, without `of_classes`.

    The logits' Hessian of Σt·(−log σ) is that of −log σ at any label, Σt times.
    """
    if of_classes is None:
        return weights, options._replace(label_smoothing=0.0)
    s = jnp.asarray(options.label_smoothing, weights.dtype)
    mass = (1 - s) * of_classes.at_label + s * of_classes.mean
    mass = jnp.where(mass == 0, 1e-30, mass)  # z_loss, which is not weighted by class, stays
    return weights * mass, LossOptions(0.0, jnp.asarray(options.z_loss, mass.dtype) / mass)

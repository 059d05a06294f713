"""Samples of curvature in an optimizer weigh what the exact matrix does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit

from jaxsoftjac.optimizers import gauss_newton_cg

pytestmark = pytest.mark.once

random = np.random.default_rng(0)
PARAMS = {"first": jnp.asarray(random.normal(size=(4, 5)), WIDE)}
PARAMS["kernel"] = jnp.asarray(random.normal(size=(5, 3)), WIDE)
TANGENTS = jax.tree.map(jnp.cos, PARAMS)
INPUTS = jnp.asarray(random.normal(size=(6, 4)), WIDE)
LABELS = np.array([0, 2, 2, 1, 1, 0])


def hidden(params, inputs):
    return jnp.tanh(inputs @ params["first"])


def model(params, inputs):
    return hidden(params, inputs) @ params["kernel"]


def sampled_step(model, damping=0.1, labels=LABELS, **options):
    """A step by the sampled matrix, with the samples of one key."""
    optimizer = gauss_newton_cg(
        model,
        head="kernel" if model is hidden else None,
        samples=2,
        damping=damping,
        adapt_damping=False,
        precondition=False,
        cg_iterations=60,
        cg_tolerance=1e-12,
        options=options,
    )
    state, batch = optimizer.init(PARAMS), {"inputs": INPUTS, "labels": labels}
    return quick_jit(lambda: optimizer.update(TANGENTS, state, PARAMS, **batch)[0])()


@pytest.mark.parametrize("of", [model, hidden])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_weights_weigh_the_samples(of, smoothing):
    w = jnp.asarray([0.5, 1, 3], WIDE)
    at_labels = w[LABELS]
    masses = (1 - smoothing) * at_labels + smoothing * jnp.mean(w)
    ratio = float(jnp.sum(masses) / jnp.sum(at_labels))  # of the means' matrices
    step = sampled_step(of, class_weights=w, label_smoothing=smoothing)
    weighted = sampled_step(of, damping=0.1 / ratio, weights=masses)
    jax.tree.map(lambda a, b: close(ratio * a, b, scale=100.0), step, weighted)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_mass_of_probabilities_weighs_the_samples(smoothing):
    target = jnp.asarray(
        random.dirichlet(np.ones(3), size=6) * [[0], [1], [4], [1], [0], [2]], WIDE
    )
    masses = (1 - smoothing) * jnp.sum(target, axis=-1) + smoothing
    ratio = float(jnp.mean(masses))
    step = sampled_step(model, labels=target, label_smoothing=smoothing)
    weighted = sampled_step(model, damping=0.1 / ratio, weights=masses)
    jax.tree.map(lambda a, b: close(ratio * a, b, scale=100.0), step, weighted)


def test_samples_leave_out_classes():
    kept = jnp.ones((6, 3), bool).at[jnp.arange(6), (LABELS + 1) % 3].set(False)

    def excluding(params, inputs):
        return jnp.where(kept, model(params, inputs), -jnp.inf)

    found, expected = sampled_step(model, where=kept), sampled_step(excluding)
    jax.tree.map(partial(close, scale=100.0), found, expected)


def test_labels_of_another_loss_may_be_anything():
    """Its preconditioner is sampled: of these labels it reads nothing."""

    def distances(z, labels):
        return jnp.sum((z - labels["target"][:, None]) ** 2, axis=-1)

    optimizer = gauss_newton_cg(model, loss=distances)
    batch = {"inputs": INPUTS, "labels": {"target": jnp.cos(INPUTS[:, 0])}}
    state = optimizer.init(PARAMS)
    step = quick_jit(lambda: optimizer.update(TANGENTS, state, PARAMS, **batch)[0])()
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(step))

"""Cross-entropy as the loss of models of flax and equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsoftjac as jsj

pytestmark = pytest.mark.once


def separable():
    random = np.random.default_rng(0)
    features = random.normal(size=(64, 5)).astype(np.float32)
    labels = (features @ random.normal(size=(5, 3))).argmax(-1).astype(np.int32)
    return features, labels


@jax.numpy_dtype_promotion("standard")  # optax's own updates mix floats and step counts
def test_trains_a_flax_model():
    features, labels = separable()
    model = nnx.Sequential(
        nnx.Linear(5, 16, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(16, 3, rngs=nnx.Rngs(1))
    )
    optimizer = nnx.Optimizer(model, optax.adam(3e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean(jsj.cross_entropy(model(features), labels))

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    values = [float(step(model, optimizer)) for _ in range(30)]
    assert values[-1] < 0.5 * values[0]


@jax.numpy_dtype_promotion("standard")
def test_trains_an_equinox_model():
    features, labels = separable()
    model = eqx.nn.MLP(5, 3, 16, 1, key=jax.random.key(0), dtype=jnp.float32)
    optimizer = optax.adam(3e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            return jnp.mean(jsj.cross_entropy(jax.vmap(model)(features), labels))

        value, gradient = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, value

    values = []
    for _ in range(30):
        model, state, value = step(model, state)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]

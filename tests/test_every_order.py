"""What the rules of softmax are for: structure at every order, one residual, no new traces."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, plain_softmax

import jaxsoftjac as jsj

pytestmark = pytest.mark.once


def derivative_along(softmax, directions):
    """The derivative of softmax along all the directions, one after another, in float32."""

    def along(f, t):
        return lambda x: jax.jvp(f, (x,), (t,))[1]

    f = softmax
    for t in directions:
        f = along(f, jnp.asarray(t, jnp.float32))
    return np.asarray(jax.jit(f)(jnp.asarray([3, 0.5, -1, 0], jnp.float32)))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_structure_survives_every_order(order):
    """J·1 = 0: a common offset of the directions changes nothing, at any order. Differentiating the
    textbook formula again loses that, which shows that the check can fail.
    """
    directions = np.array([[0.5, -0.25, 1, 0.125], [1, 0.5, -0.5, 0.25], [-1, 0.25, 0.5, 1]])[
        :order
    ]
    shifted = directions + 2.0**13  # exact in float32

    def loss_of_digits(softmax):
        expected = derivative_along(softmax, directions)
        return np.abs(derivative_along(softmax, shifted) - expected).max() / np.abs(expected).max()

    assert loss_of_digits(jsj.softmax) < 1e-5
    assert loss_of_digits(plain_softmax) > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_one_residual_of_the_logits_size(name, dtype):
    x = jnp.ones((3, 4), dtype)
    _, pullback = jax.vjp(getattr(jsj, name), x)
    large = [a for a in jax.tree.leaves(pullback) if a.size == x.size]
    assert [(a.shape, a.dtype) for a in large] == [(x.shape, x.dtype)]


def test_no_retracing():
    f = jax.jit(chex.assert_max_traces(lambda x: jax.grad(lambda x: jsj.softmax(x)[0])(x), n=1))
    for scale in (1.0, 2.0, 3.0):
        f(scale * jnp.arange(4, dtype=jnp.float32))
    chex.clear_trace_counter()


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_a_sharded_class_axis(axis_type):
    mesh = jax.make_mesh((4,), ("k",), axis_types=(getattr(jax.sharding.AxisType, axis_type),))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), WIDE)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "k")))
    with jax.set_mesh(mesh):
        for f in (jsj.softmax, jsj.log_softmax, lambda x: jsj.logsumexp(x, axis=-1)):
            derivative = jax.jit(jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)))))
            close(derivative(sharded), derivative(x))

"""dot_product_attention: accuracy against long double, and a training step of a transformer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import dense
from helpers import RTOL, close, quick_jit

from jaxsoftjac.attention import dot_product_attention

pytestmark = pytest.mark.once


# Accuracy


def long_gradient(q, k, v, g):
    """Gradient of ⟨g, attention⟩ of one head, [n, H], in long double, measured from the top key."""
    q, k, v, g = (np.asarray(a[0, :, 0]).astype(np.longdouble) for a in (q, k, v, g))
    scale = q.shape[-1] ** np.longdouble(-0.5)
    s = q @ k.T * scale
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d = g @ (v - v.mean(0)).T
    d = d - np.take_along_axis(d, s.argmax(-1)[:, None], -1)
    w = p * (d - (p * d).sum(-1, keepdims=True)) * scale
    return w @ k, w.T @ q, p.T @ g


@functools.cache
def pulled(how, block_size):
    attend = functools.partial(dot_product_attention, block_size=block_size)
    return how(lambda q, k, v, g: jax.vjp(attend, q, k, v)[1](g))


def errors(dtype, gap, offset, how=jax.jit, block_size=None):
    """Of the gradient: the median over rows of ‖error‖/‖row‖, by query, key and value."""
    n, random = 64, np.random.default_rng(1)
    q, k, v, g = (random.normal(size=(1, n, 1, 32)) for _ in range(4))
    k = k + offset
    q = q + (k - offset) * gap / 32
    x = tuple(jnp.asarray(a, dtype) for a in (q, k, v + offset, g))
    gradient = pulled(how, block_size)(*x)
    return [
        np.median(
            np.linalg.norm(np.asarray(a[0, :, 0]).astype(np.longdouble) - b, axis=-1)
            / np.linalg.norm(b.astype(np.float64), axis=-1)
        )
        for a, b in zip(gradient, long_gradient(*x), strict=True)
    ]


@pytest.mark.parametrize(
    ("gap", "how"), [(0, jax.jit), (60, jax.jit), (100, jax.jit), (100, lambda f: f)]
)
def test_rows_on_one_key_keep_their_digits(gap, how):
    """The nearer a row is to one key, the more digits p⊙(g − ⟨p, g⟩) loses: at gap 100 jax.nn's is
    off by 2e-4.
    """
    assert max(errors(jnp.float32, gap, 0.0, how)) < 2e-5


@pytest.mark.parametrize("offset", [0.0, 16.0, 64.0])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_common_part_of_keys_and_values_costs_nothing(dtype, offset):
    """Many blocks: the sum over those of queries is rounded once, at its end."""
    assert max(errors(dtype, 0, offset, block_size=8)) < RTOL[jnp.dtype(dtype).name] / 2


HIDDEN = {  # the last two of 12 keys, from queries 0 … 9
    "lengths": {"key_value_seq_lengths": np.array([10], np.int32)},
    "causal": {"is_causal": True},
    "mask": {"mask": np.arange(12) < 10},
    "bias": {"bias": np.where(np.arange(12) < 10, 0, -1e30).astype(np.float32)},
}


@pytest.mark.parametrize("size", [1e3, 1e10])
@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_not_seen_costs_no_digits(name, size):
    """Stale keys and values of a cache, later tokens, outliers without weight."""
    hidden = {
        k: x[None, None, None] if k in ("mask", "bias") else x for k, x in HIDDEN[name].items()
    }
    q, k, v, g = jax.random.normal(jax.random.key(3), (4, 1, 12, 2, 8))
    q, g = q[:, :10], g[:, :10]

    @jax.jit
    def value_and_gradient(q, k, v):
        attend = functools.partial(dot_product_attention, block_size=(4, 5), **hidden)
        value, pullback = jax.vjp(attend, q, k, v)
        return value, *(a[:, :10] for a in pullback(g))

    far = (a.at[:, 10:].set(size) for a in (k, v))
    for actual, expected in zip(
        value_and_gradient(q, *far), value_and_gradient(q, k, v), strict=True
    ):
        close(actual, expected)
        assert np.max(np.abs(actual - expected)) < 2e-6


def test_queries_that_fill_up_a_block_have_no_weight():
    """Their scores are those of a bias that all queries share, here beyond the range of exp."""
    q, k, v, g = jax.random.normal(jax.random.key(3), (4, 1, 5, 2, 4))
    bias = 100 * jnp.arange(5.0)[None, None, None]

    def gradient(*options):
        attend = functools.partial(dot_product_attention, block_size=options)
        return jax.jit(lambda *x: jax.vjp(attend, *x)[1](g))(q, k, v, bias)

    jax.tree.map(close, gradient(2, 5), gradient(5, 5))


# In a model


def test_a_meanflow_step_of_a_tiny_transformer():
    """jvp inside grad: u(z, t) learns the average velocity, du/dt by the chain rule (MeanFlow)."""
    width, heads = 8, 2
    keys = jax.random.split(jax.random.key(0), 5)
    weights = {
        name: 0.5 * jax.random.normal(key, (width, width), jnp.float32)
        for name, key in zip("qkvop", keys, strict=True)
    }

    def velocity(weights, z, t, attention):
        x = z + jnp.sin(t * jnp.arange(width, dtype=z.dtype))[None, None]
        split = (*x.shape[:2], heads, -1)
        o = attention(*((x @ weights[name]).reshape(split) for name in "qkv"))
        return z + jnp.tanh(o.reshape(x.shape) @ weights["o"]) @ weights["p"]

    def loss(weights, noise, data, t, attention):
        z, v = (1 - t) * data + t * noise, noise - data
        u = functools.partial(velocity, weights, attention=attention)
        mean, slope = jax.jvp(u, (z, t), (v, jnp.ones_like(t)))
        return jnp.mean((mean - jax.lax.stop_gradient(v - t * slope)) ** 2)

    data, noise = jax.random.normal(jax.random.key(1), (2, 3, 6, width), jnp.float32)
    t = jnp.float32(0.3)
    steps = {
        attention: quick_jit(functools.partial(jax.value_and_grad(loss), attention=attention))
        for attention in (dot_product_attention, lambda *x: dense(*x)[0])
    }
    ours, expected = (step(weights, noise, data, t) for step in steps.values())
    jax.tree.map(close, ours, expected)
    step, first = next(iter(steps.values())), ours[0]
    for _ in range(20):
        value, gradient = step(weights, noise, data, t)
        weights = jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient)
    assert value < 0.7 * first

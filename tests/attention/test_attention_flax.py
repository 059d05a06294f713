"""as_flax_attention in the layers of Flax: training and decoding, NNX and Linen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from helpers import close, quick_jit

from jaxsoftjac.attention import as_flax_attention

pytestmark = pytest.mark.once

X = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
CAUSAL = np.tril(np.ones((1, 1, 5, 5), bool))
LAYER = {"num_heads": 2, "qkv_features": 8, "out_features": 8}


@pytest.fixture(autouse=True)
def _promotion_as_flax_needs_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def nnx_layer(attention, **options):
    return nnx.MultiHeadAttention(
        **LAYER, in_features=8, attention_fn=attention, rngs=nnx.Rngs(0), **options
    )


def linen_layer(attention, **options):
    return linen.MultiHeadDotProductAttention(**LAYER, attention_fn=attention, **options)


def value_and_gradient(layer):
    def loss(layer):
        y = layer(X, mask=CAUSAL)
        return jnp.mean(jnp.sin(y)), y

    return nnx.jit(nnx.value_and_grad(loss, has_aux=True))(layer)


def test_nnx_as_with_its_own_function():
    results = [
        value_and_gradient(nnx_layer(f, decode=False))
        for f in (as_flax_attention, nnx.dot_product_attention)
    ]
    jax.tree.map(close, *results)


def test_linen_as_with_its_own_function():
    x = jnp.asarray(X)
    layers = [linen_layer(f) for f in (as_flax_attention, linen.dot_product_attention)]
    variables = layers[0].init(jax.random.key(0), x)

    @quick_jit
    def both(variables):
        return [
            jax.value_and_grad(lambda p, f=f: jnp.mean(jnp.sin(f.apply(p, x, mask=CAUSAL))))(
                variables
            )
            for f in layers
        ]

    jax.tree.map(close, *both(variables))


def test_nnx_trains_with_dropout():
    layer = nnx_layer(as_flax_attention, decode=False, dropout_rate=0.2)
    optimizer = nnx.Optimizer(layer, optax.adam(3e-2), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        def loss(layer):
            return jnp.mean((layer(X, mask=CAUSAL, deterministic=False) - jnp.cos(X)) ** 2)

        value, gradient = nnx.value_and_grad(loss)(layer)
        optimizer.update(layer, gradient)
        return value

    values = [step(layer, optimizer) for _ in range(30)]
    assert values[-1] < 0.6 * values[0]
    y = [layer(X, mask=CAUSAL, deterministic=d) for d in (True, True, False, False)]
    close(y[0], y[1])
    assert np.abs(y[2] - y[3]).max() > 1e-3


def test_linen_trains_with_dropout():
    layer, x = linen_layer(as_flax_attention, dropout_rate=0.2), jnp.asarray(X)
    variables = layer.init(jax.random.key(0), x, deterministic=True)
    optimizer = optax.adam(3e-2)

    @quick_jit
    def step(variables, state, key):
        def loss(variables):
            options = {"mask": CAUSAL, "deterministic": False, "dropout_rng": key}
            return jnp.mean((layer.apply(variables, x, **options) - jnp.cos(x)) ** 2)

        value, gradient = jax.value_and_grad(loss)(variables)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, updates), state, value

    state, values = optimizer.init(variables), []
    for i in range(30):
        variables, state, value = step(variables, state, jax.random.key(i))
        values.append(value)
    assert values[-1] < 0.6 * values[0]


def test_nnx_decodes_with_a_cache():
    layer = nnx_layer(as_flax_attention, decode=False)
    expected = layer(X, mask=CAUSAL)
    layer.init_cache(X.shape)
    decode = nnx.jit(lambda layer, x: layer(x, decode=True))
    for t in range(X.shape[1]):
        close(decode(layer, X[:, t : t + 1]), expected[:, t : t + 1])


def test_linen_decodes_with_a_cache():
    x = jnp.asarray(X)
    layer = linen_layer(as_flax_attention, decode=True)
    variables = layer.init(jax.random.key(0), x)
    cache, params = variables["cache"], variables["params"]
    expected = linen_layer(as_flax_attention).apply({"params": params}, x, mask=CAUSAL)

    @quick_jit
    def decode(cache, x):
        return layer.apply({"params": params, "cache": cache}, x, mutable=["cache"])

    for t in range(x.shape[1]):
        y, variables = decode(cache, x[:, t : t + 1])
        cache = variables["cache"]
        close(y, expected[:, t : t + 1])


@pytest.mark.parametrize(
    ("batch", "bias", "mask"),
    [
        ((), (2, 4, 5), (4, 5)),
        ((3, 2), (3, 1, 2, 4, 5), (2, 1, 4, 5)),
        ((2, 1, 3), (1, 1, 1), (2, 1, 3, 2, 4, 5)),
    ],
)
def test_any_number_of_batch_axes(batch, bias, mask):
    """As Flax's own function with weights of dropout 0, which takes the textbook way."""
    random = np.random.default_rng(0)
    arrays = [(*batch, 4, 2, 4), (*batch, 5, 2, 4), (*batch, 5, 2, 3), bias]
    q, k, v, b = (jnp.asarray(random.normal(size=s), jnp.float32) for s in arrays)
    m = jnp.asarray(random.random(mask) > 0.2, jnp.float32)  # numbers, as make_causal_mask's

    @quick_jit
    def both(*x):
        return as_flax_attention(*x), linen.dot_product_attention(*x, dropout_rate=0.0)

    close(*both(q, k, v, b, m))


def test_dtype_and_what_cannot_be_had():
    q = jnp.ones((1, 4, 2, 4), jnp.float32)
    assert as_flax_attention(q, q, q, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    attend = functools.partial(as_flax_attention, q, q, q)
    with pytest.raises(ValueError, match=r"`module` must be None .* got object"):
        attend(module=object())
    with pytest.raises(ValueError, match=r"`dropout_key` must be a random key"):
        attend(dropout_rate=0.1)
    with pytest.raises(ValueError, match=r"`mask` must broadcast .*\(1,\).* got \(2, 1, 1, 4\)"):
        attend(mask=np.ones((2, 1, 1, 4), bool))

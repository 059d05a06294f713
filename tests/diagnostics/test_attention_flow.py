"""Attention flow against the flow of the whole map, and models read by interception."""

import functools
from unittest import mock

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import quick_jit

from jaxsoftjac.diagnostics import attention_flow, gradient_flow

pytestmark = pytest.mark.once

B, T, S, N, G, H = 2, 5, 6, 4, 2, 3
RANDOM = np.random.default_rng(0)
QUERY = 2 * RANDOM.normal(size=(B, T, N, H)).astype(np.float32)
KEY = 2 * RANDOM.normal(size=(B, S, G, H)).astype(np.float32)
BIAS = RANDOM.normal(size=(1, N, T, S)).astype(np.float32)
MASK = RANDOM.random((B, 1, 1, S)) < 0.7
LENGTHS = {"query_seq_lengths": np.array([5, 3]), "key_value_seq_lengths": np.array([4, 6])}


quick_flow = quick_jit(gradient_flow)


def whole_map(bias=0, mask=True, scale=H**-0.5, softcap=None):
    """The flow of all logits at once, in the order that jax.nn.dot_product_attention takes."""
    logits = np.einsum("btnh,bsnh->bnts", QUERY, np.repeat(KEY, N // G, axis=2)) * scale
    logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
    logits = (logits + bias).astype(np.float32)
    return quick_flow(logits, where=np.broadcast_to(mask, logits.shape))


t, s = np.arange(T)[:, None], np.arange(S)
LENGTH_MASK = (t < np.array([5, 3])[:, None, None, None]) & (
    s < np.array([4, 6])[:, None, None, None]
)


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"bias": BIAS, "scale": 0.5}, {"bias": BIAS, "scale": 0.5}),
        ({"mask": MASK, "bias": BIAS[0, 0, 0]}, {"mask": MASK, "bias": BIAS[0, 0, 0]}),
        ({"mask": s > t, "logit_softcap": 2.0}, {"mask": s > t, "softcap": 2.0}),
        ({"is_causal": True}, {"mask": s <= t}),
        ({"local_window_size": (2, 1)}, {"mask": (s >= t - 2) & (s <= t + 1)}),
        (
            {"local_window_size": 1, "is_causal": True, **LENGTHS},
            {"mask": (s >= t - 1) & (s <= t) & LENGTH_MASK},
        ),
    ],
)
def test_blocks_give_the_flow_of_the_whole_map(options, expected, block_size):
    blocks = functools.partial(attention_flow, block_size=block_size, **options)
    flow = quick_jit(blocks)(QUERY, KEY)
    chex.assert_tree_shape_prefix(flow, (B, N, T))
    chex.assert_trees_all_close(flow, whole_map(**expected), rtol=2e-5, atol=1e-6)


def test_the_masks_are_those_of_jax():
    q, k = np.zeros((B, T, 1, S), np.float32), np.zeros((B, S, 1, S), np.float32)
    options = {
        "is_causal": True,
        "local_window_size": (2, 0),
        "key_value_seq_lengths": np.array([3, 6], np.int32),
    }
    theirs = quick_jit(functools.partial(jax.nn.dot_product_attention, **options))
    with jax.numpy_dtype_promotion("standard"):  # it mixes int32 and int64
        weights = theirs(q, k, k + np.eye(S, dtype="f")[:, None])
    classes = quick_jit(functools.partial(attention_flow, **options))(q, k).classes
    np.testing.assert_array_equal(classes[:, 0], (weights[:, :, 0] > 0).sum(-1))


def test_leading_axes_are_layers_and_batches_are_optional():
    causal = functools.partial(attention_flow, is_causal=True)

    @quick_jit
    def each(query, key):
        layers = causal(query[:, None], key[:, None], jnp.zeros_like(BIAS[:, :, :1]))
        return causal(query, key), layers, causal(query[0], key[0])

    flow, layers, single = each(QUERY, KEY)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[:, 0], layers), flow, rtol=1e-5)
    chex.assert_trees_all_close(single, jax.tree.map(lambda a: a[0], flow), rtol=1e-5)


def test_no_map_is_formed():
    n = 2048  # the map is 16 times as large as all that a block of 16 queries needs
    q = jax.ShapeDtypeStruct((1, n, 2, 4), jnp.float32)
    flow = functools.partial(attention_flow, is_causal=True, block_size=16)
    program = jax.jit(flow).lower(q, q).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * 2 * n * n / 8


class Blocks(nnx.Module):
    """Two attention layers with a residual connection each."""

    def __init__(self, rngs):
        self.layers = nnx.List(
            nnx.MultiHeadAttention(num_heads=N, in_features=8, decode=False, rngs=rngs)
            for _ in range(2)
        )

    def __call__(self, x, mask):
        for layer in self.layers:
            x = x + layer(x, mask=mask)
        return x


def test_an_nnx_model_is_read_and_not_changed():
    model, attend = Blocks(nnx.Rngs(0)), jax.nn.dot_product_attention
    x = RANDOM.normal(size=(B, T, 8)).astype(np.float32)
    causal = np.tril(np.ones((1, 1, T, T), bool))

    @nnx.jit
    def outputs_and_flows(model, x):
        flows = []

        def watched(query, key, value, bias=None, mask=None, **options):
            flows.append((attention_flow(query, key, bias, mask, **options), query, key))
            return attend(query, key, value, bias, mask, **options)

        with mock.patch.object(jax.nn, "dot_product_attention", watched):
            return model(x, causal), flows

    read, flows = outputs_and_flows(model, x)
    np.testing.assert_allclose(read, nnx.jit(model)(x, causal), rtol=1e-5, atol=1e-6)
    assert jax.nn.dot_product_attention is attend
    assert len(flows) == 2
    for flow, query, key in flows:
        logits = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(np.float32(8 // N))
        expected = quick_flow(logits, where=np.broadcast_to(causal, logits.shape))
        chex.assert_trees_all_close(flow, expected, rtol=1e-4, atol=1e-6)


class Residual(eqx.Module):
    """An attention layer with a residual connection."""

    attention: eqx.nn.MultiheadAttention

    def __call__(self, x):
        return x + self.attention(x, x, x, jnp.tril(jnp.ones((T, T), bool)))


def test_an_equinox_model_is_read_and_not_changed():
    attend, weights_of = eqx.nn.MultiheadAttention.__call__, jax.nn.softmax
    model = Residual(eqx.nn.MultiheadAttention(N, 8, dtype=jnp.float32, key=jax.random.key(0)))
    x = RANDOM.normal(size=(B, T, 8)).astype(np.float32)

    def output_and_flows(x):
        flows = []

        def watched_call(self, query, key_, value, mask=None, **options):
            def heads(q, k, v):
                flows.append(attention_flow(q, k, mask=mask))
                return q, k, v

            return attend(self, query, key_, value, mask, process_heads=heads, **options)

        with mock.patch.object(eqx.nn.MultiheadAttention, "__call__", watched_call):
            return model(x), flows

    read, (flow,) = jax.jit(jax.vmap(output_and_flows))(x)
    np.testing.assert_allclose(read, jax.vmap(model)(x), rtol=1e-5, atol=1e-6)
    assert eqx.nn.MultiheadAttention.__call__ is attend

    largest = []  # the largest weight of each row, as the model itself computes it

    def watched_softmax(logits, **options):
        weights = weights_of(logits, **options)
        jax.debug.callback(lambda w: largest.append(np.sort(w.max(-1))), weights)
        return weights

    with mock.patch.object(jax.nn, "softmax", watched_softmax):
        model(x[0])
    jax.effects_barrier()
    expected = np.sort(np.stack(largest), axis=0)
    found = np.sort(np.sort(flow.max_probability[0], axis=-1), axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": KEY[..., :2]}, ValueError, r"`key` must have shape \[..., S, G, H\]"),
        ({"key": KEY[:1]}, ValueError, r"got \(1, 6, 2, 3\)"),
        ({"key": KEY[:, :, [0, 1, 1]]}, ValueError, "G a divisor of N"),
        ({"query": QUERY[0, 0]}, ValueError, r"`query` must have shape \[..., T, N, H\]"),
        ({"query": QUERY > 0}, TypeError, "`query` must be real"),
        ({"mask": np.ones((T, S))}, TypeError, "`mask` must be boolean, got dtype float"),
        ({"mask": MASK[..., :3]}, ValueError, r"`mask` must broadcast .*\(2, 4, 5, 6\)"),
        ({"bias": BIAS[None, None].repeat(3, 0)}, ValueError, "`bias` must broadcast"),
        ({"block_size": 0}, ValueError, "`block_size` must be ≥ 1, got 0"),
        ({"logit_softcap": -1.0}, ValueError, "`logit_softcap` must be > 0 or None, got -1.0"),
        ({"query_seq_lengths": np.ones(B)}, TypeError, "`query_seq_lengths` must be integers"),
        (
            {"key_value_seq_lengths": np.array([1])},
            ValueError,
            r"`key_value_seq_lengths` must have shape \(2,\), got \(1,\)",
        ),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        attention_flow(**{"query": QUERY, "key": KEY, **change})

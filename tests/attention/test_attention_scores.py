"""dot_product_attention where scores are huge, −∞ or missing: bias of padding, sinks, no keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    SINK,
    B,
    H,
    N,
    T,
    all_modes,
    arrays,
    dense,
    over_a_mapped_axis,
    over_devices,
    seen_keys,
    value_and_gradient,
)
from helpers import WIDE, close, quick_jit

from jaxsoftjac.attention import dot_product_attention

pytestmark = pytest.mark.once

S = 16
LOWEST = float(np.finfo(np.float32).min)


def operands(dtype=WIDE, D=3):
    """Query, key, value, bias and sink; scores are multiples of 1/8, and keys have mean 0."""
    q, k, v, bias = arrays(dtype=dtype, S=S, D=D)
    q, k, bias = (jnp.round(2 * x) / 2 for x in (q, k, bias))
    return q, k.at[:, -1].add(-jnp.sum(k, 1)), v, bias, jnp.asarray(SINK, dtype)


def tangents(x):
    return tuple(
        jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in jax.tree.leaves(x)
    )


SPLITS = {"whole": lambda f: f, "shard_map": over_devices, "vmap": over_a_mapped_axis}


@functools.cache
def modes_with_bias(split):
    def attention(q, k, v, bias, sink):
        options = {"axis_name": None if split == "whole" else "s", "block_size": (T, 5)}
        return dot_product_attention(q, k, v, bias, sink=sink, return_residual=True, **options)

    x = operands(jnp.float32)
    return quick_jit(all_modes(SPLITS[split](attention), dense, tangents(x)))


@pytest.mark.parametrize("offset", [0.0, -1e3, -1e6, 1e6, LOWEST])
@pytest.mark.parametrize("split", SPLITS)
def test_a_common_bias_costs_no_digits(split, offset):
    """A number that is added to all scores of a row changes no derivative, however large it is."""
    q, k, v, bias, sink = operands(jnp.float32)
    sink = jnp.round(8 * sink) / 8
    some = jnp.asarray(np.arange(T) % 3 < 2, jnp.float32)[:, None]  # rows of both kinds
    for rows in (jnp.ones((T, 1), jnp.float32), some):
        biased = bias * jnp.float32(offset > LOWEST) + offset * rows[None, None]
        sink_of = sink + offset if rows is not some else sink - 50
        pairs = modes_with_bias(split)(q, k, v, biased, sink_of)
        for actual, expected in pairs.values():
            jax.tree.map(close, actual, expected)


def test_rows_of_padding_have_the_gradients_of_a_mean():
    """Bias of finfo.min on all keys of a row: it attends to all alike, as jax.nn's."""
    q, k, v, _, _ = operands(jnp.float32, D=H)
    bias = jnp.full((1, 1, T, S), LOWEST, jnp.float32)
    ours, theirs = (
        jax.jit(jax.grad(lambda *x, f=f: jnp.sum(f(*x)), (0, 1, 2, 3)))(q, k, v, bias)
        for f in (dot_product_attention, jax.nn.dot_product_attention)
    )
    close(ours[2], np.full(v.shape, T * N / 2 / S))
    jax.tree.map(close, ours, theirs)


# Rows without keys, and sinks of any size

SINKS = {
    "-inf": [-np.inf] * N,
    "huge": [1e30, -1e30, 3e38, -3e38],
    "mixed": [-np.inf, 0, 1e5, -1e5],
}
MASK = np.random.default_rng(2).random((B, 1, T, S)) > 0.3
MASK[:, :, 2] = False
LENGTHS = np.array([0, 9], np.int32)

# name: (options of ours, which keys are seen, whether by a bias of −∞)
EMPTY = {
    "bias": ({}, seen_keys(T, S, mask=MASK), True),
    "mask and lengths": (
        {"mask": MASK, "key_value_seq_lengths": LENGTHS},
        seen_keys(T, S, mask=MASK, key_lengths=LENGTHS),
        False,
    ),
}


@functools.cache
def modes_with_sink(name):
    options, seen, by_bias = EMPTY[name]
    options = options | {"return_residual": True, "block_size": (T, 8)}
    excluded = jnp.asarray(np.where(seen[:, :1], 0, -np.inf), WIDE) if by_bias else None

    def ours(q, k, v, sink):
        return dot_product_attention(q, k, v, excluded, sink=sink, **options)

    def expected(q, k, v, sink):
        return dense(q, k, v, sink=sink, seen=seen)

    q, k, v, _, sink = operands()
    return quick_jit(all_modes(ours, expected, tangents((q, k, v, sink))))


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("name", EMPTY)
def test_sinks_of_any_size_where_rows_are_empty(name, sink):
    assert not EMPTY[name][1].any(-1).all()
    q, k, v, _, _ = operands()
    pairs = modes_with_sink(name)(q, k, v, jnp.asarray(SINKS[sink], WIDE))
    for actual, expected in pairs.values():
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(actual))
        jax.tree.map(close, actual, expected)


# A causal mask from the last query and key on


@pytest.mark.parametrize(("queries", "window"), [(3, None), (T, (4, 2)), (20, (3, 1))])
def test_causal_from_the_bottom_right(queries, window):
    q, k, v, bias = arrays(T=queries, S=S)
    offset = S - queries
    seen = seen_keys(queries, S, is_causal=False, window=window, offset=offset)
    seen = seen & (np.arange(S) <= np.arange(queries)[:, None] + offset)
    options = {"is_causal": "bottom_right", "local_window_size": window, "block_size": (5, 3)}
    ours = functools.partial(dot_product_attention, **options, return_residual=True)
    expected = functools.partial(dense, seen=seen)
    f = quick_jit(lambda *x: [value_and_gradient(f)(*x) for f in (ours, expected)])
    jax.tree.map(close, *f(q, k, v, bias))


def test_decoding_in_pieces_is_attention_in_one():
    q, k, v, _ = arrays(T=S, S=S)
    attend = quick_jit(functools.partial(dot_product_attention, is_causal="bottom_right"))
    whole = attend(q, k, v)
    for start, stop in ((0, 5), (5, 6), (6, S)):
        close(attend(q[:, start:stop], k[:, :stop], v[:, :stop]), whole[:, start:stop])


@pytest.mark.parametrize("split", [over_devices, over_a_mapped_axis])
def test_causal_from_the_bottom_right_of_split_keys(split):
    q, k, v, _ = arrays(T=5, S=S)
    options = {"is_causal": "bottom_right", "local_window_size": 7}
    ours = split(functools.partial(dot_product_attention, axis_name="s", **options))
    close(
        quick_jit(ours)(q, k, v),
        quick_jit(functools.partial(dot_product_attention, **options))(q, k, v),
    )

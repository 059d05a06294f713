"""dot_product_attention with dropout: against dense attention with the same weights dropped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    B,
    N,
    T,
    all_modes,
    arrays,
    dense,
    derivatives,
    over_a_mapped_axis,
    over_devices,
    seen_keys,
)
from helpers import WIDE, close, quick_jit

from jaxsoftjac.attention import dot_product_attention

pytestmark = pytest.mark.once

S, RATE = 16, 0.4
KEY = jax.random.key(3)


def factors(T=T, S=S, key=KEY, rate=RATE, split=None, **options):
    """0 or 1/(1 − rate) of each weight, [B, N, T, S]: uniform attention to values of one each."""
    q, k = jnp.zeros((B, T, N, 1), WIDE), jnp.zeros((B, S, N, 1), WIDE)
    v = jnp.broadcast_to(jnp.eye(S, dtype=WIDE)[None, :, None], (B, S, N, S))
    drop = {"dropout_rate": rate, "dropout_key": key, **options}
    f = functools.partial(dot_product_attention, **drop)
    f = f if split is None else split(functools.partial(f, axis_name="s"))
    return S * jnp.swapaxes(quick_jit(f)(q, k, v), 1, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": (2, 3)},
        {"block_size": (T, S)},
        {"split": over_devices},
        {"split": over_a_mapped_axis},
        {"rate": jnp.asarray(RATE, WIDE)},
    ],
)
def test_what_is_dropped_depends_on_key_and_place_alone(options):
    close(factors(**options), factors())


def test_places_are_independent_and_weights_unbiased():
    n = 256
    m = np.asarray(factors(T=n, S=n)) > 0
    close(factors(T=n, S=n), m / (1 - RATE))
    noise = (m - (1 - RATE)) / np.sqrt(RATE * (1 - RATE))  # of mean 0 and variance 1
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    for axes in ((2,), (3,), (0, 1), (2, 3)):  # of every query, key, place and head
        mean = noise.mean(axes, keepdims=True)
        assert abs((mean**2).mean() * noise.size / mean.size - 1) < 5 * np.sqrt(2 / mean.size)
    for shift in ((0, 0, 0, 1), (0, 0, 1, 0), (0, 0, 1, -1), (0, 1, 0, 0), (1, 0, 0, 0)):
        moved = np.roll(noise, shift, (0, 1, 2, 3))
        assert abs((noise * moved).mean()) < 5 / np.sqrt(noise.size)
    # Of four corners of a rectangle: a hash that adds a query's bits to a key's would show here.
    corners = noise * np.roll(noise, 1, 2) * np.roll(noise, 1, 3) * np.roll(noise, (1, 1), (2, 3))
    assert abs(corners.mean()) < 5 / np.sqrt(noise.size)
    assert (np.asarray(factors(T=n, S=n, key=jax.random.key(4)) > 0) != m).mean() > 0.4


def test_one_mask_for_all_examples_and_heads():
    m = np.asarray(factors(broadcast_dropout=True))
    assert (m == m[:1, :1]).all()
    assert 0 < (m > 0).mean() < 1


def test_no_rate_needs_no_key():
    q, k, v, _ = arrays(S=S)
    f = quick_jit(lambda *x: (dot_product_attention(*x, dropout_rate=0.0), dense(*x)[0]))
    close(*f(q, k, v))


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, None),
        ({"is_causal": True, "logit_softcap": 2.0}, seen_keys(T, S, is_causal=True)),
        ({"split": over_a_mapped_axis}, None),
    ],
)
def test_every_mode(options, seen):
    q, k, v, _ = arrays(S=S)
    split = options.get("split")
    options = {n: x for n, x in options.items() if n != "split"}
    drop = {"dropout_rate": RATE, "dropout_key": KEY, "return_residual": True}
    ours = functools.partial(dot_product_attention, block_size=(T, 5), **drop, **options)
    ours = ours if split is None else split(functools.partial(ours, axis_name="s"))
    expected = functools.partial(
        dense, seen=seen, weights=factors(), softcap=options.get("logit_softcap")
    )
    f = quick_jit(all_modes(ours, expected, tuple(jnp.cos(x) for x in (q, k, v))))
    for actual, wanted in f(q, k, v).values():
        jax.tree.map(close, actual, wanted)


@pytest.mark.parametrize("mode", ["gradient", "forward over reverse"])
def test_no_map_is_formed(mode):
    n = 2048
    x = (jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32),) * 3

    def temporaries(**drop):
        f = derivatives(functools.partial(dot_product_attention, block_size=(256, 128), **drop))
        return quick_jit(f[mode]).lower(*x).compile().memory_analysis().temp_size_in_bytes

    dropped = temporaries(dropout_rate=RATE, dropout_key=KEY)
    assert dropped < temporaries() + n * n / 16  # half of a map of bits

"""Which tiles of queries and keys attention goes through."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftjac.attention import dot_product_attention
from jaxsoftjac.attention._layout import tiles_of
from jaxsoftjac.attention._plan import plan_of

pytestmark = pytest.mark.once


def plan(T, S, band, block_size=None, heads=1, has_lengths=False):
    q, k = jnp.zeros((1, T, heads, 1)), jnp.zeros((1, S, heads, 1))
    options = {"scale": None, "softcap": None, "axis_name": None, "precision": None}
    return plan_of(q, k, block_size=block_size, band=band, has_lengths=has_lengths, **options)


def in_sight(T, S, band):
    before, after = band or (T + S,) * 2
    place = np.arange(S) - np.arange(T)[:, None]
    return (place >= -before) & (place <= after)


def test_each_tile_with_a_key_in_sight_once_and_whole_ones_without_a_mask():
    random = np.random.default_rng(0)
    for _ in range(200):
        T, S, b, c = random.integers(1, 24, 4).tolist()
        low, high = sorted(random.integers(-12, 12, 2).tolist())
        band = (-low, high) if random.random() < 0.8 else None
        p = plan(T, S, band, (b, c))
        b, c = p.query_block, p.key_blocks[0]
        whole, others = (set(map(tuple, x.tolist())) for x in tiles_of(p, c))
        seen = in_sight(T, S, band)
        for i in range(-(-T // b)):
            for j in range(-(-S // c)):
                tile = seen[i * b : (i + 1) * b, j * c : (j + 1) * c]
                is_whole = bool(np.all(tile)) and (j + 1) * c <= S
                assert ((i, j) in whole) == is_whole
                assert ((i, j) in others) == (bool(np.any(tile)) and not is_whole)


def test_lengths_may_hide_any_key():
    whole, others = tiles_of(plan(8, 8, None, 2, has_lengths=True), 2)
    assert (len(whole), len(others)) == (0, 16)


@pytest.mark.parametrize(
    ("T", "heads", "part"), [(512, 16, 0.66), (1024, 8, 0.63), (2048, 1, 0.63), (8192, 1, 0.54)]
)
def test_a_causal_mask_leaves_about_half_of_the_scores(T, heads, part):
    p = plan(T, T, (2**30, 0), heads=heads)
    for size in p.key_blocks:
        tiles = sum(map(len, tiles_of(p, size)))
        assert tiles * p.query_block * size <= part * T * T


def test_a_window_costs_what_it_shows():
    p = plan(2**14, 2**14, (256, 0))
    for size in p.key_blocks:
        tiles = sum(map(len, tiles_of(p, size)))
        assert tiles * p.query_block * size <= 2**14 * (256 + p.query_block + size)


@pytest.mark.parametrize("place", ["key", "value"])
def test_an_infinity_that_a_query_sees_makes_it_nan_in_whole_tiles_too(place):
    q, k, v = np.ones((1, 8, 1, 2)), -np.ones((1, 8, 1, 2)), np.ones((1, 8, 1, 2))
    {"key": k, "value": v}[place][0, 3] = -np.inf  # as a key it would weigh nothing
    o = dot_product_attention(q, k, v, is_causal=True, block_size=2)[0]
    assert np.all(np.isnan(o[3:]))
    assert np.all(np.isfinite(o[:3]))

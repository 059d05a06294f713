"""dot_product_attention: memory, blocks that are left out, sharded operands, keys in slices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    SINK,
    H,
    arrays,
    dense,
    derivatives,
    over_a_mapped_axis,
    over_devices,
    seen_keys,
)
from helpers import WIDE, close, quick_jit
from jax.sharding import PartitionSpec as P

from jaxsoftjac.attention import _blocks, dot_product_attention

pytestmark = pytest.mark.once


def largest_array(compiled):
    shapes = re.findall(r"\b(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    return max(np.prod([int(n) for n in shape.split(",")], dtype=np.int64) for shape in shapes)


@pytest.mark.parametrize("mode", derivatives(dot_product_attention))
def test_memory_is_linear_in_the_lengths(mode):
    """A map of all scores would have n² = 4·10⁶ entries and take 4 times the memory at 2n."""
    f = derivatives(functools.partial(dot_product_attention, block_size=(256, 128)))[mode]
    lengths = (2048, 1024) if mode == "reverse over reverse" else (2048,)
    shapes = [(jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32),) * 3 for n in lengths]
    compiled = [quick_jit(f).lower(*x).compile() for x in shapes]
    assert largest_array(compiled[0]) <= 2048 * 128
    large, *small = (c.memory_analysis().temp_size_in_bytes for c in compiled)
    assert all(large < 2.2 * n for n in small)


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({}, 16),
        ({"is_causal": True}, 1 + 2 + 3 + 4),
        ({"is_causal": True, "local_window_size": 3}, 1 + 2 + 2 + 2),
        ({"local_window_size": (0, 4)}, 2 + 2 + 2 + 1),
        ({"key_value_seq_lengths": np.array([4, 7], np.int32)}, 8),
    ],
)
def test_empty_blocks_are_not_computed(options, blocks, monkeypatch):
    computed = []
    mix = _blocks._mix

    def counted(*x):
        jax.debug.callback(lambda: computed.append(1))
        return mix(*x)

    monkeypatch.setattr(_blocks, "_mix", counted)
    q, k, v, _ = arrays(T=16, S=16, D=5)  # a shape that no other test has compiled
    f = quick_jit(functools.partial(dot_product_attention, block_size=4, **options))
    jax.block_until_ready(f(q, k, v))
    jax.effects_barrier()
    assert len(computed) == blocks


# Sharded


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
@pytest.mark.parametrize(("spec", "causal"), [(P("x", None, "y"), True), (P("x", "y"), False)])
def test_batch_heads_and_queries_sharded(axis_type, spec, causal):
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)
    q, k, v, _ = arrays(T=16, S=16, N=8, K=4, D=H)
    f = functools.partial(dot_product_attention, is_causal=causal, block_size=8)
    gradient = derivatives(f)["gradient"]
    expected = quick_jit(gradient)(q, k, v)
    by_key = P("x", None, *spec[2:])
    with jax.set_mesh(mesh):
        x = [
            jax.device_put(a, jax.NamedSharding(mesh, s))
            for a, s in ((q, spec), (k, by_key), (v, by_key))
        ]
        compiled = quick_jit(gradient).lower(*x).compile()
        jax.tree.map(close, compiled(*x), expected)
    assert "all-gather" not in compiled.as_text()


S = 48
SPLIT_SINK = jnp.asarray(SINK, WIDE)

# mode: (options of ours, those of `dense`)
SPLITS = {
    "gradient": (
        {"is_causal": True, "local_window_size": 6, "block_size": 2},
        {"seen": seen_keys(S, S, is_causal=True, window=(6, 6))},
    ),
    "jvp": ({"sink": SPLIT_SINK, "logit_softcap": 2.0}, {"sink": SPLIT_SINK, "softcap": 2.0}),
    "forward over reverse": ({}, {}),
    "reverse over reverse": ({}, {}),
    "reverse over forward": ({}, {}),
}


@pytest.mark.parametrize("split", [over_devices, over_a_mapped_axis])
@pytest.mark.parametrize("mode", SPLITS)
def test_keys_split(mode, split):
    options, others = SPLITS[mode]
    x = arrays(T=S, S=S)[:3]
    local = functools.partial(dot_product_attention, axis_name="s", **options)
    ours = quick_jit(derivatives(split(local))[mode]).lower(*x).compile()
    expected = quick_jit(derivatives(lambda *x: dense(*x, **others)[0])[mode])
    jax.tree.map(close, ours(*x), expected(*x))
    assert "all-gather" not in ours.as_text()

"""dot_product_attention against dense attention: options, modes, edges."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    K_LENGTHS,
    MASK,
    OPTIONS,
    Q_LENGTHS,
    SINK,
    B,
    D,
    H,
    N,
    S,
    T,
    arrays,
    dense,
    derivatives,
    seen_keys,
    value_and_gradient,
)
from helpers import WIDE, close, quick_jit
from jax.flatten_util import ravel_pytree
from ways import ways

from jaxsoftjac.attention import dot_product_attention


@pytest.mark.parametrize("name", OPTIONS)
def test_options_and_their_gradients(name):
    """Blocks of 2 queries and 4 keys divide neither 7 nor 10."""
    options, seen, others = OPTIONS[name]
    operands = arrays()
    sink = {k: jnp.asarray(x, WIDE) for k, x in options.items() if k == "sink"}
    ours = functools.partial(
        dot_product_attention, **(options | sink), block_size=(2, 4), return_residual=True
    )
    expected = functools.partial(dense, seen=seen_keys(T, S, **seen), **(others | sink))
    both = quick_jit(lambda *a: (value_and_gradient(ours)(*a), value_and_gradient(expected)(*a)))
    jax.tree.map(close, *both(*operands))


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, "bfloat16"),
        ({"scale": 0.3, "mask": MASK}, "float32"),
        ({"is_causal": True, "local_window_size": 2}, "float32"),
        ({"local_window_size": (2, 1)}, "float16"),
        ({"query_seq_lengths": Q_LENGTHS, "key_value_seq_lengths": K_LENGTHS}, "float32"),
    ],
)
def test_a_drop_in_for_that_of_jax(options, dtype):
    q, k, v, bias = arrays(dtype=dtype, D=H)
    x = q, k, v, bias[:, :1]
    ours = quick_jit(lambda *x: dot_product_attention(*x, **options, return_residual=True))(*x)
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.nn.dot_product_attention(*x, **options, return_residual=True)
    alive = np.asarray(ours[1], np.float32) > -np.inf
    assert alive.all() or "query_seq_lengths" in options
    assert (ours[0].dtype, ours[1].dtype) == (dtype, "float32")
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        close(
            np.asarray(a)[alive], np.asarray(b)[alive], dtype=dtype, scale=4
        )  # jax.nn rounds p as well


def test_arrays_without_a_batch_axis():
    @quick_jit
    def both(*x):
        attention = functools.partial(dot_product_attention, return_residual=True)
        return attention(*(a[0] for a in x)), attention(*x)

    single, batched = both(*arrays())
    jax.tree.map(lambda a, b: close(a, b[0]), single, batched)


# Every mode, with both results, in query, key, value, bias and sink at once.

ROWS = {"is_causal": True, "local_window_size": (3, 1), "key_value_seq_lengths": np.array([2, 9])}
SEEN = seen_keys(T, S, is_causal=True, window=(3, 1), key_lengths=np.array([2, 9]))
OPERANDS, unflatten = ravel_pytree((arrays(), jnp.asarray(SINK, WIDE)))


def flat(attention):
    """A function of all operands in one vector."""

    def f(x):
        operands, sink = unflatten(x)
        o, lse = attention(*operands, sink=sink)
        return jnp.concatenate([o.ravel(), lse.ravel()])

    return f


def modes_agree(names, ours, expected):
    ours, expected = ways(flat(ours)), ways(flat(expected))
    for a, b in quick_jit(lambda x: [(ours[n](x), expected[n](x)) for n in names])(OPERANDS):
        jax.tree.map(close, a, b)


def test_every_mode():
    names = ["forward over reverse", "reverse over reverse", "reverse over forward"]
    ours = functools.partial(dot_product_attention, return_residual=True, block_size=(T, 5))
    modes_agree([*names, "forward over forward", "linearize, transpose"], ours, dense)


def test_every_mode_with_empty_blocks_and_rows():
    assert not SEEN.any(-1).all()
    options = {"block_size": (3, 4), "logit_softcap": 2.0, "return_residual": True, **ROWS}
    ours = functools.partial(dot_product_attention, **options)
    names = ["forward over reverse", "reverse over reverse", "reverse over forward"]
    modes_agree(names, ours, functools.partial(dense, seen=SEEN, softcap=2.0))


@pytest.mark.parametrize("mode", ["gradient", "reverse over reverse"])
def test_lengths_that_differ_by_vmap(mode):
    @jax.vmap
    def each(q, k, v, length):
        return dot_product_attention(q, k, v, key_value_seq_lengths=length[None], block_size=(3, 4))

    x = arrays()[:3]
    ours = derivatives(lambda *x: each(*x, K_LENGTHS))[mode]
    expected = derivatives(lambda *x: dense(*x, seen=seen_keys(T, S, key_lengths=K_LENGTHS))[0])
    jax.tree.map(close, *quick_jit(lambda *x: (ours(*x), expected[mode](*x)))(*x))


# Edges


def test_what_is_masked_is_ignored_nan_included():
    q, k, v, bias = arrays()
    spoilt = [
        jnp.asarray(np.where(np.arange(S)[:, None, None] == 8, x, a), WIDE)
        for a, x in ((k, np.nan), (v, np.inf))
    ]
    spoilt_bias = bias.at[:, :, 5, :].set(jnp.nan).at[:, :, :, 8].set(jnp.nan)
    spoilt_query = q.at[:, 5].set(jnp.nan)
    mask = np.ones((1, 1, T, S), bool)
    mask[..., 8] = mask[..., 5, :] = False
    ours = functools.partial(dot_product_attention, mask=mask, return_residual=True)
    f = quick_jit(value_and_gradient(functools.partial(ours, block_size=(T, 5))))
    clean, dirty = f(q, k, v, bias), f(spoilt_query, *spoilt, spoilt_bias)
    jax.tree.map(close, dirty, clean)
    (_, (o, lse)), (dq, dk, dv, _) = dirty
    for zero in (o[:, 5], lse[:, 5], dq[:, 5], dk[:, 8], dv[:, 8]):
        assert not np.any(np.asarray(zero))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}])
def test_a_seen_nan_spoils_its_queries(options):
    q, k, v, _ = arrays(T=S)
    f = quick_jit(functools.partial(dot_product_attention, block_size=5, **options))
    o = f(q, k, v.at[:, 4].set(jnp.nan))
    spoilt = np.isnan(np.asarray(o)).all((0, 2, 3))
    assert spoilt.tolist() == [not options or t >= 4 for t in range(S)]


@pytest.mark.parametrize("softcap", [1e30, 3e38])
def test_a_cap_beyond_all_scores_is_none(softcap):
    q, k, v, _ = arrays(dtype="float32")
    f = quick_jit(functools.partial(dot_product_attention, return_residual=True))
    capped = quick_jit(
        lambda c: dot_product_attention(q, k, v, logit_softcap=c, return_residual=True)
    )
    jax.tree.map(close, capped(jnp.float32(softcap)), f(q, k, v))


def test_no_keys_and_no_queries():
    q, k, v, _ = arrays()
    f = quick_jit(functools.partial(dot_product_attention, return_residual=True))
    o, lse = f(q, k[:, :0], v[:, :0])
    assert not np.any(np.asarray(o))
    assert np.all(np.asarray(lse) == -np.inf)
    assert f(q[:, :0], k, v)[0].shape == (B, 0, N, D)
    assert dot_product_attention(q[:, :0], k, v, is_causal=True).shape == (B, 0, N, D)


@pytest.mark.parametrize("t", [0, 1, T])
def test_masks_and_biases_of_no_keys(t):
    q, k, v, _ = arrays()

    def total(q, bias):
        mask = jnp.ones((1, 1, t, 0), bool)
        return jnp.sum(dot_product_attention(q, k[:, :0], v[:, :0], bias, mask))

    gradients = quick_jit(jax.grad(total, (0, 1)))(q if t else q[:, :0], jnp.ones((1, 1, t, 0)))
    assert not np.any(np.asarray(gradients[0]))
    assert gradients[1].shape == (1, 1, t, 0)


@pytest.mark.once
@pytest.mark.parametrize(("mode", "arrays"), [("forward", 3.5), ("jvp", 4), ("gradient", 7.5)])
def test_queries_and_keys_are_read_in_place(mode, arrays):
    """Stacked in blocks first, they would be further arrays of their size."""
    x = (jnp.ones((1, 512, 1, 64), jnp.float32),) * 3
    attention = functools.partial(dot_product_attention, block_size=64)
    program = {
        "forward": attention,
        "jvp": lambda *x: jax.jvp(attention, x, x),
        "gradient": jax.grad(lambda *x: jnp.sum(jnp.sin(attention(*x))), (0, 1, 2)),
    }[mode]
    memory = jax.jit(program).lower(*x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < arrays * x[0].nbytes


def test_no_retracing():
    f = quick_jit(chex.assert_max_traces(derivatives(dot_product_attention)["jvp"], n=1))
    for seed in range(3):
        f(*arrays(seed)[:3])
    chex.clear_trace_counter()

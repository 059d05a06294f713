"""dot_product_attention against dense attention: options, modes, edges."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from jax.flatten_util import ravel_pytree
from test_transforms_everywhere import ways

from jaxsoftjac.attention import dot_product_attention

B, T, N, K, S, H, D = 2, 7, 4, 2, 10, 4, 3


def arrays(seed=0, dtype=WIDE, T=T, S=S, N=N, K=K, D=D):
    """Query, key, value, bias."""
    random = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, D), (B, N, T, S)
    return tuple(jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)


def seen_keys(T, S, mask=None, is_causal=False, window=None, query_lengths=None, key_lengths=None):
    """Which keys each query sees, [B, N, T, S]."""
    t, s = np.ogrid[:T, :S]
    seen = np.ones((B, N, T, S), bool) if mask is None else np.broadcast_to(mask, (B, N, T, S))
    if is_causal:
        seen = seen & (s <= t)
    if window is not None:
        seen = seen & (s >= t - window[0]) & (s <= t + window[1])
    if query_lengths is not None:
        seen = seen & (t < np.reshape(query_lengths, (B, 1, 1, 1)))
    if key_lengths is not None:
        seen = seen & (s < np.reshape(key_lengths, (B, 1, 1, 1)))
    return seen


def dense(q, k, v, bias=None, seen=None, scale=None, softcap=None, sink=None):
    """Attention and logsumexp by the textbook formulas, for JAX to differentiate."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    x = jnp.einsum("btnh,bsnh->bnts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    x = x if softcap is None else softcap * jnp.tanh(x / softcap)
    x = x if bias is None else x + bias
    x = x if seen is None else jnp.where(seen, x, -jnp.inf)
    if sink is not None:
        x = jnp.concatenate([x, jnp.broadcast_to(sink[None, :, None, None], (*x.shape[:3], 1))], -1)
    top = jax.lax.stop_gradient(jnp.max(x, -1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    e = jnp.exp(x - top)
    total = jnp.sum(e, -1, keepdims=True)
    p = e / jnp.where(total == 0, 1, total)
    safe = jnp.where(total == 0, 1, total)
    lse = jnp.where(total == 0, -jnp.inf, jnp.log(safe) + top)
    return jnp.einsum("bnts,bsnh->btnh", p[..., : v.shape[1]], v), jnp.swapaxes(lse[..., 0], 1, 2)


random = np.random.default_rng(1)
MASK = random.random((B, 1, T, S)) > 0.3
SINK = random.normal(size=N)
Q_LENGTHS, K_LENGTHS = np.array([5, 7], np.int32), np.array([4, 9], np.int32)

# name: (options of ours, those of `seen_keys`, other options of `dense`)
OPTIONS = {
    "none": ({}, {}, {}),
    "mask, scale": ({"mask": MASK, "scale": 0.3}, {"mask": MASK}, {"scale": 0.3}),
    "causal, sink": ({"is_causal": True, "sink": SINK}, {"is_causal": True}, {"sink": SINK}),
    "window, softcap": (
        {"local_window_size": (2, 1), "logit_softcap": 2.0},
        {"window": (2, 1)},
        {"softcap": 2.0},
    ),
    "lengths, causal window": (
        {
            "query_seq_lengths": Q_LENGTHS,
            "key_value_seq_lengths": K_LENGTHS,
            "is_causal": True,
            "local_window_size": 2,
        },
        {
            "query_lengths": Q_LENGTHS,
            "key_lengths": K_LENGTHS,
            "is_causal": True,
            "window": (2, 2),
        },
        {},
    ),
    "all": (
        {
            "mask": MASK,
            "is_causal": True,
            "local_window_size": (3, 1),
            "query_seq_lengths": Q_LENGTHS,
            "key_value_seq_lengths": K_LENGTHS,
            "logit_softcap": 2.0,
            "scale": 0.3,
            "sink": SINK,
        },
        {
            "mask": MASK,
            "is_causal": True,
            "window": (3, 1),
            "query_lengths": Q_LENGTHS,
            "key_lengths": K_LENGTHS,
        },
        {"softcap": 2.0, "scale": 0.3, "sink": SINK},
    ),
}


def value_and_gradient(f):
    """Values, and gradients of all operands with both results in the loss."""

    def loss(*operands):
        o, lse = f(*operands)
        finite = jnp.where(jnp.isfinite(lse), lse, 0)
        return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(finite)), (o, finite)

    return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)


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
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        close(np.asarray(a)[alive], np.asarray(b)[alive], scale=4)  # jax.nn rounds p as well


def test_arrays_without_a_batch_axis():
    @quick_jit
    def both(*x):
        attention = functools.partial(dot_product_attention, return_residual=True)
        return attention(*(a[0] for a in x)), attention(*x)

    single, batched = both(*arrays())
    jax.tree.map(lambda a, b: close(a, b[0]), single, batched)


def derivatives(attention):
    def loss(*x):
        return jnp.sum(jnp.sin(attention(*x)))

    def pushed(f):
        return lambda *x: jax.jvp(f, x, jax.tree.map(jnp.cos, x))[1]

    gradient = jax.grad(loss, (0, 1, 2))
    return {
        "jvp": pushed(attention),
        "gradient": gradient,
        "forward over reverse": pushed(gradient),
        "reverse over reverse": lambda *x: jax.vjp(gradient, *x)[1](jax.tree.map(jnp.cos, x)),
        "reverse over forward": jax.grad(lambda *x: pushed(loss)(*x), (0, 1, 2)),
    }


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
    names = ["jvp", "vjp", "forward over reverse", "reverse over reverse", "reverse over forward"]
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


def test_a_learned_scale_has_a_gradient():
    q, k, v, _ = arrays()

    @quick_jit
    def gradients(scale):
        ours = lambda s: jnp.sum(jnp.sin(dot_product_attention(q, k, v, scale=s)))  # noqa: E731
        expected = lambda s: jnp.sum(jnp.sin(dense(q, k, v, scale=s)[0]))  # noqa: E731
        return jax.grad(ours)(scale), jax.grad(expected)(scale)

    close(*gradients(jnp.asarray(0.3, WIDE)))


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


def test_no_keys_and_no_queries():
    q, k, v, _ = arrays()
    f = quick_jit(functools.partial(dot_product_attention, return_residual=True))
    o, lse = f(q, k[:, :0], v[:, :0])
    assert not np.any(np.asarray(o))
    assert np.all(np.asarray(lse) == -np.inf)
    assert f(q[:, :0], k, v)[0].shape == (B, 0, N, D)


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": np.zeros((7, 4))}, ValueError, ["query", "(7, 4)"]),
        ({"key": np.zeros((2, 10, 2, 5))}, ValueError, ["key", "(2, 7, 4, 4)", "(2, 10, 2, 5)"]),
        ({"value": np.zeros((2, 9, 2, 4))}, ValueError, ["value", "(2, 10, 2, 4)", "(2, 9, 2, 4)"]),
        ({"key": np.zeros((2, 10, 3, 4)), "value": np.zeros((2, 10, 3, 4))}, ValueError,
         ["heads", "(2, 7, 4, 4)", "(2, 10, 3, 4)"]),
        ({"key": np.zeros((2, 10, 2, 4), np.float16)}, TypeError, ["key", "float16"]),
        ({"value": np.zeros((2, 10, 2, 3), bool)}, TypeError, ["value", "bool"]),
        ({"bias": np.zeros((2, 3, 7, 10))}, ValueError, ["bias", "(2, 4, 7, 10)", "(2, 3, 7, 10)"]),
        ({"mask": np.zeros((7, 9), bool)}, ValueError, ["mask", "(2, 4, 7, 10)", "(7, 9)"]),
        ({"mask": np.zeros((7, 10))}, TypeError, ["mask", "boolean"]),
        ({"query_seq_lengths": np.zeros(3, int)}, ValueError, ["query_seq_lengths", "(2,)"]),
        ({"key_value_seq_lengths": np.zeros(2)}, TypeError, ["key_value_seq_lengths", "float"]),
        ({"local_window_size": -1}, ValueError, ["local_window_size", "-1"]),
        ({"block_size": 0}, ValueError, ["block_size", "0"]),
        ({"logit_softcap": 0.0}, ValueError, ["logit_softcap", "0.0"]),
        ({"sink": np.zeros(2)}, ValueError, ["sink", "(4,)", "(2,)"]),
    ],
)  # fmt: skip
def test_bad_input_names_the_argument_and_the_shapes(change, error, words):
    q, k, v, _ = arrays(D=H)
    with pytest.raises(error) as caught:
        dot_product_attention(**({"query": q, "key": k, "value": v} | change))
    assert all(word in str(caught.value) for word in words), caught.value


def test_no_retracing():
    f = quick_jit(chex.assert_max_traces(derivatives(dot_product_attention)["jvp"], n=1))
    for seed in range(3):
        f(*arrays(seed)[:3])
    chex.clear_trace_counter()

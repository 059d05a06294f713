"""dot_product_attention against plain dense attention: options, modes, edges; memory and sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close
from test_transforms_everywhere import FAST

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
    """Blocks of 3 queries and 4 keys divide neither 7 nor 10."""
    options, seen, others = OPTIONS[name]
    operands = arrays()
    sink = {k: jnp.asarray(x, WIDE) for k, x in options.items() if k == "sink"}
    ours = functools.partial(
        dot_product_attention, **(options | sink), block_size=(3, 4), return_residual=True
    )
    expected = functools.partial(dense, seen=seen_keys(T, S, **seen), **(others | sink))
    compiled = jax.jit(lambda *a: (value_and_gradient(ours)(*a), value_and_gradient(expected)(*a)))
    jax.tree.map(close, *compiled.lower(*operands).compile(FAST)(*operands))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3, "mask": MASK},
        {"is_causal": True},
        {"local_window_size": (2, 1)},
        {"is_causal": True, "local_window_size": 2},
        {"query_seq_lengths": Q_LENGTHS, "key_value_seq_lengths": K_LENGTHS},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_drop_in_for_that_of_jax(options, dtype):
    q, k, v, bias = arrays(dtype=dtype, D=H)
    bias = bias[:, :1]
    ours = dot_product_attention(q, k, v, bias, **options, return_residual=True)
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.nn.dot_product_attention(q, k, v, bias, **options, return_residual=True)
        alone = jax.nn.dot_product_attention(q[0], k[0], v[0], bias[0])
    alive = np.asarray(ours[1], np.float32) > -np.inf
    assert alive.all() or "query_seq_lengths" in options
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        close(np.asarray(a)[alive], np.asarray(b)[alive])
    close(dot_product_attention(q[0], k[0], v[0], bias[0]), alone)

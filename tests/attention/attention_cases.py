"""Attention by the textbook formulas, and the options that the tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import WIDE
from jax.sharding import PartitionSpec as P

B, T, N, K, S, H, D = 2, 7, 4, 2, 10, 4, 3


def arrays(seed=0, dtype=WIDE, T=T, S=S, N=N, K=K, D=D):
    """Query, key, value, bias."""
    random = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, D), (B, N, T, S)
    return tuple(jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)


def seen_keys(
    T, S, mask=None, is_causal=False, window=None, query_lengths=None, key_lengths=None, offset=0
):
    """Which keys each query sees, [B, N, T, S]; the window and the causal mask by t + offset."""
    place, s = np.ogrid[:T, :S]
    t = place + offset
    seen = np.ones((B, N, T, S), bool) if mask is None else np.broadcast_to(mask, (B, N, T, S))
    if is_causal:
        seen = seen & (s <= t)
    if window is not None:
        seen = seen & (s >= t - window[0]) & (s <= t + window[1])
    if query_lengths is not None:
        seen = seen & (place < np.reshape(query_lengths, (B, 1, 1, 1)))
    if key_lengths is not None:
        seen = seen & (s < np.reshape(key_lengths, (B, 1, 1, 1)))
    return seen


def dense(q, k, v, bias=None, sink=None, seen=None, scale=None, softcap=None, weights=None):
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
    p = p[..., : v.shape[1]]
    p = p if weights is None else p * weights
    return jnp.einsum("bnts,bsnh->btnh", p, v), jnp.swapaxes(lse[..., 0], 1, 2)


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


def every_mode(attention, tangents):
    """All modes of both results, in as many operands as there are tangents; −∞ is left out.

    "forward over reverse" is the value, the gradient and the derivatives of both.
    """

    def f(*x):
        o, lse = attention(*x)
        return o, jnp.where(lse == -jnp.inf, 0, lse)

    def loss(*x):
        o, lse = f(*x)
        total = jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(lse - jax.lax.stop_gradient(lse) + 1))
        return total, (o, lse)

    operands = tuple(range(len(tangents)))
    gradient_and_value = jax.grad(loss, operands, has_aux=True)

    def gradient(*x):
        return gradient_and_value(*x)[0]

    def pushed(f):
        return lambda *x: jax.jvp(f, x, tangents)[1]

    return {
        "value": f,
        "jvp": pushed(f),
        "gradient": gradient,
        "forward over reverse": lambda *x: jax.jvp(gradient_and_value, x, tangents),
        "reverse over reverse": lambda *x: jax.vjp(gradient, *x)[1](tangents),
        "reverse over forward": jax.grad(lambda *x: pushed(loss)(*x)[0], operands),
    }


# The nestings, in which every first derivative is.
NESTINGS = "forward over reverse", "reverse over reverse", "reverse over forward"


def all_modes(ours, expected, tangents):
    """A function of the operands that returns pairs of ours and what is expected, by nesting."""
    ours, expected = every_mode(ours, tangents), every_mode(expected, tangents)
    return lambda *x: {mode: (ours[mode](*x), expected[mode](*x)) for mode in NESTINGS}


# Keys in eight slices along a mapped axis "s": query, key, value, bias and sink.

SPECS = P(), P(None, "s"), P(None, "s"), P(None, None, None, "s"), P()


def over_devices(local):
    mesh = jax.make_mesh((8,), ("s",), axis_types=(jax.sharding.AxisType.Auto,))
    return lambda *x: jax.shard_map(local, mesh=mesh, in_specs=SPECS[: len(x)], out_specs=P())(*x)


def over_a_mapped_axis(local):
    def split(x, spec):
        if "s" not in spec:
            return x
        return x.reshape(*x.shape[: len(spec) - 1], 8, -1, *x.shape[len(spec) :])

    def mapped(*x):
        specs = SPECS[: len(x)]
        axes = tuple(len(spec) - 1 if "s" in spec else None for spec in specs)
        x = [split(a, spec) for a, spec in zip(x, specs, strict=True)]
        return jax.vmap(local, axes, None, axis_name="s")(*x)

    return mapped

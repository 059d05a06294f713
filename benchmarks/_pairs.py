"""Functions of rows beside what people call today, and the modes in which both are run."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxsoftjac as jsj

SMOOTHING, Z_LOSS = 0.1, 1e-4


class Pair(NamedTuple):
    """A function of (logits, labels, target logits), and its peer."""

    ours: Callable[..., jax.Array]
    peer: Callable[..., jax.Array]


def _smoothed(x: jax.Array, labels: jax.Array, _: jax.Array) -> jax.Array:
    one_hot = jax.nn.one_hot(labels, x.shape[-1], dtype=x.dtype)
    losses = optax.losses.softmax_cross_entropy(x, optax.smooth_labels(one_hot, SMOOTHING))
    return losses + Z_LOSS * jax.nn.logsumexp(x, -1) ** 2


def _plain_entropy(x: jax.Array, *_: jax.Array) -> jax.Array:
    log_sigma = jax.nn.log_softmax(x)
    return -jnp.sum(jnp.exp(log_sigma) * log_sigma, -1)


def _plain_kl(x: jax.Array, _: jax.Array, y: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(y)
    return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(x)), -1)


PAIRS = {
    "softmax": Pair(lambda x, *_: jsj.softmax(x), lambda x, *_: jax.nn.softmax(x)),
    "log_softmax": Pair(lambda x, *_: jsj.log_softmax(x), lambda x, *_: jax.nn.log_softmax(x)),
    "logsumexp": Pair(lambda x, *_: jsj.logsumexp(x, -1), lambda x, *_: jax.nn.logsumexp(x, -1)),
    "cross_entropy": Pair(
        lambda x, labels, _: jsj.cross_entropy(x, labels),
        lambda x, labels, _: optax.losses.softmax_cross_entropy_with_integer_labels(x, labels),
    ),
    "… of probabilities": Pair(
        lambda x, _, y: jsj.cross_entropy(x, jax.nn.softmax(y)),
        lambda x, _, y: optax.losses.softmax_cross_entropy(x, jax.nn.softmax(y)),
    ),
    "… smoothing, z-loss": Pair(
        lambda x, labels, _: jsj.cross_entropy(x, labels, label_smoothing=SMOOTHING, z_loss=Z_LOSS),
        _smoothed,
    ),
    "entropy": Pair(lambda x, *_: jsj.entropy(x), _plain_entropy),
    "kl_divergence": Pair(lambda x, _, y: jsj.kl_divergence(x, y), _plain_kl),
}


def in_modes(f: Callable[..., jax.Array]) -> dict[str, Callable]:
    """Programs of (x, labels, y): the value; with its VJP; the JVP; a product with a Hessian."""

    def with_vjp(x, labels, y):
        value, pullback = jax.vjp(lambda x: f(x, labels, y), x)
        return value, pullback(_along(value, y))[0]

    def jvp(x, labels, y):
        return jax.jvp(lambda x: f(x, labels, y), (x,), (y,))[1]

    def hvp(x, labels, y):
        def total(x):
            value = f(x, labels, y)
            return jnp.sum(value * _along(value, y))

        return jax.jvp(jax.grad(total), (x,), (y,))[1]

    return {"value": f, "value and VJP": with_vjp, "JVP": jvp, "HVP": hvp}


def _along(value: jax.Array, y: jax.Array) -> jax.Array:
    """A cotangent: of rows one that is read from memory, as a model's is."""
    if value.shape == y.shape:
        return y
    index = jax.lax.broadcasted_iota(jnp.int32, value.shape, value.ndim - 1)
    return 1 + 0.25 * (index % 3).astype(value.dtype)


def rows_of(shape: tuple[int, int], scale: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, labels and target logits."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = (scale * jax.random.normal(key, shape, jnp.float32) for key in keys[:2])
    return x, jax.random.randint(keys[2], shape[:1], 0, shape[1], jnp.int32), y

"""Functions of rows with ordinary and empty entries; as a script, traces all for leaked tracers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from helpers import checking_leaks

import jaxsoftjac as jsj

INF = np.inf
ROWS = np.float32([[0, 1, -2, 3], [-INF, 0, 5, -INF], [40, 0, -INF, 1]])
WHERE = np.array([[True, True, False, True], [False, True, True, False], [False] * 4])
LABELS = np.array([0, 2, 1])
KERNEL = np.float32(np.random.default_rng(0).normal(size=(4, 6)))


def masked(f, **options):
    return lambda x: f(jnp.where(jnp.isnan(x), 0, x), where=WHERE, **options)


def taught(hidden):
    target = jsj.LinearTarget(-hidden, KERNEL, np.float32([0, -INF, 1, 2, -INF, 0]))
    return jsj.linear_cross_entropy(hidden, KERNEL, target, block_size=4)


FUNCTIONS = {
    "softmax": jsj.softmax,
    "softmax, where": masked(jsj.softmax),
    "logsumexp": functools.partial(jsj.logsumexp, axis=-1),
    "logsumexp, b": functools.partial(jsj.logsumexp, axis=-1, b=np.float32([1, 0, 2, -0.01])),
    "softmax_vjp": lambda x: jsj.softmax_vjp(x, jsj.softmax(x)),
    "cross_entropy": lambda x: jsj.cross_entropy(x, LABELS, ignore_index=1),
    "cross_entropy, options": lambda x: jsj.cross_entropy(
        x, LABELS, label_smoothing=0.1, z_loss=0.1, ignore_index=1
    ),
    "cross_entropy, where": masked(jsj.cross_entropy, labels=np.array([0, 1, -1]), ignore_index=-1),
    "cross_entropy, probabilities": lambda x: jsj.cross_entropy(
        x, np.float32(np.eye(4)[[0, 1, 0]])
    ),
    "entropy": jsj.entropy,
    "entropy, where": masked(jsj.entropy),
    "kl_divergence": lambda x: jsj.kl_divergence(
        x, jnp.where(jnp.isinf(x), x, jnp.cos(jnp.where(jnp.isinf(x), 0, x)))
    ),
    "softmax_jacobian": jsj.softmax_jacobian,
    "cross_entropy_hessian": lambda x: jsj.cross_entropy_hessian(
        x, np.array([0, 1, 3]), z_loss=0.1
    ),
    "linear_cross_entropy": lambda x: jsj.linear_cross_entropy(
        jnp.where(jnp.isinf(x), 0, x), KERNEL, LABELS, ignore_index=1, block_size=4
    ),
    "linear_cross_entropy, teacher": lambda x: taught(jnp.where(jnp.isinf(x), 0, x)),
}


def main():
    """Prints the name of each function whose derivatives of second order leak nothing."""
    for name, f in FUNCTIONS.items():
        gradient = jax.grad(lambda x, f=f: jnp.sum(f(x)))
        with checking_leaks():
            jax.make_jaxpr(lambda x, g=gradient: (jax.jacfwd(g)(x), jax.jacrev(g)(x)))(ROWS)
        print(name)


if __name__ == "__main__":
    main()

"""Hidden states, a kernel and a bias; their loss in blocks and from the logits; and every mode."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import WIDE

import jaxsoftjac as jsj
from jaxsoftjac.losses import linear_cross_entropy

N, D, V = 6, 4, 11
NAMES = ("hidden", "kernel", "bias")
LABELS = np.array([0, 10, 3, -100, 7, 7])
OPTIONS = {
    "plain": {},
    "all": {"label_smoothing": 0.1, "z_loss": 0.2, "logit_softcap": 2.0, "weights": True},
}


def operands(dtype=WIDE):
    random = np.random.default_rng(0)
    shapes = {"hidden": (N, D), "kernel": (D, V), "bias": (V,)}
    return {k: jnp.asarray(random.normal(size=s), dtype) for k, s in shapes.items()}


def weights_of(options):
    options = dict(options)
    weights = jnp.arange(1.0, N + 1, dtype=WIDE) if options.pop("weights", False) else None
    return options, weights


def blockwise(rows, options, reduction, **more):
    options, weights = weights_of(options)
    options |= {"weights": weights, "ignore_index": -100, "reduction": reduction} | more
    hidden, kernel, bias = map(rows.get, NAMES)
    return linear_cross_entropy(hidden, kernel, LABELS, bias=bias, block_size=4, **options)


def logits(rows, softcap=None):
    z = rows["hidden"] @ rows["kernel"] + rows["bias"][None, :]
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def dense(rows, options, reduction):
    options, weights = weights_of(options)
    z = logits(rows, options.pop("logit_softcap", None))
    losses = jsj.cross_entropy(z, LABELS, ignore_index=-100, **options)
    weights = jnp.ones_like(losses) if weights is None else weights
    kept = jnp.where(LABELS == -100, 0, weights)
    if reduction == "none":
        return weights * losses
    return jnp.sum(weights * losses) / (jnp.sum(kept) if reduction == "mean" else 1)


def weights_like(a):
    """Cotangents of size 1: a function of the values would amplify their rounding."""
    return jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape)


def modes(f):
    """Value, first and second derivatives of `f` by a tree, in every nesting.

    "forward over reverse" is the value, the vjp and the derivatives of both.
    """

    def along(f):
        return lambda x: jax.jvp(f, (x,), (jax.tree.map(lambda a: jnp.cos(3 * a), x),))

    def value_and_vjp(f):
        def pulled(x):
            y, pullback = jax.vjp(f, x)
            return y, pullback(jax.tree.map(weights_like, y))[0]

        return pulled

    def back(f):
        return lambda x: value_and_vjp(f)(x)[1]

    def pushed(f):
        return lambda x: along(f)(x)[1]

    return {
        "value": f,
        "jvp": pushed(f),
        "vjp": back(f),
        "forward over reverse": along(value_and_vjp(f)),
        "reverse over reverse": back(back(f)),
        "reverse over forward": back(pushed(f)),
        "forward over forward": along(pushed(f)),
    }


# The nestings, in which every first derivative is.
NESTINGS = tuple(modes(None))[3:]


def compiled_modes(loss, rows):
    """The compiled first and second derivatives of a loss by a tree."""
    modes_ = modes(loss)
    modes_["vjp"] = jax.grad(loss) if jax.eval_shape(loss, rows).ndim == 0 else modes_["vjp"]
    for name, mode in modes_.items():
        if name not in ("value", "forward over forward", "reverse over forward"):
            yield name, jax.jit(mode).lower(rows).compile()

"""One table of the public functions × every transformation, against JAX's own derivatives of the
textbook formulas; and export of each with its derivatives to cpu, cuda and tpu."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups import FILE_OF
from helpers import WIDE, close, plain_softmax, quick_jit
from plain_entmax import plain_entmax, plain_entmax_loss
from ways import ways

import jaxsoftjac as jsj

LABELS = np.array([0, 2, 3])
PERM = np.array([0, 2, 1])
WHERE = np.array([[True, True, False, True], [True, False, True, True], [False, True, True, True]])


def plain_log_softmax(x, axis=-1, where=None):
    log_sigma = x - plain_logsumexp(x, axis, where)
    return log_sigma if where is None else jnp.where(where, log_sigma, 0)


def plain_logsumexp(x, axis=-1, where=None):
    e = jnp.exp(x) if where is None else jnp.where(where, jnp.exp(x), 0)
    return jnp.log(jnp.sum(e, axis, keepdims=True))


def finite_log_softmax(x, axis=-1, where=None):
    """log_softmax with 0 for the −∞ of excluded classes, so that values can be compared."""
    log_sigma = jsj.log_softmax(x, axis, where)
    return log_sigma if where is None else jnp.where(where, log_sigma, 0)


def plain_cross_entropy(x, target, smoothing, z_loss):
    target = (1 - smoothing) * target + smoothing / target.shape[-1]
    total = plain_logsumexp(x)
    return jnp.sum(target * (total - x), -1) + z_loss * total[..., 0] ** 2


def plain_kl(y, log_q):
    log_p = plain_log_softmax(y)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def plain_jacobian(x):
    return jax.vmap(jax.jacrev(plain_softmax))(x)


def plain_log_jacobian(x):
    return jax.vmap(jax.jacrev(plain_log_softmax))(x)


def attention_arrays(x):
    return x[:, None], jnp.sin(x)[:, None], jnp.cos(x)[:, None]


def learned_alpha(x):
    return 1.5 + 0.4 * jnp.sin(jnp.sum(x, -1))


V = np.random.default_rng(7).normal(size=(3, 4))

# name: (function of logits [3, 4], the same by textbook formulas)
TABLE = {
    "softmax": (jsj.softmax, plain_softmax),
    "softmax, axis 0": (functools.partial(jsj.softmax, axis=0), lambda x: plain_softmax(x, 0)),
    "softmax, all axes": (
        functools.partial(jsj.softmax, axis=None),
        lambda x: plain_softmax(x, (0, 1)),
    ),
    "softmax, where": (
        lambda x: jsj.softmax(x, where=WHERE),
        lambda x: plain_softmax(x, where=WHERE),
    ),
    "log_softmax": (jsj.log_softmax, plain_log_softmax),
    "log_softmax, axes (1, 0)": (
        functools.partial(jsj.log_softmax, axis=(1, 0)),
        lambda x: plain_log_softmax(x, (0, 1)),
    ),
    "log_softmax, where": (
        lambda x: finite_log_softmax(x, where=WHERE),
        lambda x: plain_log_softmax(x, where=WHERE),
    ),
    "logsumexp": (
        lambda x: jsj.logsumexp(x, axis=-1, keepdims=True),
        plain_logsumexp,
    ),
    "logsumexp, where": (
        lambda x: jsj.logsumexp(x, axis=0, where=WHERE),
        lambda x: plain_logsumexp(x, 0, WHERE)[0],
    ),
    "logsumexp, b": (
        lambda x: jsj.logsumexp(x, axis=-1, b=jnp.asarray(V**2, x.dtype)),
        lambda x: jnp.log(jnp.sum(jnp.asarray(V**2, x.dtype) * jnp.exp(x), -1)),
    ),
    "softmax_vjp": (
        lambda x: jsj.softmax_vjp(jnp.sin(x), jsj.softmax(x)),
        lambda x: (plain_jacobian(x) @ jnp.sin(x)[..., None])[..., 0],
    ),
    "softmax_jvp": (
        lambda x: jsj.softmax_jvp(jnp.asarray(V, x.dtype), jsj.softmax(x)),
        lambda x: (plain_jacobian(x) @ jnp.asarray(V, x.dtype)[..., None])[..., 0],
    ),
    "log_softmax_vjp": (
        lambda x: jsj.log_softmax_vjp(jnp.sin(x), jsj.softmax(x)),
        lambda x: (jnp.sin(x)[..., None, :] @ plain_log_jacobian(x))[..., 0, :],
    ),
    "log_softmax_jvp": (
        lambda x: jsj.log_softmax_jvp(jnp.sin(x), jsj.softmax(x)),
        lambda x: (plain_log_jacobian(x) @ jnp.sin(x)[..., None])[..., 0],
    ),
    "softmax_second_derivative": (
        lambda x: jsj.softmax_second_derivative(
            jnp.asarray(V, x.dtype), jnp.cos(x), jsj.softmax(x)
        ),
        lambda x: jnp.einsum(
            "nijk,nj,nk->ni",
            jax.vmap(jax.hessian(plain_softmax))(x),
            jnp.asarray(V, x.dtype),
            jnp.cos(x),
        ),
    ),
    "softmax_jacobian": (jsj.softmax_jacobian, plain_jacobian),
    "log_softmax_jacobian": (jsj.log_softmax_jacobian, plain_log_jacobian),
    "cross_entropy": (
        lambda x: jsj.cross_entropy(x, LABELS, label_smoothing=0.1, z_loss=0.2),
        lambda x: plain_cross_entropy(x, jax.nn.one_hot(LABELS, 4, dtype=x.dtype), 0.1, 0.2),
    ),
    "cross_entropy, probabilities": (
        lambda x: jsj.cross_entropy(x, plain_softmax(jnp.sin(x), 0), axis=0, label_smoothing=0.1),
        lambda x: plain_cross_entropy(x.T, plain_softmax(jnp.sin(x), 0).T, 0.1, 0.0),
    ),
    "cross_entropy, where": (
        lambda x: jsj.cross_entropy(x, LABELS, where=WHERE, ignore_index=2),
        lambda x: (
            jnp.array([1, 0, 1], x.dtype)
            * -jnp.take_along_axis(plain_log_softmax(x, where=WHERE), LABELS[:, None], 1)[:, 0]
        ),
    ),
    "entropy": (jsj.entropy, lambda x: -plain_kl(x, jnp.zeros_like(x))),
    "kl_divergence": (
        lambda x: jsj.kl_divergence(x, jnp.cos(x)),
        lambda x: plain_kl(jnp.cos(x), plain_log_softmax(x)),
    ),
    "kl_divergence, near": (
        lambda x: jsj.kl_divergence(jnp.cos(x), jnp.cos(x) + 0.1 * jnp.sin(x)),
        lambda x: plain_kl(jnp.cos(x) + 0.1 * jnp.sin(x), plain_log_softmax(jnp.cos(x))),
    ),
    "cross_entropy_hessian": (
        lambda x: jsj.cross_entropy_hessian(x, LABELS, label_smoothing=0.1, z_loss=0.2),
        lambda x: jax.vmap(jax.hessian(lambda x, t: plain_cross_entropy(x, t, 0.1, 0.2)))(
            x, jax.nn.one_hot(LABELS, 4, dtype=x.dtype)
        ),
    ),
    "softmax_hessian": (jsj.softmax_hessian, jax.vmap(jax.hessian(plain_softmax))),
    "sparsemax": (jsj.sparsemax, lambda x: plain_entmax(x, 2)),
    "entmax": (jsj.entmax, lambda x: plain_entmax(x, 1.5)),
    "entmax, where": (
        lambda x: jsj.entmax(x, 1.3, axis=0, where=WHERE),
        lambda x: plain_entmax(x, 1.3, axis=0, where=WHERE),
    ),
    "entmax, learned": (
        lambda x: jsj.entmax(x, learned_alpha(x)),
        lambda x: plain_entmax(x, learned_alpha(x)),
    ),
    "entmax_loss": (
        lambda x: jsj.entmax_loss(x, LABELS),
        lambda x: plain_entmax_loss(x, jax.nn.one_hot(LABELS, 4, dtype=x.dtype), 1.5),
    ),
    "entmax_loss, learned": (
        lambda x: jsj.entmax_loss(x, plain_softmax(jnp.sin(x)), learned_alpha(x)),
        lambda x: plain_entmax_loss(x, plain_softmax(jnp.sin(x)), learned_alpha(x)),
    ),
    "linear_cross_entropy": (
        lambda x: jsj.linear_cross_entropy(
            x, jnp.cos(x).T, PERM, block_size=2, label_smoothing=0.1, reduction="mean"
        ),
        lambda x: jnp.mean(
            plain_cross_entropy(x @ jnp.cos(x).T, jnp.eye(3, dtype=x.dtype)[PERM], 0.1, 0.0)
        ),
    ),
    "linear_cross_entropy, teacher": (
        lambda x: jsj.linear_cross_entropy(
            x, jnp.cos(x).T, jsj.LinearTarget(jnp.sin(x), x.T, temperature=1.5), block_size=2
        ),
        lambda x: plain_cross_entropy(
            x @ jnp.cos(x).T, plain_softmax(jnp.sin(x) @ x.T / 1.5), 0.0, 0.0
        ),
    ),
    "dot_product_attention": (
        lambda x: jsj.dot_product_attention(*attention_arrays(x), is_causal=True, block_size=2)[
            :, 0
        ],
        lambda x: plain_softmax(x @ jnp.sin(x).T / 2, where=np.tri(3, dtype=bool)) @ jnp.cos(x),
    ),
}


def logits():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)) * 2, WIDE)


# The same derivative by another route, which one reference serves.
ROUTES = {"jacfwd": "jacrev", "checkpoint": "forward over reverse"}

# What is a derivative itself has no rule of its own: its third order would be the fifth of softmax.
# Most variants of a function are its rules too: each mode and order once is enough of them.
DERIVATIVES = ("_vjp", "_jvp", "_derivative", "_jacobian", "_hessian", "entmax_loss")
RULES_OF_THEIR_OWN = (
    "logsumexp, b",
    "cross_entropy, probabilities",
    "kl_divergence, near",
    "entmax, learned",
    "linear_cross_entropy, teacher",
)
OF_VARIANTS = ("value", "forward over reverse", "reverse over reverse", "reverse over forward")


def ways_to_try(name):
    """All, but where another name or another pass has the same rules."""
    if not jax.config.jax_enable_x64 or ("," in name and name not in RULES_OF_THEIR_OWN):
        return OF_VARIANTS
    third = not name.endswith(DERIVATIVES)
    return tuple(w for w in ways(TABLE[name][0]) if third or "third" not in w)


QUICK_VARIANTS = "logsumexp, b", "cross_entropy, probabilities"
SLOW = (  # of attention, its own tests have every mode
    "cross_entropy_hessian dot_product_attention softmax_hessian softmax_second_derivative "
    "sparsemax"
).split()


def marks_of(name):
    """Variants are the same programs whether x64 is on or off; most have the rules of others."""
    is_variant = "," in name
    is_slow = name in SLOW or (is_variant and name not in QUICK_VARIANTS)
    return [pytest.mark.once] * is_variant + [pytest.mark.slow] * is_slow


ROWS = [pytest.param(name, marks=marks_of(name)) for name in TABLE]


@pytest.mark.parametrize("name", ROWS)
def test_agrees_with_autodiff_of_the_textbook(name):
    ours, plain = TABLE[name]
    names = ways_to_try(name)

    @functools.partial(quick_jit, static_argnums=(0, 1))
    def evaluate(f, names, x):
        batch = jnp.stack([x, -x])
        w = ways(f)
        return {k: w[k](batch if k == "vmap" else x) for k in names}

    actual = evaluate(ours, names, logits())
    expected = evaluate(plain, tuple(k for k in names if k not in ROUTES), logits())
    for way in names:
        chex.assert_tree_all_finite(actual[way])
        # Third derivatives of the losses sum many terms of size 1.
        jax.tree.map(
            lambda a, b: close(a, b, scale=10.0), actual[way], expected[ROUTES.get(way, way)]
        )


@pytest.mark.once
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy"])
def test_eager_is_as_jit(name):
    ours, _ = TABLE[name]
    x = logits()
    chosen = {k: ways(ours)[k] for k in ("value", "jacfwd", "forward over reverse")}
    jitted = jax.jit(lambda x: {k: f(x) for k, f in chosen.items()})(x)
    jax.tree.map(close, {k: f(x) for k, f in chosen.items()}, jitted)


# Other axes are the same operations.
@pytest.mark.once
@pytest.mark.parametrize("name", [n for n in TABLE if "axes" not in n and "axis" not in n])
def test_exports_to_cpu_cuda_and_tpu(name):
    f, _ = TABLE[name]
    x = jnp.zeros((3, 4), jnp.float32)

    def value_and_derivatives(x):
        w = ways(f)
        return w["value"](x), w["forward over reverse"](x)

    platforms = "cpu", "cuda", "tpu"
    exported = jax.export.export(jax.jit(value_and_derivatives), platforms=platforms)(x)
    assert exported.platforms == platforms


def test_the_table_holds_every_public_array_function():
    tested = {name.split(",")[0] for name in TABLE}
    public = {n for n, f in vars(jsj).items() if inspect.isfunction(f) and n[0] != "_"}
    assert public == tested | set(FILE_OF)

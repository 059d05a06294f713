"""The Gauss–Newton product of linear_cross_entropy against the dense JᵀHJ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from linear_cases import LABELS, NAMES, OPTIONS, D, N, V, logits, operands, weights_of

import jaxsoftjac as jsj
from jaxsoftjac.losses import linear_cross_entropy_gauss_newton

pytestmark = pytest.mark.once


@pytest.mark.parametrize("options", OPTIONS)
def test_gauss_newton_product(options):
    rows = operands()
    along = jax.tree.map(lambda a: jnp.cos(3 * a), rows)
    kwargs, weights = weights_of(OPTIONS[options])
    softcap = kwargs.get("logit_softcap")
    tangents = tuple(along[k] for k in NAMES)

    @quick_jit
    def product_of(hidden, kernel, bias):
        more = {"weights": weights, "ignore_index": -100, "reduction": "mean", "block_size": 4}
        return linear_cross_entropy_gauss_newton(
            hidden, kernel, LABELS, tangents, bias=bias, **more, **kwargs
        )

    product = product_of(*map(rows.get, NAMES))
    z, push = jax.linearize(lambda rows: logits(rows, softcap), rows)
    of_logits = {k: v for k, v in kwargs.items() if k != "logit_softcap"}
    hessian = jsj.cross_entropy_hessian(z, LABELS, ignore_index=-100, **of_logits)
    weights = jnp.ones(N, WIDE) if weights is None else weights
    weights = weights / jnp.sum(jnp.where(LABELS == -100, 0, weights))
    by_logits = jnp.einsum("n,nij,nj->ni", weights, hessian, push(along))
    expected = jax.linear_transpose(push, rows)(by_logits)[0]
    jax.tree.map(close, product, tuple(expected[k] for k in NAMES))
    assert sum(jnp.vdot(p, t) for p, t in zip(product, map(along.get, NAMES), strict=True)) >= 0


def test_gauss_newton_product_is_linear_symmetric_and_transformable():
    rows = operands()
    a, b = (tuple(jnp.cos(s * rows[k]) for k in NAMES) for s in (3, 7))

    def product(t, bias):
        return linear_cross_entropy_gauss_newton(
            rows["hidden"], rows["kernel"], 3, t, bias=bias, block_size=4
        )

    @quick_jit
    def all_ways(a, b):
        along_a, pull = jax.vjp(lambda t: product(t, rows["bias"]), a)
        pushed = jax.jvp(lambda t: product(t, rows["bias"]), (a,), (b,))[1]
        both = jax.vmap(lambda t: product(t, rows["bias"]))(
            jax.tree.map(lambda *c: jnp.stack(c), a, b)
        )
        by_bias = jax.jvp(lambda bias: product(a, bias), (rows["bias"],), (jnp.ones(V, WIDE),))[1]
        return along_a, product(b, rows["bias"]), pull(b)[0], pushed, both, by_bias

    along_a, along_b, pulled, pushed, both, by_bias = all_ways(a, b)
    for other in (pulled, pushed, tuple(c[1] for c in both)):
        jax.tree.map(close, other, along_b)
    jax.tree.map(close, tuple(c[0] for c in both), along_a)
    # A common offset of the logits changes nothing.
    assert max(float(jnp.max(jnp.abs(c))) for c in by_bias) < 1e-5
    t = jax.ShapeDtypeStruct((N, D), jnp.float32), jax.ShapeDtypeStruct((D, V), jnp.float32)
    exported = jax.export.export(
        jax.jit(lambda h, k: linear_cross_entropy_gauss_newton(h, k, 3, (h, k))),
        platforms=("cpu", "cuda", "tpu"),
    )(*t)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_the_recipe_beneath_a_model():
    """The three lines of the docstring, against JᵀHJ of the whole model."""
    random = np.random.default_rng(1)
    inputs, first, kernel = (
        jnp.asarray(random.normal(size=s), WIDE) for s in ((N, 3), (3, D), (D, V))
    )
    t, kernel_t = jnp.cos(first), jnp.sin(kernel)
    labels = np.arange(N)

    def features(first):
        return jnp.tanh(inputs @ first)

    hidden, push = jax.linearize(features, first)
    along = linear_cross_entropy_gauss_newton(hidden, kernel, labels, (push(t), kernel_t))
    product = jax.linear_transpose(push, first)(along[0])[0], along[1]

    z, push_all = jax.linearize(lambda first, kernel: features(first) @ kernel, first, kernel)
    by_logits = jsj.softmax_jvp(push_all(t, kernel_t), jsj.softmax(z))
    expected = jax.linear_transpose(push_all, first, kernel)(by_logits)
    jax.tree.map(close, product, expected)


def test_bad_tangents():
    hidden, kernel = jnp.ones((3, 2)), jnp.ones((2, 5))
    with pytest.raises(ValueError, match="`tangents` must be a tuple of 2 arrays"):
        linear_cross_entropy_gauss_newton(hidden, kernel, 0, (hidden,))
    with pytest.raises(ValueError, match=r"`tangents \(kernel\)` must have the shape of `kernel`"):
        linear_cross_entropy_gauss_newton(hidden, kernel, 0, (hidden, hidden))

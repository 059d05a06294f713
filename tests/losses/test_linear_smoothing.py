"""Second derivatives beneath a vocabulary keep their digits with every option, as without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import U, f32, long_product, long_softmax, relative_error

from jaxsoftjac import LinearTarget, linear_cross_entropy, linear_cross_entropy_gauss_newton

pytestmark = pytest.mark.once

HIDDEN = f32([1])
CLASSES = f32(2, 1, 0.5, 1, 3, 1, 1)
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing alone": {"label_smoothing": 1.0},
    "smoothing, traced": {"label_smoothing": jnp.asarray(0.1, jnp.float32)},
    "smoothing and z-loss": {"label_smoothing": 0.1, "z_loss": 1e-3},
    "class weights": {"label_smoothing": 0.1, "class_weights": CLASSES},
}


def expected_product(z, v, name, label=0):
    """Mass of the target times Jv, and what z-loss adds to it, in long double."""
    options = OPTIONS.get(name, {})
    s, z_loss = float(options.get("label_smoothing", 0)), options.get("z_loss", 0)
    w = np.asarray(options.get("class_weights", np.ones_like(z)), np.longdouble)
    mass = (1 - s) * w[label] + s * w.mean()
    sigma, log_sigma, _ = long_softmax(z)
    lse = np.longdouble(z[label]) - log_sigma[label]
    product = long_product(z, v)
    return mass * product + 2 * z_loss * (lse * product + sigma * (sigma * v).sum())


def along_pulled_back(gradient, kernel, v):
    return jax.grad(lambda k: jnp.vdot(gradient(k), v))(kernel)


def pushed_forward(gradient, kernel, v):
    return jax.jvp(gradient, (kernel,), (v,))[1]


def confident(gap):
    z = np.array([gap, 0, 0.5, -1, 0.25, 1, -0.5], np.float32)
    return z, np.sin(1 + np.arange(7)).astype(np.float32)


@pytest.mark.as_compiled
@pytest.mark.parametrize("gap", [12, pytest.param(20, marks=pytest.mark.slow), 40])
@pytest.mark.parametrize("name", [*OPTIONS, "teacher"])
def test_hessian_and_gauss_newton_products_of_confident_rows(name, gap):
    z, v = confident(gap)
    labels, options = np.array([0]), OPTIONS.get(name)
    if options is None:
        options = {"label_smoothing": 0.1}
        labels = LinearTarget(HIDDEN, jnp.asarray(z)[None])

    def products(kernel, v):
        def loss(kernel):
            found = linear_cross_entropy(
                HIDDEN, kernel, labels, block_size=3, reduction=reduction, **options
            )
            return jnp.sum(found)

        gradient = jax.grad(loss)
        along = jnp.zeros_like(HIDDEN), v
        of_outputs = linear_cross_entropy_gauss_newton(
            HIDDEN, kernel, labels, along, block_size=3, **options
        )
        return (
            pushed_forward(gradient, kernel, v),
            along_pulled_back(gradient, kernel, v),
            of_outputs[1],
        )

    for reduction in ("none", "sum"):
        for found in jax.jit(products)(z[None], v[None]):
            error = relative_error(np.asarray(found)[0], expected_product(z, v, name))
            assert error <= 64 * U, (reduction, error)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_weight_0_of_an_infinite_loss_has_the_derivatives_of_the_plain_loss(reduction):
    """The label of the first example is excluded."""
    bias, labels = f32(0, 1, -np.inf), np.array([2, 1])
    kernel, hidden = jnp.zeros((1, 3), jnp.float32), jnp.ones((2, 1), jnp.float32)

    def loss(weights):
        found = linear_cross_entropy(
            hidden, kernel, labels, bias=bias, weights=weights, reduction=reduction
        )
        return jnp.sum(found)

    at = np.log1p(np.exp(-1.0))
    expected = [-at, 0] if reduction == "mean" else [0, at]
    for how in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(how(loss))(f32(0, 1)), expected, rtol=4 * U)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cap_is_not_rounded_to_the_dtype_of_the_hidden_states(dtype):
    hidden, kernel = jnp.ones((1, 1), dtype), f32([10, 0])
    for cap in (5.01, 1e5):
        capped = cap * np.tanh(10 / cap)
        loss = linear_cross_entropy(hidden, kernel, np.array([1]), logit_softcap=cap)
        np.testing.assert_allclose(loss, [np.logaddexp(capped, 0)], rtol=8 * U)

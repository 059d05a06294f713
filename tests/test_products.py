"""The products as linear maps: symmetric, singular on ones, positive, and their errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close

import jaxsoftjac as jsj


@pytest.fixture(params=["eager", "jit"])
def how(request):
    return {"eager": lambda f: f, "jit": jax.jit}[request.param]


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    x, a, b = (jnp.asarray(random.normal(size=(5, 7)), WIDE) for _ in range(3))
    return jsj.softmax(3 * x), a, b


def test_is_adjoint_to_itself(rows, how):
    sigma, a, b = rows
    product = how(jsj.softmax_vjp)
    chex.assert_trees_all_close(
        jnp.vdot(a, product(b, sigma)), jnp.vdot(b, product(a, sigma)), rtol=1e-5
    )
    close(product(a, sigma), how(jsj.softmax_jvp)(a, sigma))


def test_log_products_are_adjoint(rows, how):
    sigma, a, b = rows
    chex.assert_trees_all_close(
        jnp.vdot(a, how(jsj.log_softmax_jvp)(b, sigma)),
        jnp.vdot(b, how(jsj.log_softmax_vjp)(a, sigma)),
        rtol=1e-5,
    )


def test_annihilates_ones_and_sums_to_zero(rows, how):
    sigma, a, _ = rows
    close(how(jsj.softmax_vjp)(jnp.ones_like(a), sigma), jnp.zeros_like(a))
    close(jnp.sum(how(jsj.softmax_vjp)(a, sigma), -1), jnp.zeros(5, WIDE))
    close(how(jsj.softmax_vjp)(a + 3, sigma), how(jsj.softmax_vjp)(a, sigma))


def test_is_positive_semidefinite(rows, how):
    sigma, a, _ = rows
    forms = jnp.sum(a * how(jsj.softmax_vjp)(a, sigma), -1)
    variances = jnp.sum(sigma * a**2, -1) - jnp.sum(sigma * a, -1) ** 2
    assert np.all(forms >= 0)
    close(forms, variances)


def test_is_linear(rows, how):
    sigma, a, b = rows
    for product in map(how, (jsj.softmax_vjp, jsj.log_softmax_vjp, jsj.log_softmax_jvp)):
        close(product(2 * a - b, sigma), 2 * product(a, sigma) - product(b, sigma))


def test_permutation_and_shift(rows, how):
    _, x, a = rows
    order = np.random.default_rng(1).permutation(7)
    gradient = how(lambda x, a: jax.vjp(jsj.softmax, x)[1](a)[0])
    close(gradient(x[:, order], a[:, order]), gradient(x, a)[:, order])
    close(gradient(x + 5, a), gradient(x, a))


def test_second_derivative_is_symmetric_and_contracts_the_hessian(rows, how):
    _, x, a = rows
    b = jnp.cos(x)
    second = how(lambda u, v: jsj.softmax_second_derivative(u, v, jsj.softmax(x)))
    close(second(a, b), second(b, a))
    close(second(a, b), jnp.einsum("nijk,nj,nk->ni", jsj.softmax_hessian(x), a, b))


@pytest.mark.parametrize("axis", [0, 1, (0, 1), None])
def test_axes(rows, axis):
    _, x, a = rows
    sigma = jsj.softmax(x, axis=axis)
    for product, f in ((jsj.softmax_vjp, jsj.softmax), (jsj.log_softmax_vjp, jsj.log_softmax)):
        expected = jax.vjp(lambda x, f=f: f(x, axis=axis), x)[1](a)[0]
        close(product(a, sigma, axis), expected)


def test_shapes_and_dtypes(rows):
    sigma, a, _ = rows
    for product in (jsj.softmax_vjp, jsj.softmax_jvp, jsj.log_softmax_vjp, jsj.log_softmax_jvp):
        for dtype in ("float32", "bfloat16", "float16"):
            result = product(a.astype(dtype), sigma.astype(dtype))
            chex.assert_shape(result, (5, 7))
            chex.assert_type(result, dtype)
        chex.assert_shape(product(a[:, :0], sigma[:, :0]), (5, 0))


@pytest.mark.parametrize(
    ("product", "name"),
    [
        (jsj.softmax_vjp, "grad_output"),
        (jsj.softmax_jvp, "tangent"),
        (jsj.log_softmax_vjp, "grad_output"),
        (jsj.log_softmax_jvp, "tangent"),
    ],
)
def test_bad_input(product, name):
    ones = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=rf"`{name}` must have the shape of `sigma`, \(3,\)"):
        product(np.ones(4, np.float32), ones)
    with pytest.raises(TypeError, match=f"`{name}` must be real, got dtype bool"):
        product(ones > 0, ones)
    with pytest.raises(TypeError, match="`sigma` must be real, got dtype complex"):
        product(ones, ones.astype(np.complex64))
    with pytest.raises(ValueError, match="`axis`"):
        product(ones, ones, axis=1)

"""float32 accuracy on a grid of gap × offset × K × modes; `pytest -s` prints the worst cases."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import U, long_centre, long_product, long_softmax, peaked_rows, relative_error

import jaxsoftjac as jsj

GAPS = (0, 4, 8, 12, 14, 15, 16, 17, 20, 24, 30)
OFFSETS = (0.0, 10.0, 1e3, 1e5, 1e6)
# The widest rows are the same float32 programs whether x64 is on or off.
WIDE_ROW = pytest.param(1024, marks=pytest.mark.once)
LONG_ROW = pytest.param(20000, marks=[pytest.mark.once, pytest.mark.slow])  # of use as compiled
SIZES = (2, 3, 16, 300, WIDE_ROW, LONG_ROW)


@functools.cache
def grid(K):
    """All gaps, offsets and modes of one K as one batch, with a label for each row."""
    xs, vs, labels = [], [], []
    for gap in GAPS:
        for offset in OFFSETS:
            for modes in (1, 2, 5):
                if modes < K:
                    rows = 4 if K <= 1024 else 1
                    x, v = peaked_rows(K, gap, offset, modes, rows)
                    xs.append(x)
                    vs.append(v)
                    labels += [f"gap {gap}, offset {offset:g}, {modes} modes"] * rows
    return np.concatenate(xs), np.concatenate(vs), labels


def transposed(x, v):
    return jax.linear_transpose(lambda t: jax.jvp(jsj.softmax, (x,), (t,))[1], x)(v)[0]


PRODUCTS = {
    "vjp": lambda x, v: jax.vjp(jsj.softmax, x)[1](v)[0],
    "jvp": lambda x, v: jax.jvp(jsj.softmax, (x,), (v,))[1],
    "transposed jvp": transposed,
    "softmax_vjp": lambda x, v: jsj.softmax_vjp(v, jsj.softmax(x)),
    "hvp of logsumexp": lambda x, v: jax.jvp(
        jax.grad(lambda x: jnp.sum(jsj.logsumexp(x, axis=-1))), (x,), (v,)
    )[1],
}


@pytest.mark.parametrize("K", SIZES)
def test_products_keep_their_digits(K):
    x, v, labels = grid(K)
    expected = long_product(x, v)
    allowed = 128 * U + relative_error(jsj.softmax(x), long_softmax(x)[0])
    for name, product in PRODUCTS.items():
        for how, function in (("eager", product), ("jit", jax.jit(product))):
            error = relative_error(function(jnp.asarray(x), jnp.asarray(v)), expected)
            worst = int(np.argmax(error))
            print(f"{name}, K = {K}, {how}: {error[worst]:.1e} at {labels[worst]}")
            assert np.all(error <= allowed), (name, how, labels[worst])


@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("how", [lambda f: f, jax.jit])
def test_second_derivative_keeps_its_digits(how, K):
    x, v, labels = grid(K)
    u = v[:, ::-1].copy()
    sigma = long_softmax(x)[0]
    w = long_centre(x, u) * long_centre(x, v)
    expected = long_product(x, w)
    # As for the first derivative, relative to the mean deviation of w; and what σ's own error of
    # some 16 u does to the means ū and v̄ in w, which matters where w is nearly constant.
    deviation = (sigma * np.abs(w - (sigma * w).sum(-1, keepdims=True))).sum(-1)
    scale = deviation + (sigma * np.abs(w)).sum(-1) / 8
    actual = how(lambda x, u, v: jsj.softmax_second_derivative(u, v, jsj.softmax(x)))(
        jnp.asarray(x), jnp.asarray(u), jnp.asarray(v)
    )
    nested = how(
        lambda x, u, v: jax.jvp(lambda x: jax.jvp(jsj.softmax, (x,), (u,))[1], (x,), (v,))[1]
    )(jnp.asarray(x), jnp.asarray(u), jnp.asarray(v))
    for name, result in (("formula", actual), ("jvp of jvp", nested)):
        error = np.abs(np.asarray(result, np.longdouble) - expected).sum(-1) / scale
        worst = int(np.argmax(error))
        print(f"second derivative, {name}, K = {K}: {float(error[worst]):.1e} at {labels[worst]}")
        assert np.all(error <= 128 * U), labels[worst]


@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("how", [lambda f: f, jax.jit])
def test_values_are_right_componentwise(how, K):
    x, _, labels = grid(K)
    sigma, log_sigma, top = long_softmax(x)
    depth = np.abs(x - np.take_along_axis(x, top, -1)).astype(np.float64)
    summation = np.sqrt(K)  # random-walk growth of an unordered sum, promised for σ alone
    for name, actual, expected, allowed in (
        ("softmax", how(jsj.softmax)(x), sigma, depth + 8 + summation),
        ("log_softmax", how(jsj.log_softmax)(x), log_sigma, np.ptp(x, axis=-1, keepdims=True) + 16),
    ):
        error = np.abs(np.asarray(actual, np.longdouble) / expected - 1).astype(np.float64)
        if name == "softmax":
            error = np.where(sigma < 1e-36, 0, error)  # nothing is promised of subnormals
        worst = np.unravel_index(np.argmax(error - allowed * U), error.shape)
        print(f"{name}, K = {K}: {error[worst] / U:.1f} u at {labels[worst[0]]}")
        assert np.all(error <= allowed * U)
    total = np.asarray(how(lambda x: jsj.logsumexp(x, axis=-1))(x), np.longdouble)
    error = np.abs(total - np.log(np.exp(x.astype(np.longdouble)).sum(-1)))
    assert np.all(error <= (summation + 8) * U * (1 + np.abs(x).max()))


@pytest.mark.parametrize("gap", [16, 40, 80])
def test_log_softmax_of_a_confident_row_against_mpmath(gap):
    x = np.array([gap, 0.25, -1.5, 0.0], np.float32)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(float(a)) for a in x]
        total = mpmath.fsum(mpmath.exp(a) for a in exact)
        expected = np.array([float(a - mpmath.log(total)) for a in exact])
    for how in (jsj.log_softmax, jax.jit(jsj.log_softmax)):
        np.testing.assert_allclose(np.asarray(how(x), np.float64), expected, rtol=(gap + 16) * U)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["vjp", "jvp"])
def test_low_precision_is_rounded_once(name, dtype):
    x, v = peaked_rows(64, 6, 100.0, 1, 16)
    x, v = jnp.asarray(x, dtype), jnp.asarray(v, dtype)
    ulp = float(jnp.finfo(dtype).eps)
    sigma, _, _ = long_softmax(np.asarray(x, np.float32))
    assert np.max(relative_error(np.asarray(jsj.softmax(x), np.float32), sigma)) <= ulp
    expected = long_product(np.asarray(x, np.float32), np.asarray(v, np.float32))
    actual = jax.jit(PRODUCTS[name])(x, v)
    assert actual.dtype == dtype
    assert np.max(relative_error(np.asarray(actual, np.float32), expected)) <= ulp


def test_dense_diagonal_is_right_at_any_gap():
    for gap in (0, 10, 30, 40, 70):
        x = np.array([0, gap, -5, 2], np.float32)
        sigma, _, top = long_softmax(x)
        complement = 1 - sigma
        complement[top] = sigma.sum() - sigma[top] if gap == 0 else np.delete(sigma, top).sum()
        J = jax.jit(jsj.softmax_jacobian)(x)
        np.testing.assert_allclose(
            np.diag(J), (sigma * complement).astype(np.float64), rtol=(2 * gap + 32) * U
        )
        assert np.all(np.asarray(J) == np.asarray(J).T)
        assert np.max(np.abs(J.sum(1))) <= 4 * 4 * U * np.max(J)

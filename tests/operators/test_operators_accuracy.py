"""SoftmaxJacobian in float32, where dense matrices lose their digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import long_softmax

from jaxsoftjac.operators import SoftmaxJacobian

pytestmark = pytest.mark.once


def two_ahead():
    """float32 logits with two classes ahead, their exact σ, and a vector of sum 0."""
    x = np.array([20, 20.5, 0, 1, -1], np.float32)
    return x, long_softmax(x)[0], np.array([3, -1, 2, -5, 1], np.float32) / 1024


def error(solution, expected):
    """Relative error in the norm."""
    expected = np.asarray(expected)
    return np.linalg.norm(np.asarray(solution) - expected) / np.linalg.norm(expected)


def test_solve_in_float32_where_the_dense_one_loses_its_digits():
    x, sigma, b = two_ahead()
    damping = np.float32(1e-9)
    matrix = np.diag(sigma + damping) - sigma[:, None] * sigma
    expected = np.linalg.solve(matrix.astype(float), b)
    J = SoftmaxJacobian.from_logits(x)
    dense = J.as_matrix() + damping * jnp.eye(5, dtype=jnp.float32)
    assert error(J.solve(b, damping), expected) < 1e-5
    assert error(jnp.linalg.solve(dense, b), expected) > 1e-3


def test_pinv_in_float32_where_the_dense_one_loses_its_digits():
    x, sigma, b = two_ahead()
    w = (b / sigma).astype(float)
    J = SoftmaxJacobian.from_logits(x)
    assert error(J.pinv_mv(b), w - w.mean()) < 1e-5
    assert error(jnp.linalg.pinv(J.as_matrix()) @ b, w - w.mean()) > 0.1


def confident():
    """float32 logits with one class 25 nats ahead, and the exact σ."""
    x = np.random.default_rng(3).normal(size=40)
    x[7] += 25
    x = x.astype(np.float32)
    return x, long_softmax(x)[0]


@pytest.mark.parametrize("how", [lambda f: f, jax.jit])
def test_residuals_in_float32_on_a_confident_row(how):
    x, sigma = confident()
    b = exact_product(sigma, np.random.default_rng(4).normal(size=40)).astype(np.float32)
    J = SoftmaxJacobian.from_logits(x)
    damping = np.float32(1e-13)
    for solution, delta in (
        (how(lambda J: J.solve(b, damping))(J), damping),
        (how(lambda J: J.pinv_mv(b))(J), 0),
    ):
        solution = np.asarray(solution, np.longdouble)
        left = exact_product(sigma, solution) + delta * solution
        right = b if delta else b - b.astype(np.longdouble).mean()
        assert np.abs(left - right).sum() < 1e-5 * np.abs(right).sum()


def exact_product(sigma, v):
    """Jv of one row, the class 7 as minus the others."""
    d = v - v[7]
    w = sigma * (d - (sigma * d).sum())
    w[7] = -np.delete(w, 7).sum()
    return w


def test_closed_forms_in_float32_on_a_confident_row():
    x, sigma = confident()
    J = SoftmaxJacobian.from_logits(x)
    others = np.array([np.delete(sigma, i).sum() for i in range(40)])
    squares = sigma[:, None] ** 2 * sigma**2 * (1 - np.eye(40))
    frobenius = np.sqrt(((sigma * others) ** 2).sum() + squares.sum())
    np.testing.assert_allclose(J.diagonal(), (sigma * others).astype(float), rtol=2e-6)
    np.testing.assert_allclose(J.trace(), float((sigma * others).sum()), rtol=2e-6)
    np.testing.assert_allclose(J.frobenius_norm(), float(frobenius), rtol=2e-6)


@pytest.mark.parametrize("x", [[86, 0, 1, -1], [85.5, 0.8, 1, 0], [80, 80, 0, 0], [0, 0, 0, 0]])
def test_the_norm_counts_pairs_whose_squares_underflow(x):
    sigma = long_softmax(np.asarray(x, np.float32))[0]
    others = np.array([np.delete(sigma, i).sum() for i in range(4)])
    J = np.where(np.eye(4), np.diag(sigma * others), -np.outer(sigma, sigma))
    norm = SoftmaxJacobian.from_logits(jnp.asarray(x, jnp.float32)).frobenius_norm()
    np.testing.assert_allclose(norm, float(np.sqrt((J**2).sum())), rtol=4e-6)


def test_logits_keep_what_underflows_in_sigma():
    x = jnp.asarray([0, -120, -60], jnp.float32)
    J, log_sigma = SoftmaxJacobian.from_logits(x), long_softmax(np.asarray(x))[1]
    assert J.sigma[1] == 0
    np.testing.assert_allclose(J.log_pdet(), float(np.log(3) + log_sigma.sum()), rtol=1e-6)
    v = jnp.asarray([1e-20, -1e-20, 0], jnp.float32)
    w = np.array([1e-20, -1e-20, 0]) * np.exp(-log_sigma.astype(float))
    np.testing.assert_allclose(J.pinv_mv(v), w - w.mean(), rtol=2e-5)


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="float64 is the reference")
@pytest.mark.parametrize(
    "x",
    [
        [0.2, -0.5, -0.4, -2.4],
        [40, 0, 1, 2],
        [0, -60, -20, -20],
        [0, -87, -30, -30],
        [80, 0, -1, 3],
        [0, -120, -60, -60],
    ],
)
def test_the_square_root_and_its_derivatives(x):
    b, t = [0.3, -1, 0.7, 0.2], [1, -0.5, 0.25, 2]

    def root(x, b):
        return SoftmaxJacobian.from_logits(x).sqrt_mv(b)

    def derivatives(dtype):
        at, v, along = (jnp.asarray(a, dtype) for a in (x, b, t))

        def pulled(x):
            return jax.vjp(lambda x: root(x, v), x)[1](along)[0]

        gradient, hessian_product = jax.jvp(pulled, (at,), (along,))
        return *jax.jvp(lambda x: root(x, v), (at,), (along,)), gradient, hessian_product

    pairs = zip(derivatives("float32"), derivatives("float64"), strict=True)
    *first, second = [error(found, expected) for found, expected in pairs]
    assert max(first) < 2e-5
    assert second < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_damping_is_not_rounded_to_the_right_side(dtype):
    def solution(dtype, b, damping):
        J = SoftmaxJacobian.from_logits(jnp.asarray([0, 1, 2, 3], dtype))
        return np.asarray(J.solve(jnp.asarray(b, dtype), damping).astype(jnp.float32))

    b = [1, -1, 0, 2]
    expected = jnp.asarray(solution(jnp.float32, b, 0.1003), dtype).astype(jnp.float32)
    np.testing.assert_array_equal(solution(dtype, b, 0.1003), expected)
    assert np.all(np.isfinite(solution(dtype, [1, -1, 0, 0], 1e-4)))


@pytest.mark.parametrize("damping", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("gap", [0, 20])
def test_derivatives_of_solutions_at_a_small_damping(damping, gap):
    x, b = np.array([gap, 1, 2, 0.0]), np.array([0.3, -1, 0.7, 0.2])
    t, u = np.array([1, -0.5, 0.25, 2]), np.array([0.5, 1, -1, 0.25])

    def solution(x):
        J = SoftmaxJacobian.from_logits(x)
        return J.solve(jnp.asarray(b, x.dtype), damping)

    at, along = jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32)
    # The exact derivative is −(J + δ)⁻¹J̇x, where J̇ does not see that x has a large common part.
    sigma = long_softmax(x)[0]
    z = b / (sigma + damping)
    c = (sigma * z).sum() / (damping * sigma / (sigma + damping)).sum()
    z = (b - damping * c) / (sigma + damping)  # the solution less c
    moved = sigma * (t - (sigma * t).sum())
    right = -(moved * z - sigma * (moved * z).sum())
    share = sigma / (sigma + damping)
    expected = right / (sigma + damping) + share * (share * right).sum() / (damping * share).sum()
    found = jax.jvp(solution, (at,), (along,))[1]
    assert error(found, expected) < 1e-5
    pulled = jax.vjp(solution, at)[1](jnp.asarray(u, jnp.float32))[0]
    np.testing.assert_allclose(np.vdot(pulled, along), np.vdot(u, expected), rtol=1e-4)

"""The spectrum in float32 against bisection in long double: peaked, flat, tied, clustered rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, U, close, long_softmax, quick_jit

from jaxsoftjac.operators import SoftmaxJacobian
from jaxsoftjac.operators._secular import eigensystem, eigenvalues, largest_eigenvalue

pytestmark = pytest.mark.once


@jax.jit
def spectrum(sigma):
    return eigensystem(sigma), eigenvalues(sigma), largest_eigenvalue(sigma)


def solve(sigma):
    return jax.tree.map(np.asarray, spectrum(sigma))


def rows(K):
    random = np.random.default_rng(K)
    normal, place = random.normal(size=K), np.arange(K)
    return {
        "normal": normal,
        "wide": 10 * normal,
        "flat": 1e-6 * normal,
        "uniform": 0 * normal,
        "even": -30 * place / K,
        "powers": -1.1 * np.log(1 + place),
        "steep": -np.minimum(place, 70) + 0.01 * normal,
        "one class ahead": normal + 30 * (place == 3),
        "two classes ahead": normal + 20 * (place < 2),
        "half ahead": 1e-4 * normal + 20 * (place < K // 2),
        "tied": 3 * normal[place // 5],
        "nearly tied": 3 * normal[place // 5] + 1e-6 * normal,
        "clustered": 8 * normal[place % 4] + 1e-3 * normal,
        "underflowing": -120 * place / K,
    }


def float32_rows(K):
    return np.stack([long_softmax(x)[0] for x in rows(K).values()]).astype(np.float32)


def bisected(sigma):
    """Eigenvalues of one row, the root of each interval by bisection in long double."""
    poles = np.sort(sigma.astype(np.longdouble))
    lower, upper = poles[:-1, None], poles[1:, None]
    low, high = np.zeros_like(lower), np.ones_like(lower)
    for _ in range(140):
        middle = (low + high) / 2
        gap = (poles - lower) - middle * (upper - lower)
        is_below = (poles / np.where(gap == 0, np.inf, gap)).sum(1, keepdims=True) < 0
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return np.append(0, np.where(lower > 0, lower + high * (upper - lower), 0)[:, 0])


@pytest.mark.parametrize("K", [4, 250])
def test_eigenvalues_are_right_to_a_few_ulps_each(K):
    sigma = float32_rows(K)
    (values, _), alone, largest = solve(sigma)
    chex.assert_trees_all_equal(values, alone)
    for name, row, actual, top in zip(rows(K), sigma, values, largest, strict=True):
        expected = bisected(row)
        is_normal = expected > 1e-36
        error = np.abs(np.asarray(actual) - expected)
        assert error.max() <= 16 * U * expected.max(), name
        assert (error[is_normal] / expected[is_normal]).max(initial=0) <= 16 * U, name
        assert abs(top - expected[-1]) <= 16 * U * expected[-1], name
        assert np.all(np.diff(actual) >= 0), name


@pytest.mark.parametrize("K", [4, 250])
def test_eigenvectors_are_orthonormal_and_diagonalise(K):
    sigma = float32_rows(K)
    (values, vectors), _, _ = solve(sigma)
    for name, row, value, V in zip(rows(K), sigma, values, vectors, strict=True):
        V = np.asarray(V, np.float64)
        np.testing.assert_allclose(V.T @ V, np.eye(K), atol=1e-5, err_msg=name)
        # Rounded to float32, σ may sum to 1 + u, so that J needs the exact complement of the top.
        sigma = row.astype(np.longdouble)
        sigma[sigma.argmax()] = 1 - np.delete(sigma, sigma.argmax()).sum()
        d = V - (sigma @ V)
        np.testing.assert_allclose(
            (sigma[:, None] * d).astype(float), V * np.asarray(value), atol=4e-7, err_msg=name
        )


def test_from_logits_against_exact_probabilities():
    x = np.stack(list(rows(60).values())).astype(np.float32)
    values = jax.jit(lambda x: SoftmaxJacobian.from_logits(x).eigvalsh())(x)
    for name, row, actual in zip(rows(60), x, values, strict=True):
        expected = bisected(long_softmax(row)[0])
        is_normal = expected > 1e-36
        actual, expected = np.asarray(actual)[is_normal], expected[is_normal].astype(float)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=name)


def test_more_digits_than_the_dense_matrix_in_float32():
    x = rows(60)["one class ahead"].astype(np.float32)
    expected = bisected(long_softmax(x)[0]).astype(float)[-1]
    sigma = jax.nn.softmax(x)
    dense = jnp.linalg.eigvalsh(jnp.diag(sigma) - sigma[:, None] * sigma[None, :])[-1]
    ours = jax.jit(lambda x: SoftmaxJacobian.from_logits(x).spectral_norm())(x)
    assert abs(float(ours) / expected - 1) < 1e-5
    assert abs(float(dense) / expected - 1) > 0.1


def test_interlacing_and_bounds():
    sigma = float32_rows(250)
    values = np.asarray(solve(sigma)[1])
    lower, upper = SoftmaxJacobian(sigma).spectral_bounds()
    poles = np.sort(np.where(sigma < np.finfo(np.float32).tiny, 0, sigma), -1)
    slack = 1 + 8 * U
    assert np.all(values[:, 1:] >= poles[:, :-1] / slack)
    assert np.all(values[:, 1:] <= poles[:, 1:] * slack)
    assert np.all((lower <= values[:, -1] * slack) & (values[:, -1] <= upper * slack))
    assert np.all(upper <= 0.5)


def test_blocks_of_roots_and_of_rows(monkeypatch):
    sigma = float32_rows(7)
    whole = solve(sigma)[1]
    for block in (14, 98):  # two roots, two rows at a time
        monkeypatch.setattr("jaxsoftjac.operators._secular._BLOCK", block)
        in_blocks = quick_jit(lambda sigma: eigenvalues(sigma))(sigma)
        chex.assert_trees_all_close(in_blocks, whole, rtol=1e-6)


def test_no_square_matrix_in_memory():
    K = 8192
    sigma = jax.ShapeDtypeStruct((K,), jnp.float32)
    loss = jax.grad(lambda s: jnp.sum(eigenvalues(s) ** 2))
    memory = jax.jit(loss).lower(sigma).compile().memory_analysis()
    assert memory.temp_size_in_bytes < K * K * 4 / 4


@pytest.mark.parametrize("method", ["eigvalsh", "spectral_norm"])
def test_second_derivatives_inside_a_scan(method):
    """JAX 0.10 drops rules there; rows of more than 1000 classes are scanned over."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), WIDE)

    def of_row(row):
        return getattr(SoftmaxJacobian.from_logits(row), method)()

    def hvp(mapped):
        def total(x):
            return jnp.sum(jnp.sin(mapped(of_row)(x)))

        return quick_jit(lambda x: jax.jvp(jax.grad(total), (x,), (jnp.cos(x),))[1])

    scanned = hvp(lambda f: lambda x: jax.lax.map(f, x))(x)
    close(scanned, hvp(jax.vmap)(x))

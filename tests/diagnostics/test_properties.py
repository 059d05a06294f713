"""The verified properties hold where they should, and fail where J is not what it should be."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import long_softmax, peaked_rows, quick_jit
from plain_entmax import long_entmax, long_jacobian

import jaxsoftjac as jsj
from jaxsoftjac.diagnostics import _member, _properties

pytestmark = pytest.mark.once

DIAGNOSTICS = [jsj.verify_jacobian_properties, jsj.probe_jacobian_properties]
VERIFY = quick_jit(jsj.verify_jacobian_properties)


@pytest.mark.parametrize("diagnose", DIAGNOSTICS)
@pytest.mark.parametrize("K", [1, 3, 64])
def test_all_properties_hold(diagnose, K):
    gaps = (0, 4, 10, 16, 20, 40, 90)
    x = np.stack([peaked_rows(K, gap, 0, 1, 3)[0] for gap in gaps])
    measured = quick_jit(diagnose)(x)
    chex.assert_shape(measured.all_hold, (len(gaps), 3))
    for name, value in measured._asdict().items():
        if value.dtype == bool:
            assert np.all(value), (name, np.asarray(value))
    chex.assert_tree_all_finite(measured)


@pytest.mark.as_compiled
def test_all_hold_of_rows_that_are_far_apart_as_compiled_for_users():
    """Where the top class lies in the remainder of a vectorised loop too."""
    x = 30 * np.random.default_rng(0).normal(size=(1200, 70)).astype(np.float32)
    assert np.all(jax.jit(jsj.probe_jacobian_properties)(x).all_hold)


@pytest.mark.parametrize("diagnose", DIAGNOSTICS)
def test_vmap_and_eager_agree_with_jit(diagnose):
    x = np.array([[2, 1, 0.5], [5, 1, 0]], np.float32)
    eager = diagnose(x)
    jitted, mapped = quick_jit(lambda x: (diagnose(x), jax.vmap(diagnose)(x)))(x)
    chex.assert_trees_all_close(jitted, eager, atol=1e-6)
    chex.assert_trees_all_close(mapped, eager, atol=1e-6)


def test_measurements_of_the_seeds_row():
    p = VERIFY(np.array([2, 1, 0.5, -0.5], np.float32))
    sigma = np.exp([2, 1, 0.5, -0.5]) / np.exp([2, 1, 0.5, -0.5]).sum()
    expected = np.linalg.eigvalsh(np.diag(sigma) - np.outer(sigma, sigma))
    np.testing.assert_allclose(p.eigenvalues, expected, atol=1e-6)
    assert (p.rank, p.expected_rank) == (3, 3)
    assert p.largest_eigenvalue_lower_bound <= p.largest_eigenvalue
    assert p.largest_eigenvalue <= p.largest_eigenvalue_upper_bound <= 0.5


def test_the_numerical_rank_of_a_peaked_row_is_smaller_and_said_so():
    p = VERIFY(np.array([30, 15, -10, -20], np.float32))
    assert p.expected_rank == 3
    assert p.smallest_numerical_rank <= p.rank <= p.largest_numerical_rank < 3
    assert p.all_hold


def test_statistics_of_the_probe():
    x = np.array([[1, 0, -1, 3], [40, 0, 1, 2]], np.float32)
    p = quick_jit(jsj.probe_jacobian_properties)(x)
    sigma, log_sigma, _ = long_softmax(x)
    J = -sigma[:, :, None] * sigma[:, None, :]
    for matrix in J:  # rows sum to zero; σ(1 − σ) would cancel even in long double
        np.fill_diagonal(matrix, 0)
        np.fill_diagonal(matrix, -matrix.sum(1))
    np.testing.assert_allclose(p.trace, np.trace(J, axis1=1, axis2=2).astype(float), rtol=1e-5)
    norm = np.sqrt((J**2).sum((1, 2))).astype(float)
    np.testing.assert_allclose(p.frobenius_norm, norm, rtol=1e-5)
    entropy = -(sigma * log_sigma).sum(-1).astype(float)
    np.testing.assert_allclose(p.entropy, entropy, rtol=1e-5)


# field of the measurements: (a wrong J, or a wrong product, that must break it)
@pytest.mark.parametrize("diagnose", DIAGNOSTICS)
def test_the_properties_of_entmax(diagnose):
    x = np.random.default_rng(0).normal(size=(4, 6, 7)).astype(np.float32)
    x *= np.array([0, 0.2, 1, 9], np.float32)[:, None, None]
    alphas = (1.3, 3.0)
    found = quick_jit(lambda x: [diagnose(x, alpha=alpha) for alpha in alphas])(x)
    for alpha, measured in zip(alphas, found, strict=True):
        p = long_entmax(x, alpha)
        for name, value in measured._asdict().items():
            assert value.dtype != bool or np.all(value), (alpha, name, np.asarray(value))
        if diagnose is jsj.verify_jacobian_properties:
            np.testing.assert_array_equal(measured.expected_rank, (p > 0).sum(-1) - 1)
            expected = np.linalg.eigvalsh([np.float64(long_jacobian(row, alpha)) for row in p[1]])
            np.testing.assert_allclose(measured.eigenvalues[1], expected, atol=1e-5)
        else:
            expected = [np.trace(long_jacobian(row, alpha)) for row in p[1]]
            np.testing.assert_allclose(measured.trace[1], np.float64(expected), rtol=1e-5)


def test_a_wrong_matrix_of_entmax_is_found(monkeypatch):
    right = jsj.EntmaxJacobian.as_matrix
    monkeypatch.setattr(jsj.EntmaxJacobian, "as_matrix", lambda J: right(J).at[1, 0].add(1e-3))
    verify = quick_jit(lambda x: jsj.verify_jacobian_properties(x, alpha=1.5))
    p = verify(np.array([2, 1.5, 1], np.float32))
    assert not (p.is_symmetric | p.rows_sum_to_zero | p.agrees_with_autodiff)
    assert p.diagonal_matches


WRONG_MATRICES = {
    "is_symmetric": lambda J: J.at[0, 1].add(1e-3),
    "rows_sum_to_zero": lambda J: J.at[0, 1].add(1e-3),
    "columns_sum_to_zero": lambda J: J.at[1, 0].add(1e-3),
    "is_positive_semidefinite": lambda J: J - 1e-3 * jnp.eye(len(J), dtype=J.dtype),
    "rank_is_expected": lambda J: J + 1e-3 * jnp.eye(len(J), dtype=J.dtype),
    "diagonal_matches": lambda J: J.at[0, 0].add(1e-3),
    "largest_eigenvalue_is_bounded": lambda J: 3 * J,
    "agrees_with_autodiff": lambda J: J.at[2, 1].add(1e-3),
}


@pytest.mark.parametrize("name", WRONG_MATRICES)
def test_a_wrong_matrix_is_found(monkeypatch, name):
    right = _properties.softmax_jacobian
    monkeypatch.setattr(_properties, "softmax_jacobian", lambda x: WRONG_MATRICES[name](right(x)))
    p = jsj.verify_jacobian_properties(np.array([2, 1, 0.5], np.float32))
    assert not getattr(p, name)
    assert not p.all_hold


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("is_symmetric", lambda v, Jv: Jv + 1e-2 * jnp.roll(v, 1)),
        ("products_sum_to_zero", lambda v, Jv: Jv + 1e-2 * v),
        ("annihilates_ones", lambda v, Jv: Jv + 1e-2 * v),
        ("is_positive_semidefinite", lambda v, Jv: -Jv),
        ("largest_eigenvalue_is_bounded", lambda v, Jv: 3 * Jv),
        ("agrees_with_autodiff", lambda v, Jv: 1.01 * Jv),
    ],
)
def test_a_wrong_product_is_found(monkeypatch, name, wrong):
    right = _member.softmax_vjp
    monkeypatch.setattr(_member, "softmax_vjp", lambda v, s: wrong(v, right(v, s)))
    p = jsj.probe_jacobian_properties(np.array([2, 1, 0.5], np.float32))
    assert not getattr(p, name)
    assert not p.all_hold


@pytest.mark.parametrize("diagnose", DIAGNOSTICS)
def test_bad_input(diagnose):
    with pytest.raises(
        ValueError, match=r"`x` must have shape \[..., K\] with K ≥ 1, got \(2, 0\)"
    ):
        diagnose(np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match=r"got \(\)"):
        diagnose(np.float32(1))
    with pytest.raises(TypeError, match="`x` must be real"):
        diagnose(np.array([True]))
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[1, 4\], got 0"):
        diagnose(np.zeros(2), alpha=0)
    with pytest.raises(ValueError, match=r"`alpha` must be one number, got an array"):
        diagnose(np.zeros(2), alpha=np.ones(2))

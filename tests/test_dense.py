"""The dense derivatives: symmetric to the bit, right under masks, for any axis."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, plain_softmax, quick_jit

import jaxsoftjac as jsj


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)) * 4, WIDE)


def test_formulas_of_the_seed():
    J = np.asarray(jsj.softmax_jacobian(np.array([2, 1, 0.5], np.float32)))
    sigma = np.exp([2, 1, 0.5]) / np.sum(np.exp([2, 1, 0.5]))
    np.testing.assert_allclose(J, np.diag(sigma) - np.outer(sigma, sigma), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", WIDE])
def test_properties(x, dtype):
    J = jax.jit(jsj.softmax_jacobian)(x.astype(dtype))
    chex.assert_shape(J, (2, 3, 4, 4))
    chex.assert_type(J, jnp.dtype(dtype))
    chex.assert_trees_all_equal(J, jnp.swapaxes(J, -1, -2))
    close(jnp.sum(J, -1), jnp.zeros((2, 3, 4), dtype))
    if dtype != "bfloat16":
        eigenvalues = np.linalg.eigvalsh(J)
        assert np.all(eigenvalues > -1e-6)
        assert np.all(eigenvalues <= 0.5 + 1e-6)


def test_the_bound_of_one_half_is_attained_and_one_quarter_is_not_a_bound():
    eigenvalues = np.linalg.eigvalsh(jsj.softmax_jacobian(np.zeros(2, np.float32)))
    np.testing.assert_allclose(eigenvalues, [0, 0.5], atol=1e-7)


@quick_jit
def references(rows, kept):
    """J, ∂²σ and ∂log σ of rows, by JAX from the textbook formula."""
    sigma = plain_softmax(rows, where=kept)
    both = kept[:, :, None] & kept[:, None, :]
    log_jacobian = jnp.where(both, jnp.eye(rows.shape[1])[None] - sigma[:, None, :], 0)
    jacobian, hessian = (
        jax.vmap(derivative(lambda r, w: plain_softmax(r, where=w)))(rows, kept)
        for derivative in (jax.jacfwd, jax.hessian)
    )
    return jacobian, hessian, log_jacobian


@functools.partial(quick_jit, static_argnames="axis")
def every_derivative(x, where, axis):
    functions = jsj.softmax_jacobian, jsj.softmax_hessian, jsj.log_softmax_jacobian
    return [f(x, axis, where) for f in functions]


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 0), None])
@pytest.mark.parametrize("masked", [False, True])
def test_any_axis_against_autodiff(x, axis, masked):
    where = np.indices(x.shape).sum(0) % 3 != 0 if masked else None
    axes = tuple(range(3)) if axis is None else axis if isinstance(axis, tuple) else (axis % 3,)
    batch = tuple(i for i in range(3) if i not in axes)
    K = int(np.prod([x.shape[a] for a in axes]))

    def rows(a):
        return jnp.transpose(a, batch + axes).reshape(-1, K)

    kept = rows(jnp.ones_like(x, bool) if where is None else jnp.asarray(where))
    shape = tuple(x.shape[b] for b in batch)
    expected = references(rows(x), kept)
    for a, b in zip(every_derivative(x, where, axis), expected, strict=True):
        close(a, b.reshape(*shape, *b.shape[1:]))


@pytest.mark.parametrize("f", [jsj.softmax_jacobian, jsj.log_softmax_jacobian, jsj.softmax_hessian])
def test_edges(f):
    inf = np.inf
    assert f(jnp.zeros((2, 0))).size == 0
    assert np.all(f(np.ones(1, np.float32)) == 0)
    assert np.all(f(np.array([-inf, -inf], np.float32)) == 0)
    assert np.all(f(np.zeros(2, np.float32), where=np.array([False, False])) == 0)
    assert np.all(np.isfinite(f(np.array([-inf, 0, 1], np.float32))))
    assert np.all(np.isnan(f(np.array([np.nan, 0], np.float32))))
    masked = f(np.array([np.nan, 0, 1], np.float32), where=np.array([False, True, True]))
    inner = masked[tuple(slice(1, None) for _ in masked.shape)]
    close(inner, f(np.array([0, 1], np.float32)))
    with pytest.raises(TypeError, match="`x` must be real"):
        f(np.array([True]))
    with pytest.raises(ValueError, match="`axis`"):
        f(np.zeros(3, np.float32), axis=2)

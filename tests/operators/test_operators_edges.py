"""SoftmaxJacobian where classes are excluded or absent, of rows of low rank, and of bad input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, quick_jit

from jaxsoftjac.operators import EntmaxJacobian, SoftmaxJacobian

pytestmark = pytest.mark.once


def edges(x, where):
    J = SoftmaxJacobian.from_logits(x, where=where)
    v = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    everything = [J.mv(v), J.diagonal(), J.trace(), J.frobenius_norm(), J.quadratic(v)]
    everything += [J.pinv_mv(v), J.solve(v, 1.0), J.factor_mv(v), J.factor_t_mv(v), J.sqrt_mv(v)]
    return [*everything, J.spectral_norm(), J.eigvalsh(), *J.eigh(), J.log_pdet()]


def test_one_class_and_none():
    x = jnp.asarray([[1.0, 2, 3], [np.nan, 2, np.inf], [-np.inf] * 3], WIDE)
    where = np.array([[False, True, False], [False] * 3, [True] * 3])

    @quick_jit
    def results_and_gradient(x):
        results, pull = jax.vjp(lambda x: edges(x, where), x)
        return edges(x, where), *pull([jnp.ones_like(a) for a in results])

    results, gradient = results_and_gradient(x)
    names = "mv diagonal trace frobenius quadratic pinv solve factor factor_t sqrt norm values"
    for name, value in zip([*names.split(), "eigvalsh", "V", "log_pdet"], results, strict=True):
        if name == "solve":  # J = 0 on the one kept class: b/δ
            np.testing.assert_array_equal(value[1:], 0)
            np.testing.assert_array_equal(value[0], [0, np.cos(np.ones((), WIDE)), 0])
        elif name == "V":
            assert set(np.unique(value)) == {0, 1}
            np.testing.assert_array_equal(value @ value.mT, np.stack([np.eye(3)] * 3))
        else:
            np.testing.assert_array_equal(value, 0, err_msg=name)
    np.testing.assert_array_equal(gradient, 0)


def test_nan_is_never_hidden():
    J = SoftmaxJacobian.from_logits(jnp.asarray([0, np.nan, 1], jnp.float32))
    methods = (lambda J: J @ J.sigma, J.__class__.eigvalsh, J.__class__.trace, J.__class__.log_pdet)
    for value in quick_jit(lambda J: [f(J) for f in methods])(J):
        assert np.all(np.isnan(value))


@pytest.mark.parametrize("K", [1, 0])
def test_one_class_or_no_class_in_the_shape(K):
    J = SoftmaxJacobian(jnp.ones((2, K), jnp.float32))

    @quick_jit
    def everything(J):
        return J.eigh(), (J.trace(), J.log_pdet(), J.frobenius_norm(), J.rank())

    (values, vectors), results = everything(J)
    chex.assert_shape(values, (2, K))
    chex.assert_shape(vectors, (2, K, K))
    for value in results:
        np.testing.assert_array_equal(value, np.zeros(2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_a_vector_has_at_an_excluded_class_counts_for_nothing(value):
    def products(J, v):
        linear = J.mv(v), J.factor_mv(v), J.factor_t_mv(v), J.sqrt_mv(v), J.pinv_mv(v)
        return *linear, J.solve(v, 0.5), J.quadratic(v)

    v = jnp.asarray([1, 2, value], jnp.float32)
    for J in (
        SoftmaxJacobian.from_logits(jnp.asarray([0, 1, -jnp.inf], jnp.float32)),
        EntmaxJacobian.from_logits(jnp.asarray([0, 0.5, -9], jnp.float32), 1.5),
    ):
        found, expected = (products(J, a) for a in (v, v.at[2].set(7)))
        chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_rank_is_that_of_the_dense_matrix():
    x = np.array([[0, 0, 0, 0], [0, -5, -30, -31], [9, 9, -40, -41], [0, -50, -60, -70]])
    J = SoftmaxJacobian.from_logits(jnp.asarray(x, jnp.float32))
    expected = np.linalg.matrix_rank(np.asarray(J.as_matrix(), np.float64), rtol=4 * 2.0**-23)
    ranks = quick_jit(lambda J: (J.rank(), J.rank(rtol=0.0)))(J)
    np.testing.assert_array_equal(ranks[0], expected)
    np.testing.assert_array_equal(ranks[1], 3)


def test_bad_input():
    J = SoftmaxJacobian(jnp.full((2, 3), 1 / 3, jnp.float32))
    v = jnp.ones((2, 3), jnp.float32)
    with pytest.raises(TypeError, match="`sigma` must be floating, got dtype int32"):
        SoftmaxJacobian(jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match=r"`sigma` must have shape \[..., K\], got \(\)"):
        SoftmaxJacobian(jnp.ones(()))
    with pytest.raises(ValueError, match=r"`v` must have the shape of `sigma`, \(2, 3\), got"):
        J.mv(v[0])
    with pytest.raises(ValueError, match=r"`v` must have the shape of `sigma`"):
        J @ jnp.ones((3, 2, 4), jnp.float32)
    with pytest.raises(TypeError, match="`w` must be real, got dtype bool"):
        J.factor_mv(v > 0)
    for damping in (0, -1.0, np.array([1.0, -1])):
        with pytest.raises(ValueError, match="`damping` must be positive, got"):
            J.solve(v, damping)
    with pytest.raises(ValueError, match=r"`damping` must have shape \(\), \(2,\) or \(2, 3\)"):
        J.solve(v, jnp.ones(3))
    with pytest.raises(TypeError, match="`damping` must be real"):
        J.solve(v, True)
    with pytest.raises(TypeError, match="`shape` must be an int, got float"):
        J.sample(jax.random.key(0), 0.5)
    with pytest.raises(TypeError, match="`rtol` must be an array of numbers, got str"):
        J.rank(rtol="tight")
    with pytest.raises(TypeError, match="`where` must be boolean"):
        SoftmaxJacobian.from_logits(v, where=v)

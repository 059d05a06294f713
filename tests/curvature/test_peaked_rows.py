"""Curvature of rows with one class far ahead keeps its digits: against long double."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import U, long_softmax, quick_jit, relative_error

from jaxsoftjac.curvature import gauss_newton_diagonal, sampled_fisher_product
from jaxsoftjac.curvature._objective import fisher_objective
from jaxsoftjac.optimizers import diagonal_gauss_newton

pytestmark = pytest.mark.once

GAPS = [0, 20, 30, 40]
N, K, D = 4, 7, 3
random = np.random.default_rng(0)
HIDDEN = random.normal(size=(N, D)).astype(np.float32)
KERNEL = (random.normal(size=(D, K)) / 8).astype(np.float32)
KEY = jax.random.key(3)


def biased(gap):
    """A bias with one class `gap` nats ahead, in float32."""
    bias = np.zeros(K, np.float32)
    bias[2] = gap
    return bias


def logits_of(bias):
    return lambda z, _: z + jnp.asarray(bias)[None]


def factor(z):
    """F of each row, [N, K, K], in long double; at the top class from the sums over the others."""
    sigma, _, top = long_softmax(z)
    F = np.sqrt(sigma)[..., None] * np.eye(K) - sigma[..., :, None] * np.sqrt(sigma)[..., None, :]
    for row, F_row in zip(top[:, 0], F, strict=True):
        F_row[row] = 0
        F_row[row] = -F_row.sum(0)
    return F


def signs(key):
    """What the library draws for logits [N, K], and for a block that holds all classes."""
    whole = jax.random.rademacher(key, (N, K), jnp.float32)
    block = jax.random.rademacher(jax.random.fold_in(key, 0), (N, K), jnp.float32)
    return np.asarray(whole, np.longdouble), np.asarray(block, np.longdouble)


@pytest.mark.parametrize("gap", GAPS)
def test_samples_of_logits(gap):
    """One sample, its outer product with offsets of 1e3, and the exact diagonal by the logits."""
    z = (HIDDEN @ KERNEL).astype(np.float32)
    v = (random.normal(size=(N, K)) + 1e3).astype(np.float32)
    top = fisher_objective(None, {})
    F = factor((z + biased(gap)[None]).astype(np.float32))

    of = logits_of(biased(gap))
    product, diagonal = sampled_fisher_product(of), gauss_newton_diagonal(of)

    @quick_jit
    def everything(z, v):
        sample = top.sampled_cotangent(of(z, None), None, KEY)
        rows = jax.vmap(lambda z: diagonal(z, z[:, :1]))(z[:, None])
        return sample, product(z, z[:, :1], KEY, v), rows[:, 0]

    sample, product, diagonal = everything(z, v)
    epsilon = signs(KEY)[0]
    expected = np.einsum("nij,nj->ni", F, epsilon) / np.sqrt(np.longdouble(N))
    assert relative_error(sample, expected).max() < 64 * U
    epsilon = signs(jax.random.split(KEY, 1)[0])[0]
    u = np.einsum("nij,nj->ni", F, epsilon)
    offset = v.astype(np.longdouble) - v[:, 2:3]
    along = np.einsum("ni,ni->n", u, offset)[:, None]
    assert relative_error(product, u * along / N).max() < 2e-4  # Σ u·v cancels by chance
    assert np.all(np.sign(product) == np.sign((u * along).astype(np.float64)))
    expected = (F**2).sum(-1)  # of J, one row at a time
    np.testing.assert_allclose(diagonal, expected.astype(np.float64), rtol=256 * U)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("block_size", [None, 3])
def test_samples_of_a_vocabulary(gap, block_size):
    """The pull-back of one sample through a head, whose classes may lie in several blocks."""
    options = {} if block_size is None else {"block_size": block_size}
    top = fisher_objective(("kernel", "bias"), options)
    z = (jnp.asarray(HIDDEN), jnp.asarray(KERNEL), jnp.asarray(biased(gap)))
    of_hidden, of_kernel, of_bias = quick_jit(top.sampled_cotangent)(z, None, KEY)
    exact = np.float64(HIDDEN) @ np.float64(KERNEL) + biased(gap)
    epsilon = signs(KEY)[1]
    if block_size is not None:
        starts = [0, 3, 4]  # the last overlaps
        for i, start in enumerate(starts):
            key = jax.random.fold_in(KEY, i)
            block = np.asarray(jax.random.rademacher(key, (N, 3), jnp.float32))
            fresh = start + np.arange(3) >= 3 * i
            epsilon[:, (start + np.arange(3))[fresh]] = block[:, fresh]
    u = np.einsum("nij,nj->ni", factor(exact), epsilon) / np.sqrt(np.longdouble(N))
    slack = 1e-5  # the logits themselves are rounded
    assert relative_error(of_bias[None], u.sum(0)[None]).max() < slack
    kernel, hidden = KERNEL.astype(np.longdouble), HIDDEN.astype(np.longdouble)
    centred = kernel - kernel[:, 2:3]
    assert relative_error(of_hidden, u @ centred.T).max() < 10 * slack
    assert relative_error(of_kernel, hidden.T @ u).max() < 10 * slack


@pytest.mark.parametrize("gap", GAPS)
def test_the_diagonal_of_an_optimizer(gap):
    """The diagonal that the diagonal method keeps, by logits alone."""
    z = (HIDDEN @ KERNEL).astype(np.float32)[:1]
    F = factor((z + biased(gap)[None]).astype(np.float32))[0]
    of = logits_of(biased(gap))
    method = diagonal_gauss_newton(of, 0.1, samples=1, b2=0.0)

    @quick_jit
    def kept(z):
        state = method.update(z, method.init(z), z, inputs=z)[1]
        return state[0].diagonal[0]

    key = jax.random.fold_in(jax.random.key(0), 0)
    epsilon = np.asarray(jax.random.rademacher(key, (1, K), jnp.float32), np.longdouble)[0]
    expected = ((F @ epsilon) ** 2).astype(np.float64)
    np.testing.assert_allclose(kept(z), expected, rtol=1e-4)

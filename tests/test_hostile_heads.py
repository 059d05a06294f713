"""What stands on hostile rows: linear losses, attention, operators and dense derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import U
from hostile_rows import IGNORED, OPTIONS, ROWS, SIZES, agree, cases, check_losses, spread_of

import jaxsoftjac as jsj
from jaxsoftjac.losses import LinearTarget

pytestmark = pytest.mark.once

AS_COMPILED = pytest.mark.as_compiled, pytest.mark.slow  # as users compile, and not otherwise


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("K", SIZES)
def test_linear_cross_entropy(K, options):
    """The rows are the bias of a kernel of zeros, in blocks of which the last is partly empty."""
    x, _, labels, oracle = cases(K, "float32", False)
    # A bias that is not finite spoils every example, also those whose label does not count.
    is_spoilt = np.array([not (row.is_plain or row.is_empty) for row in oracle])
    labels = np.where(is_spoilt & (labels == IGNORED), 0, labels)

    def loss(x, label):
        hidden, kernel = jnp.zeros((1, 1), jnp.float32), jnp.zeros((1, K), jnp.float32)
        own = {"block_size": 4, "ignore_index": IGNORED} | options
        return jsj.linear_cross_entropy(hidden, kernel, label[None], bias=x, **own)[0]

    both = jax.jit(jax.vmap(jax.value_and_grad(loss)))(x, jnp.asarray(labels))
    rounding = 4 * U if "label_smoothing" in options else 0  # σ less the uniform share
    check_losses(*both, x, labels, oracle, options, rounding)


@pytest.mark.parametrize("K", SIZES)
def test_a_linear_target(K):
    """The rows are the bias of the student, and in another order of the teacher."""
    x, _, _, oracle = cases(K, "float32", False)
    y, teachers = jnp.roll(x, 1, 0), [oracle[i - 1] for i in range(len(oracle))]

    def loss(x, y):
        hidden, kernel = jnp.zeros((1, 1), jnp.float32), jnp.zeros((1, K), jnp.float32)
        target = LinearTarget(hidden, kernel, bias=y)
        return jsj.linear_cross_entropy(hidden, kernel, target, bias=x, block_size=4)[0]

    both = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1))))(x, y)
    x, y, values, (by_student, by_teacher) = jax.device_get((x, y, *both))
    for i, (row, teacher) in enumerate(zip(oracle, teachers, strict=True)):
        label = f"row {i}: {x[i]}, {y[i]}"
        if not (row.is_plain and teacher.is_plain):
            continue
        value, gradient = row.cross_entropy(teacher.normal_sigma(), 0, 0)
        spread = spread_of(row) + spread_of(teacher)
        agree(values[i], value, "float32", spread, label)
        if np.isfinite(value):  # its gradient has the sum 0
            hot = int(np.argmax(row.sigma))
            gradient[hot] = -np.sum(np.delete(gradient, hot))
            apart = U * float(np.sum(np.delete(row.sigma, hot)))  # where σ happens to be near p
            agree(by_student[i], gradient, "float32", spread, label, apart)
        if value < 1e30:
            exact = teacher.product(row.surprise())
            agree(by_teacher[i], exact, "float32", spread, label, 4 * U * float(value))


@pytest.mark.parametrize("features", [2, pytest.param(1, marks=AS_COMPILED)])
@pytest.mark.parametrize("K", SIZES)
def test_attention(K, features):
    """The rows are the bias of scores that are 0: σ·v, and by the bias Jv.

    Of one feature, a product is a multiplication, which the compiler fuses with what follows.
    """
    x, _, _, oracle = cases(K, "float32", False)
    v = np.random.default_rng(4).uniform(0.5, 2, size=x.shape).astype(np.float32)

    def attention(bias, v):
        query, key = (jnp.zeros((n, 1, 1), jnp.float32) for n in (1, K))
        value = jnp.stack([v] * features, -1)[:, None]
        return jsj.dot_product_attention(query, key, value, bias[None, None], block_size=(1, 4))[
            0, 0, 0
        ]

    both = jax.jit(jax.vmap(jax.value_and_grad(attention)))(x, v)
    x, values, gradients = jax.device_get((x, *both))
    for i, row in enumerate(oracle):
        label, exact = f"row {i}: {x[i]}", np.asarray(v[i], np.longdouble)
        if row.is_plain:
            agree(values[i], row.sigma @ exact, "float32", spread_of(row), label)
            agree(gradients[i], row.product(exact), "float32", spread_of(row), label)
        elif row.is_empty:
            assert values[i] == 0, label
            assert not np.any(gradients[i]), label
        else:
            assert np.isnan(values[i]), label


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("K", SIZES)
def test_operators_and_dense_derivatives(K, masked):
    x, where, labels, oracle = cases(K, "float32", masked)
    v = np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    labels = np.clip(labels, 0, K - 1)

    @jax.jit
    def everything(x, v):
        J = jsj.SoftmaxJacobian.from_logits(x, where=where)
        dense = functools.partial(jsj.softmax_jacobian, where=where)
        hessian = functools.partial(jsj.cross_entropy_hessian, where=where)
        return J.mv(v), J.trace(), J.frobenius_norm(), J.as_matrix(), dense(x), hessian(x, labels)

    x, results = jax.device_get((x, everything(x, v)))
    for i, found in enumerate(zip(*results, strict=True)):
        row, label = oracle[i], f"row {i}: {x[i]}"
        product, trace, norm, *matrices = found
        if row.is_plain:
            off = -row.sigma[:, None] * row.sigma[None]
            np.fill_diagonal(off, 0)
            exact = off + np.diag(-off.sum(1))
            spread = spread_of(row)
            agree(product, row.product(np.asarray(v[i], np.longdouble)), "float32", spread, label)
            agree(trace, np.trace(exact), "float32", spread, label)
            agree(norm, np.sqrt((exact**2).sum()), "float32", spread, label)
            for matrix in matrices:
                agree(matrix.ravel(), exact.ravel(), "float32", spread, label)
        elif row.is_empty and masked:
            assert not any(np.any(a) for a in found), label


def test_there_are_enough_cases():
    assert len(SIZES) * ROWS * (len(OPTIONS) + 1 + 2) >= 2000

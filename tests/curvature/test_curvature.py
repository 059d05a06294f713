"""Gauss–Newton and Fisher products: the dense JᵀHJ, semi-definite, never the [N, V] logits."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from jax.flatten_util import ravel_pytree

import jaxsoftjac as jsj
from jaxsoftjac.curvature import (
    fisher_product,
    gauss_newton_diagonal,
    gauss_newton_product,
    sampled_fisher_product,
)

random = np.random.default_rng(0)
PARAMS = {
    "first": jnp.asarray(random.normal(size=(4, 5)), WIDE),
    "kernel": jnp.asarray(random.normal(size=(5, 3)), WIDE),
    "bias": jnp.asarray(random.normal(size=3), WIDE),
}
INPUTS = jnp.asarray(random.normal(size=(6, 4)), WIDE)
LABELS = random.integers(0, 3, size=6)
TANGENTS = jax.tree.map(jnp.cos, PARAMS)


def hidden(params, inputs):
    return jnp.tanh(inputs @ params["first"])


def model(params, inputs):
    logits = hidden(params, inputs) @ params["kernel"]
    return logits + jnp.broadcast_to(params["bias"], logits.shape)


def flat(tree):
    return ravel_pytree(tree)[0]


def mean_loss(params):
    return jnp.mean(jsj.cross_entropy(model(params, INPUTS), LABELS))


plain_loss_and_gradient = quick_jit(jax.value_and_grad(mean_loss))


@quick_jit
def dense_matrix(params, hessian=None):
    """JᵀHJ of the mean loss, from the whole Jacobian."""
    vector, unravel = ravel_pytree(params)
    J = jax.jacrev(lambda vector: model(unravel(vector), INPUTS))(vector)
    H = jsj.softmax_jacobian(model(params, INPUTS)) if hessian is None else hessian
    return jnp.einsum("nkp,nkl,nlq->pq", J, H, J) / len(LABELS)


def squared(logits, labels):
    """A loss whose Hessian in the logits is 2·diag(1, 2, 3)."""
    factors = jnp.asarray([1, 2, 3], logits.dtype)[None]
    return jnp.sum(factors * (logits - labels[:, None].astype(logits.dtype)) ** 2, axis=-1)


PRODUCTS = {
    "cross_entropy": gauss_newton_product(model),
    "cross_entropy as a function": gauss_newton_product(model, jsj.cross_entropy),
    "fisher": fisher_product(model),
    "head by keys": gauss_newton_product(hidden, head=("kernel", "bias")),
    "head by a function": gauss_newton_product(hidden, head=lambda p: (p["kernel"], p["bias"])),
    "fisher with head": fisher_product(hidden, head=("kernel", "bias")),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_the_dense_matrix(name):
    how = jax.jit if name == "cross_entropy" else quick_jit
    product = how(PRODUCTS[name])(PARAMS, INPUTS, LABELS, TANGENTS)
    chex.assert_trees_all_equal_structs(product, PARAMS)
    close(flat(product), dense_matrix(PARAMS) @ flat(TANGENTS))


def test_another_loss_and_damping():
    H = jnp.broadcast_to(jnp.diag(jnp.asarray([2, 4, 6], WIDE)), (6, 3, 3))
    product = quick_jit(gauss_newton_product(model, squared, damping=0.5))
    expected = dense_matrix(PARAMS, H) @ flat(TANGENTS) + 0.5 * flat(TANGENTS)
    close(flat(product(PARAMS, INPUTS, LABELS, TANGENTS)), expected)


def test_options_of_the_loss():
    options = {"ignore_index": 0, "z_loss": 0.1}

    @quick_jit
    def everything(params):
        plain = gauss_newton_product(model, **options)
        of_head = gauss_newton_product(hidden, head=("kernel", "bias"), **options)
        H = jsj.cross_entropy_hessian(model(params, INPUTS), LABELS, **options)
        return H, *(f(params, INPUTS, LABELS, TANGENTS) for f in (plain, of_head))

    H, plain, of_head = everything(PARAMS)
    kept = WIDE.type(len(LABELS) / np.sum(LABELS != 0))  # the mean is over what is not ignored
    expected = kept * (dense_matrix(PARAMS, H) @ flat(TANGENTS))
    for product in (plain, of_head):
        close(flat(product), expected)


@pytest.mark.parametrize(
    "make",
    [
        partial(gauss_newton_product, model),
        partial(gauss_newton_product, model, jsj.cross_entropy),
        partial(gauss_newton_product, hidden, head=("kernel", "bias")),
    ],
)
def test_one_linearisation_for_many_products(make):
    @quick_jit
    def everything(params, tangents):
        value, gradient, product = make(linearized=True)(params, INPUTS, LABELS)
        return value, gradient, jax.vmap(product)(tangents)

    several = jax.tree.map(lambda a: jnp.stack([a, a**2]), TANGENTS)
    value, gradient, products = everything(PARAMS, several)
    jax.tree.map(close, (value, gradient), plain_loss_and_gradient(PARAMS))
    for i in range(2):
        of_one, along = (flat(jax.tree.map(lambda a: a[i], t)) for t in (products, several))  # noqa: B023 (called in this round)
        close(of_one, dense_matrix(PARAMS) @ along)


def test_the_model_is_evaluated_once():
    calls = []

    def counted(params, inputs):
        calls.append(1)
        return model(params, inputs)

    gauss_newton_product(counted)(PARAMS, INPUTS, LABELS, TANGENTS)
    assert len(calls) == 1


@pytest.mark.once
@pytest.mark.parametrize("gap", [0, 20, 60])
def test_semi_definite_to_rounding(gap):
    """vᵀGv ≥ 0 in float32, on rows that grow more and more confident, with offsets of 1e3."""
    params = jax.tree.map(lambda a: a.astype(jnp.float32), PARAMS)
    params["bias"] = params["bias"] + jnp.asarray([gap, 0, 0], jnp.float32)
    product = quick_jit(gauss_newton_product(model))
    inputs = INPUTS.astype(jnp.float32)
    for seed in range(20):
        v = jax.tree.map(
            lambda a: jnp.asarray(np.random.default_rng(seed).normal(size=a.shape), a.dtype),  # noqa: B023 (called in this round)
            params,
        )
        v["bias"] = v["bias"] + 1e3
        Gv = np.asarray(flat(product(params, inputs, LABELS, v)), np.float64)
        v = np.asarray(flat(v), np.float64)
        assert v @ Gv >= -1e-6 * np.linalg.norm(Gv) * np.linalg.norm(v)


def compiled_bytes(f, *arguments):
    return jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.once
def test_a_head_of_many_classes_never_holds_the_logits():
    N, D, V = 256, 8, 50257
    params = {"first": jnp.ones((4, D), jnp.float32), "kernel": jnp.ones((D, V), jnp.float32)}
    inputs, labels = jnp.ones((N, 4), jnp.float32), jnp.zeros(N, jnp.int32)

    def whole(params, inputs):
        return hidden(params, inputs) @ params["kernel"]

    with_head = gauss_newton_product(hidden, head="kernel", block_size=2048)
    logits = 4 * N * V
    assert compiled_bytes(gauss_newton_product(whole), params, inputs, labels, params) > logits
    assert compiled_bytes(with_head, params, inputs, labels, params) < logits / 2


def test_the_exact_diagonal():
    diagonal = quick_jit(gauss_newton_diagonal(model))(PARAMS, INPUTS)
    chex.assert_trees_all_equal_structs(diagonal, PARAMS)
    close(flat(diagonal), jnp.diagonal(dense_matrix(PARAMS)))


def test_the_diagonal_of_a_sequence_model():
    """Logits [N, T, K]: every token is a row of the mean."""
    inputs = INPUTS.reshape(3, 2, 4)
    diagonal = quick_jit(gauss_newton_diagonal(model))(PARAMS, inputs)
    close(flat(diagonal), jnp.diagonal(dense_matrix(PARAMS)))


def test_samples_converge_to_what_they_estimate():
    key = jax.random.key(0)
    diagonal = quick_jit(gauss_newton_diagonal(model, samples=4000))(PARAMS, INPUTS, key)
    product = quick_jit(sampled_fisher_product(model, samples=4000))
    G = dense_matrix(PARAMS)
    sampled = flat(product(PARAMS, INPUTS, key, TANGENTS))
    for actual, expected in ((flat(diagonal), jnp.diagonal(G)), (sampled, G @ flat(TANGENTS))):
        error = jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected)
        assert 1e-4 < error < 0.05  # about 1/√4000


def test_one_sample_is_a_semi_definite_matrix_of_low_rank():
    product = sampled_fisher_product(model)
    vector, unravel = ravel_pytree(PARAMS)

    def column(v):
        return flat(product(PARAMS, INPUTS[:2], jax.random.key(1), unravel(v)))

    matrix = np.asarray(quick_jit(jax.vmap(column))(jnp.eye(vector.size, dtype=WIDE)), np.float64)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert np.sum(eigenvalues > 1e-5 * eigenvalues.max()) <= 2
    assert eigenvalues.min() > -1e-6 * eigenvalues.max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gauss_newton_product(model, "hinge"), '`loss` must be "cross_entropy" or a func'),
        (lambda: gauss_newton_product(hidden, squared, head="kernel"), "where `head` is given"),
        (lambda: gauss_newton_product(model, damping=-1.0), "`damping` must be ≥ 0, got -1.0"),
        (lambda: sampled_fisher_product(model, damping=-1.0), "`damping` must be ≥ 0"),
        (lambda: sampled_fisher_product(model, samples=0), "`samples` must be ≥ 1, got 0"),
        (lambda: gauss_newton_diagonal(model, samples=0), "`samples` must be ≥ 1, got 0"),
        (
            lambda: gauss_newton_product(model)(PARAMS, INPUTS, LABELS[1:], TANGENTS),
            r"`labels` must have shape \(6,\), got \(5,\)",
        ),
        (
            lambda: gauss_newton_product(hidden, head="kernel")(
                PARAMS, INPUTS, LABELS[1:], TANGENTS
            ),
            "`labels` must have shape",
        ),
        (
            lambda: gauss_newton_product(hidden, head=("kernel", "no"))(
                PARAMS, INPUTS, LABELS, TANGENTS
            ),
            "`head` must be of the keys 'bias', 'first', 'kernel' of the parameters, got 'no'",
        ),
        (
            lambda: gauss_newton_product(model, lambda z, c: jnp.sum(z))(
                PARAMS, INPUTS, LABELS, TANGENTS
            ),
            r"`loss` must give one value per example, shape \(6,\), got \(\)",
        ),
        (
            lambda: gauss_newton_product(model)(PARAMS, INPUTS, LABELS, TANGENTS["bias"]),
            "`tangents` must have the structure",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

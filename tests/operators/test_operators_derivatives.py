"""Derivatives of SoftmaxJacobian: those of the dense matrix, also where eigenvalues tie."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, plain_softmax, quick_jit

from jaxsoftjac.operators import SoftmaxJacobian

# `ours` and `plain` give the same numbers of one row; the plain ones by dense algebra.

POINT = np.array([0.3, -1.0, 1.2, 0.1])
ROW = {name: np.random.default_rng(i).normal(size=4) for i, name in enumerate("vwbu")}


def ours(J):
    v, w, b, u = (jnp.asarray(ROW[name], J.dtype) for name in "vwbu")
    values, V = J.eigh()
    return {
        "linear": J.mv(v) + J @ w,
        "matrix": J.as_matrix(),
        "scalars": jnp.stack(
            [J.trace(), J.frobenius_norm(), J.quadratic(v), J.log_pdet(), J.spectral_norm()]
        ),
        "inverses": J.solve(b, jnp.exp(w)) + J.diagonal(),
        "factors": J.factor_mv(w) + J.factor_t_mv(v),
        "values": u * values,
        "vectors": (V @ (w * (V.T @ v)))[1:] + 0 * v[1:],
    }


def plain(J, sigma):
    v, w, b, u = (jnp.asarray(ROW[name], J.dtype) for name in "vwbu")
    root = jnp.sqrt(sigma)
    F = jnp.diag(root) - sigma[:, None] * root[None, :]
    values, V = jnp.linalg.eigh(J)
    return {
        "linear": J @ (v + w),
        "matrix": J,
        "scalars": jnp.stack(
            [
                jnp.trace(J),
                jnp.sqrt(jnp.sum(J**2)),
                v @ J @ v,
                jnp.log(4.0).astype(J.dtype) + jnp.sum(jnp.log(sigma)),
                values[-1],
            ]
        ),
        "inverses": jnp.linalg.solve(J + jnp.diag(jnp.exp(w)), b) + jnp.diag(J),
        "factors": F @ w + F.T @ v,
        "values": u * values,
        "vectors": (V @ (w * (V.T @ v)))[1:] + 0 * v[1:],
    }


def plain_of_sigma(sigma):
    return plain(jnp.diag(sigma) - sigma[:, None] * sigma[None, :], sigma)


def inverse_and_root(J):
    v = jnp.asarray(ROW["v"], J.dtype)
    return J.pinv_mv(v), J.sqrt_mv(v)


def plain_inverse_and_root(sigma):
    v = jnp.asarray(ROW["v"], sigma.dtype)
    constant = jnp.full((4, 4), 0.25, sigma.dtype)
    J = jnp.diag(sigma) - sigma[:, None] * sigma[None, :] + constant
    values, V = jnp.linalg.eigh(J)
    root = V @ (jnp.sqrt(values)[:, None] * V.T)
    return (jnp.linalg.inv(J) - constant) @ v, (root - constant) @ v


def total(f):
    return lambda x: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(f(x)))


@functools.partial(quick_jit, static_argnums=(0, 1))
def derivatives(f, orders, x):
    """First derivatives, and second ones in the given nestings."""
    modes = {"forward": jax.jacfwd, "reverse": jax.jacrev}
    results = {mode: modes[mode](f)(x) for mode in modes}
    for outer, inner in orders:
        results[f"{outer} over {inner}"] = modes[outer](modes[inner](total(f)))(x)
    return results


def of_logits(f):
    return lambda x: f(SoftmaxJacobian.from_logits(x))


def of_sigma(f):
    return lambda sigma: f(SoftmaxJacobian(sigma))


def plain_of_logits(f):
    return lambda x: f(plain_softmax(x))


CASES = {
    "logits": (of_logits(ours), plain_of_logits(plain_of_sigma), POINT, (("reverse", "reverse"),)),
    "sigma": (of_sigma(ours), plain_of_sigma, np.array([0.2, 0.1, 0.4, 0.3]), ()),
    "inverse, root": (
        of_logits(inverse_and_root),
        plain_of_logits(plain_inverse_and_root),
        POINT,
        (),
    ),
}


def products_of_sigma(sigma):
    J, v = SoftmaxJacobian(sigma), jnp.asarray(ROW["v"], sigma.dtype)
    return J.mv(v), J.quadratic(v), J.factor_t_mv(v)


def plain_products(sigma):
    v = jnp.asarray(ROW["v"], sigma.dtype)
    mean = jnp.sum(sigma * v)
    d = v - mean
    return sigma * d, jnp.sum(sigma * v**2) - mean**2, jnp.sqrt(sigma) * d


CASES["sigma, products"] = (
    products_of_sigma,
    plain_products,
    CASES["sigma"][2],
    (("forward", "reverse"), ("reverse", "reverse"), ("reverse", "forward")),
)


@pytest.mark.once
@pytest.mark.parametrize("sigma", [[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]])
def test_derivatives_by_a_class_of_probability_0(sigma):
    orders = ("forward", "reverse"), ("reverse", "reverse")
    sigma, both = jnp.asarray(sigma, WIDE), slice(2)  # the root has no derivative at 0
    found = derivatives(lambda s: products_of_sigma(s)[both], orders, sigma)
    expected = derivatives(lambda s: plain_products(s)[both], orders, sigma)
    for way, values in found.items():
        jax.tree.map(close, values, expected[way])


@pytest.mark.once
@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_the_dense_matrix(case):
    f, reference, x, orders = CASES[case]
    x = jnp.asarray(x, WIDE)
    actual, expected = derivatives(f, orders, x), derivatives(reference, orders, x)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for way in actual:
        # Second derivatives of the inverse and the logarithms are of size 100.
        jax.tree.map(lambda a, b: close(a, b, scale=10.0), actual[way], expected[way])


@quick_jit
def at_ties(x):
    """Derivatives of symmetric functions of the eigenvalues, where eigenvalues tie."""

    def ours(x):
        J = SoftmaxJacobian.from_logits(x)
        return jnp.sum(J.eigvalsh() ** 3) + J.spectral_norm() ** 2

    def plain(x):
        sigma = plain_softmax(x)
        J = jnp.diag(sigma) - sigma[:, None] * sigma[None, :]
        top = jnp.linalg.eigvalsh(J)[-1]  # simple: of the two tied classes' common shift
        return jnp.trace(J @ J @ J) + top**2

    def vectors(x):
        return SoftmaxJacobian.from_logits(x).eigh()

    gradient, curvature = jax.jvp(jax.grad(ours), (x,), (jnp.cos(x),))
    pushed = jax.jvp(vectors, (x,), (jnp.cos(x),))[1]
    return {"gradient": gradient, "curvature": curvature, "eigh": pushed}, jax.grad(plain)(x)


def test_derivatives_are_finite_where_eigenvalues_tie():
    results, gradient = at_ties(jnp.asarray([0.5, 2.0, 0.5, 2.0, 0.5], WIDE))
    chex.assert_tree_all_finite(results)
    close(results["gradient"], gradient)


@pytest.mark.once
def test_the_offset_of_a_vector_does_not_cost_digits_in_derivatives():
    x, v = jnp.asarray(POINT, jnp.float32), jnp.asarray([0.5, -0.25, 1, 0.125], jnp.float32)

    def moved(v):
        def product(x):
            return SoftmaxJacobian.from_logits(x).mv(v)

        return jax.jvp(product, (x,), (jnp.ones_like(x).at[0].set(0.5),))[1]

    shifted, plain = jax.jit(lambda v: (moved(v + 2.0**13), moved(v)))(v)
    chex.assert_trees_all_close(shifted, plain, atol=1e-6)


@pytest.mark.once
def test_exports_to_cpu_cuda_and_tpu():
    def f(x):
        J = SoftmaxJacobian.from_logits(x)
        return sum(map(jnp.sum, jax.tree.leaves((ours(J), inverse_and_root(J)))))

    g = jax.jit(jax.value_and_grad(f))
    x = jax.ShapeDtypeStruct((4,), jnp.float32)
    exported = jax.export.export(g, platforms=("cpu", "cuda", "tpu"))(x)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_third_derivatives_of_the_null_eigenvalue():
    sigma, along = jnp.asarray([0.5, 0.3, 0.2], WIDE), jnp.asarray([1, 0.3, -0.2], WIDE)

    def null(values, t):
        return values(sigma + t * along)[0]

    def of_matrix(s):
        return jnp.linalg.eigvalsh(jnp.diag(s) - jnp.outer(s, s))

    third = [
        quick_jit(jax.jacfwd(jax.jacfwd(jax.jacfwd(lambda t, f=f: null(f, t)))))(0.0)
        for f in (lambda s: SoftmaxJacobian(s).eigvalsh(), of_matrix)
    ]
    close(*third)

"""SoftmaxJacobian against the dense matrix: values, identities, derivatives, edges, errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, long_softmax, plain_softmax
from test_transforms_everywhere import FAST, ways

from jaxsoftjac.operators import SoftmaxJacobian

K = 6
WHERE = np.ones((6, K), bool)
WHERE[5, 2] = False
fast_jit = functools.partial(jax.jit, compiler_options=FAST)


def logits():
    """Rows that are random, flat, peaked, tied, uniform, and (with WHERE) one of K − 1 classes."""
    x = np.random.default_rng(0).normal(size=(6, K))
    x[1] *= 1e-2
    x[2, 3] += 5
    x[3] = [1, 0, 1, 2, 0, 1]
    x[4] = 0
    return x


def vectors(name, *shape):
    return np.random.default_rng(list(name.encode())).normal(size=shape or (6, K))


DAMPINGS = {
    "scalar": np.array(0.1),
    "per row": np.exp(vectors("per row", 6)),
    "diagonal": np.exp(vectors("diagonal")),
}


def dense(x, where=WHERE):
    """J and which classes are kept, in long double."""
    sigma = long_softmax(np.where(where, x, -np.inf))[0]
    return sigma[..., None] * np.eye(K) - sigma[..., :, None] * sigma[..., None, :], where


def on_kept(f, J, kept):
    """`f` of each row's matrix among the kept classes, 0 elsewhere, in float64."""
    out = np.zeros(J.shape)
    for i in range(len(J)):
        kept_pairs = np.ix_(kept[i], kept[i])
        out[i][kept_pairs] = f(J[i][kept_pairs].astype(np.float64))
    return out


def symmetric_root(J):
    """With 11ᵀ/K for the null space while the root is taken."""
    constant = np.full_like(J, 1 / len(J))
    values, V = np.linalg.eigh(J + constant)
    return V * np.sqrt(values) @ V.T - constant


def times(matrices, v):
    return np.einsum("nij,nj->ni", matrices, v)


@fast_jit
def everything(J):
    v, w, b = (jnp.asarray(vectors(name), J.dtype) for name in "vwb")
    results = {
        "mv": J.mv(v),
        "@ vector": J @ v,
        "@ matrix": J @ jnp.asarray(vectors("M", 6, K, 2), J.dtype),
        "as_matrix": J.as_matrix(),
        "diagonal": J.diagonal(),
        "trace": J.trace(),
        "frobenius_norm": J.frobenius_norm(),
        "quadratic": J.quadratic(v),
        "pinv_mv": J.pinv_mv(v),
        "factor_mv": J.factor_mv(w),
        "factor_t_mv": J.factor_t_mv(v),
        "sqrt_mv": J.sqrt_mv(v),
        "spectral_norm": J.spectral_norm(),
        "eigvalsh": J.eigvalsh(),
        "eigh": J.eigh().eigenvalues,
        "log_pdet": J.log_pdet(),
    }
    for kind, damping in DAMPINGS.items():
        results[f"solve, {kind}"] = J.solve(b, jnp.asarray(damping, J.dtype))
    return results


def expected():
    J, kept = dense(logits())
    sigma = long_softmax(np.where(WHERE, logits(), -np.inf))[0]
    v, w, b = (vectors(name) for name in "vwb")
    M = vectors("M", 6, K, 2)
    F = np.sqrt(sigma)[..., None] * np.eye(K) - sigma[..., :, None] * np.sqrt(sigma)[..., None, :]
    values = np.linalg.eigvalsh(J.astype(np.float64))
    results = {
        "mv": times(J, v),
        "@ vector": times(J, v),
        "@ matrix": np.einsum("nij,njm->nim", J, M),
        "as_matrix": J,
        "diagonal": np.einsum("nii->ni", J),
        "trace": np.einsum("nii->n", J),
        "frobenius_norm": np.sqrt((J**2).sum((1, 2))),
        "quadratic": np.einsum("ni,nij,nj->n", v, J, v),
        "pinv_mv": times(on_kept(np.linalg.pinv, J, kept), v),
        "factor_mv": times(F, w),
        "factor_t_mv": times(np.swapaxes(F, 1, 2), v),
        "sqrt_mv": times(on_kept(symmetric_root, J, kept), v),
        "spectral_norm": values[:, -1],
        "eigvalsh": values,
        "eigh": values,
        "log_pdet": np.array([np.log(v[v > 1e-12]).sum() for v in values]),
    }
    for kind, damping in DAMPINGS.items():
        full = np.broadcast_to(damping[..., None] if damping.ndim == 1 else damping, (6, K))

        inverse = on_kept(np.linalg.inv, J + full[..., None] * np.eye(K), kept)
        results[f"solve, {kind}"] = times(inverse, b)
    return results


def from_logits(dtype=WIDE):
    return SoftmaxJacobian.from_logits(jnp.asarray(logits(), dtype), where=WHERE)


def from_sigma(dtype=WIDE):
    x = np.where(WHERE, logits(), -np.inf)
    return SoftmaxJacobian(jnp.asarray(long_softmax(x)[0], dtype))


@pytest.mark.parametrize("make", [from_logits, from_sigma])
def test_every_method_agrees_with_the_dense_matrix(make):
    actual, reference = everything(make()), expected()
    assert actual.keys() == reference.keys()
    for name, value in reference.items():
        at = slice(None)
        if make is from_sigma and name.startswith("solve"):
            at = slice(5)  # a class with σ = 0 is not excluded there: its solution is b/δ
        close(actual[name][at], value[at])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_rounded_once(dtype):
    J = SoftmaxJacobian.from_logits(jnp.asarray(logits(), dtype), where=WHERE)
    as_float32 = everything(SoftmaxJacobian.from_logits(J_logits(dtype), where=WHERE))
    J_float32 = {name: np.asarray(a) for name, a in as_float32.items()}
    for name, value in everything(J).items():
        chex.assert_type(value, dtype)
        if name in VECTOR_FREE:  # the vectors are rounded in `everything`
            chex.assert_trees_all_equal(value, jnp.asarray(J_float32[name]).astype(dtype))


def J_logits(dtype):
    return jnp.asarray(logits(), dtype).astype(jnp.float32)


VECTOR_FREE = ("as_matrix", "diagonal", "trace", "frobenius_norm", "spectral_norm", "eigvalsh")


# Derivatives. `ours` and `plain` give the same numbers of one row; the plain ones by dense algebra.

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
        "values": J.eigvalsh() * u + values,
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
        "values": values * (u + 1),
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


def modes(f, x):
    """First and second derivatives in every nesting."""

    def total(x):
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(f(x)))

    return {
        "forward": jax.jacfwd(f)(x),
        "reverse": jax.jacrev(f)(x),
        "forward over reverse": jax.jacfwd(jax.grad(total))(x),
        "reverse over reverse": jax.jacrev(jax.grad(total))(x),
        "reverse over forward": jax.jacrev(jax.jacfwd(total))(x),
        "forward over forward": jax.jacfwd(jax.jacfwd(total))(x),
    }

"""SoftmaxJacobian against the dense matrix: values, identities, transformations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, long_softmax, quick_jit

from jaxsoftjac.operators import SoftmaxJacobian

K = 6
WHERE = np.ones((6, K), bool)
WHERE[5, 2] = False


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


@quick_jit
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


@pytest.mark.once
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


def test_identities():
    v = jnp.asarray(vectors("v"), WIDE)
    J = SoftmaxJacobian.from_logits(jnp.asarray(logits(), WIDE))

    @quick_jit
    def both(J, v):
        values, V = J.eigh()
        Jv = J.mv(v)
        return {
            "FFᵀ = J": (J.factor_mv(J.factor_t_mv(v)), Jv),
            "J^{1/2}J^{1/2} = J": (J.sqrt_mv(J.sqrt_mv(v)), Jv),
            "JJ⁺J = J": (J.mv(J.pinv_mv(Jv)), Jv),
            "J⁺JJ⁺ = J⁺": (J.pinv_mv(J.mv(J.pinv_mv(v))), J.pinv_mv(v)),
            "J⁺ has sum 0": (jnp.sum(J.pinv_mv(v), -1), jnp.zeros(6, WIDE)),
            "J⁺J = I − 11ᵀ/K": (J.pinv_mv(Jv), v - jnp.mean(v, -1, keepdims=True)),
            "(J + δ)x = b": (J.mv(J.solve(v, 0.01)) + 0.01 * J.solve(v, 0.01), v),
            "VΛVᵀ = J": (jnp.einsum("nij,nj,nkj->nik", V, values, V), J.as_matrix()),
            "VᵀV = I": (jnp.einsum("nji,njk->nik", V, V), jnp.stack([jnp.eye(K, dtype=WIDE)] * 6)),
            "Σλ = tr J": (jnp.sum(values, -1), J.trace()),
            "Σλ² = ‖J‖²": (jnp.sum(values**2, -1), J.frobenius_norm() ** 2),
            "Σ log λ": (jnp.sum(jnp.log(values[:, 1:]), -1), J.log_pdet()),
            "λ_K = ‖J‖₂": (values[:, -1], J.spectral_norm()),
            "vᵀJv": (jnp.sum(v * Jv, -1), J.quadratic(v)),
        }

    for left, right in both(J, v).values():
        close(left, right, scale=10.0)
    assert np.all(J.as_matrix() == jnp.swapaxes(J.as_matrix(), 1, 2))


@pytest.mark.once
def test_samples_have_covariance_J():
    J = SoftmaxJacobian.from_logits(jnp.asarray([0.3, -1.0, 1.2, 0.1], jnp.float32))
    draws = quick_jit(lambda J: J.sample(jax.random.key(0), (200, 500)))(J)
    chex.assert_shape(draws, (200, 500, 4))
    covariance = jnp.einsum("abi,abj->ij", draws, draws) / 100_000
    np.testing.assert_allclose(covariance, J.as_matrix(), atol=5e-3)
    np.testing.assert_allclose(jnp.sum(draws, -1), 0, atol=1e-6)


def test_classes_on_another_axis():
    x = jnp.asarray(logits(), WIDE)
    J = SoftmaxJacobian.from_logits(x.T, axis=0)
    chex.assert_trees_all_equal(J.sigma, SoftmaxJacobian.from_logits(x).sigma)


@quick_jit
def transformed(J):
    rows = jax.vmap(lambda J: (J.eigvalsh(), J.mv(jnp.ones_like(J.sigma))))(J)
    scanned = jax.lax.scan(lambda _, J: (None, (J.spectral_norm(), J.eigh())), None, J)[1]
    gradient = jax.grad(lambda J: jnp.sum(J.spectral_norm()))(J)
    return {"vmap": rows, "scan": scanned, "whole": J.eigvalsh(), "gradient": gradient}


@pytest.mark.parametrize("make", [from_logits, from_sigma])
def test_is_a_pytree(make):
    J = make()
    results = transformed(J)
    chex.assert_trees_all_close(results["vmap"][0], results["whole"], rtol=1e-6)
    norms, (values, vectors) = results["scan"]
    chex.assert_trees_all_close(norms, results["whole"][:, -1], rtol=1e-6)
    chex.assert_shape(vectors, (6, K, K))
    assert isinstance(results["gradient"], SoftmaxJacobian)
    assert jax.tree.structure(results["gradient"]) == jax.tree.structure(J)
    assert jax.tree.map(np.shape, J).sigma == (6, K)
    with pytest.raises(AttributeError):
        J.sigma = J.sigma

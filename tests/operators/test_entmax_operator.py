"""EntmaxJacobian against the dense matrix of each row: every method, supports of every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from plain_entmax import long_entmax, long_jacobian

import jaxsoftjac as jsj
from jaxsoftjac.operators import EntmaxJacobian, SoftmaxJacobian

pytestmark = pytest.mark.once

K = 6
ALPHAS = (1.3, 1.5, 2.0, 3.0)
WHERE = np.ones((4, K), bool)
WHERE[1, 2] = False


def logits():
    """Rows that are random, masked, tied, and one with a single class in the support."""
    x = np.random.default_rng(0).normal(size=(4, K)) / 3
    x[2] = [1, 0.9, 1, 0.8, 1, 0.5]
    x[3, 4] = 9
    return x


def dense(alpha):
    """J in float64, and where p > 0."""
    p = long_entmax(np.where(WHERE, logits(), -1e4), alpha)
    return np.stack([long_jacobian(row, alpha) for row in p]).astype(float), p > 0


def random(name, *shape):
    return jnp.asarray(np.random.default_rng(list(name.encode())).normal(size=shape), WIDE)


V, B = random("v", 4, K), random("b", 4, K)
DAMPING = jnp.exp(random("damping", 4, K))


@quick_jit
def everything(J):
    eigh = J.eigh()
    return {
        "mv": J.mv(V),
        "matmul": J @ jnp.stack([V, B], -1),
        "matrix": J.as_matrix(),
        "diagonal": J.diagonal(),
        "trace": J.trace(),
        "frobenius": J.frobenius_norm(),
        "quadratic": J.quadratic(V),
        "pinv": J.pinv_mv(V),
        "scalar": J.solve(B, 0.1),
        "per row": J.solve(B, DAMPING[:, 0]),
        "diagonal damping": J.solve(B, DAMPING),
        "FFt": J.factor_mv(J.factor_t_mv(V)),
        "root": J.sqrt_mv(J.sqrt_mv(V)),
        "norm": J.spectral_norm(),
        "bounds": J.spectral_bounds(),
        "eigenvalues": J.eigvalsh(),
        "eigh": (eigh.eigenvectors * eigh.eigenvalues[:, None]) @ eigh.eigenvectors.mT,
        "rank": J.rank(),
        "log_pdet": J.log_pdet(),
        "samples": J.sample(jax.random.key(0), (4000,)),
    }


def solutions(J, support, damping):
    """(J + diag(δ))⁻¹b among the classes of the support."""
    out = np.zeros((4, K))
    for row, kept in enumerate(support):
        delta = np.broadcast_to(damping[row], K)[kept]
        inside = J[row][np.ix_(kept, kept)] + np.diag(delta)
        out[row, kept] = np.linalg.solve(inside, np.asarray(B)[row, kept])
    return out


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_method_is_that_of_the_matrix(alpha):
    J, support = dense(alpha)
    operator = EntmaxJacobian.from_logits(jnp.asarray(logits(), WIDE), alpha, where=WHERE)
    found = everything(operator)
    values = np.linalg.eigvalsh(J)
    size = values.max()

    def same(name, expected, scale=1.0):
        close(found[name], expected, scale=10 * scale * max(1, size))

    v = np.asarray(V)
    for name in ("mv", "FFt", "root"):
        same(name, np.einsum("nij,nj->ni", J, v))
    same("matmul", J @ np.stack([v, np.asarray(B)], -1))
    same("matrix", J)
    same("eigh", J)
    same("diagonal", np.einsum("nii->ni", J))
    same("trace", np.einsum("nii->n", J))
    same("frobenius", np.linalg.norm(J, axis=(1, 2)))
    same("quadratic", np.einsum("ni,nij,nj->n", v, J, v))
    same("eigenvalues", values)
    same("norm", values[:, -1])
    inverse = np.linalg.pinv(J, rcond=1e-9)
    same("pinv", np.einsum("nij,nj->ni", inverse, v), np.abs(inverse).max())
    for name, damping in (
        ("scalar", np.full((4, 1), 0.1)),
        ("per row", DAMPING[:, :1]),
        ("diagonal damping", DAMPING),
    ):
        same(name, solutions(J, support, np.asarray(damping)))
    np.testing.assert_array_equal(found["rank"], support.sum(-1) - 1)
    lower, upper = found["bounds"]
    assert np.all(lower <= values[:, -1] * 1.0001)
    assert np.all(upper >= values[:, -1] * 0.9999)
    nonzero = [np.log(row[row > 1e-7 * size]).sum() for row in values]
    same("log_pdet", np.array(nonzero))
    samples = np.asarray(found["samples"])
    covariance = np.einsum("sni,snj->nij", samples, samples) / len(samples)
    np.testing.assert_allclose(covariance, J, atol=0.12 * size)


def test_alpha_1_is_the_operator_of_softmax():
    x = jnp.asarray(logits(), WIDE)
    J, expected = EntmaxJacobian.from_logits(x, 1), SoftmaxJacobian.from_logits(x)
    close(J.as_matrix(), expected.as_matrix())
    close(J.log_pdet(), expected.log_pdet())


def test_an_alpha_for_each_row_and_derivatives():
    x, alpha = jnp.asarray(logits(), WIDE), jnp.asarray([1.0, 1.5, 2.0, 2.5], WIDE)

    @quick_jit
    def both(x, alpha):
        def of_operator(x, a):
            return EntmaxJacobian.from_logits(x, a).mv(V)

        def of_function(x, a):
            return jax.jvp(lambda x: jsj.entmax(x, a), (x,), (V,))[1]

        tangents = jnp.sin(3 * x), jnp.cos(alpha)
        return [jax.jvp(f, (x, alpha), tangents) for f in (of_operator, of_function)]

    of_operator, of_function = both(x, alpha)
    jax.tree.map(lambda a, b: close(a, b, scale=100.0), of_operator, of_function)


def test_it_is_a_pytree_and_rounds_once():
    x = jnp.asarray(logits(), jnp.bfloat16)
    J = EntmaxJacobian.from_logits(x)
    v = V.astype(jnp.bfloat16)
    assert J.mv(v).dtype == J.trace().dtype == jnp.bfloat16
    wide = EntmaxJacobian.from_logits(x.astype(jnp.float32)).mv(v.astype(jnp.float32))
    np.testing.assert_array_equal(J.mv(v), wide.astype(jnp.bfloat16))
    assert jax.jit(lambda J: J)(J).dtype == jnp.bfloat16
    close(jax.vmap(lambda J, v: J.mv(v))(J, v), J.mv(v))


def test_rows_without_classes_and_errors():
    x = jnp.full((2, 3), -jnp.inf, jnp.float32)
    J = EntmaxJacobian.from_logits(x)
    assert not np.any(J.mv(jnp.ones((2, 3), jnp.float32)))
    assert not np.any(J.rank())
    with pytest.raises(ValueError, match="`damping` must be positive"):
        J.solve(x, 0.0)
    with pytest.raises(ValueError, match="`v` must have the shape"):
        J.mv(jnp.ones(3, jnp.float32))
    with pytest.raises(ValueError, match="`alpha` must lie in"):
        EntmaxJacobian.from_logits(x, 5)


def test_lineax_solves_with_it():
    lineax = pytest.importorskip("lineax")
    J = EntmaxJacobian.from_logits(jnp.asarray(logits()[0], WIDE), 2)
    operator = J.as_lineax()
    assert lineax.is_symmetric(operator)
    close(operator.mv(V[0]), J.mv(V[0]))

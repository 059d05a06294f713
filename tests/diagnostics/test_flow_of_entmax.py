"""The gradient flow of α-entmax against its dense Jacobian, and where nothing flows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_cases import FLOW, NONE, ONE, SPOILT
from helpers import WIDE, close, quick_jit
from plain_entmax import long_entmax, long_jacobian

import jaxsoftjac as jsj
from jaxsoftjac.diagnostics import attention_flow, gradient_flow, summarize, temperature_sweep

pytestmark = pytest.mark.once

INF, NAN = np.inf, np.nan


def family_reference(x, alpha):
    """Fields of one row's flow of α-entmax, from its dense J in long double."""
    p = long_entmax(x, alpha)
    J = np.asarray(long_jacobian(p, alpha), float)
    s = np.where(p > 0, np.where(p > 0, p, 1) ** np.longdouble(2 - alpha), 0).astype(float)
    p, K, support = p.astype(float), len(x), int((p > 0).sum())
    eigenvalues, norm = np.linalg.eigvalsh(J), np.linalg.norm(J)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1)))
    sigma = s / s.sum()
    lengths = np.linalg.norm(np.eye(K) - sigma, axis=1)
    return {
        "classes": K,
        "entropy": entropy,
        "entropy_share": entropy / np.log(K),
        "max_probability": p.max(),
        "effective_classes": np.exp(entropy),
        "spectral_norm": eigenvalues[-1],
        "spectral_norm_share": 2 * eigenvalues[-1] / s.sum(),
        "frobenius_norm": norm,
        "gradient_gain": norm / np.sqrt(K - 1),
        "effective_rank": np.trace(J) ** 2 / norm**2,
        "condition_number": eigenvalues[-1] / eigenvalues[K - support + 1],
        "saturation": 1 - p.max(),
        "digits_lost": -np.log10(np.sum(sigma * lengths)),
        "is_collapsed": False,
        "support": support,
    }


def test_the_flow_of_every_alpha():
    """As the entries of an array, where 1 is softmax to the digit, and as a number."""
    x = np.array([2, 1.7, 1.5, 0.2, -1, 1.4], WIDE)
    alphas = (1.0, 1.2, 1.5, 2.0, 3.0)
    flows = quick_jit(
        lambda x, alpha: (gradient_flow(x, alpha=alpha), gradient_flow(x[0], alpha=1.5))
    )
    array, number = flows(np.tile(x, (5, 1)), np.array(alphas, WIDE))
    for i, alpha in enumerate(alphas):
        for name, expected in family_reference(x, alpha).items():
            expected = np.asarray(expected, float)
            close(getattr(array, name)[i], expected, WIDE, scale=alpha)
            if alpha == 1.5:
                close(getattr(number, name), expected, WIDE)


def test_an_alpha_of_1_in_an_array_does_not_underflow():
    deep = np.array([200, 0, 1], np.float32)  # p is 0 in float32 at two of them
    learned = quick_jit(lambda x, alpha: gradient_flow(x, alpha=alpha))(deep, np.float32(1))
    chex.assert_trees_all_close(learned, FLOW(deep), rtol=1e-5)


def test_a_single_class_of_the_support_passes_nothing():
    x = np.array([[9, 0, 0], [1, 0, -INF], [NAN, 0, 1], [INF, 0, 1], [-INF] * 3], np.float32)
    flow = quick_jit(lambda x: gradient_flow(x, alpha=2.0))(x)
    single = {**ONE, "classes": 3.0, "is_collapsed": 1.0}
    for row, expected in ((0, single), (4, NONE), (2, {**SPOILT, "classes": 3, "support": 3})):
        found = {name: float(value[row]) for name, value in flow._asdict().items()}
        np.testing.assert_equal(found, expected)
    assert np.isnan(flow.spectral_norm[3])
    np.testing.assert_array_equal(flow.support, [1, 1, 3, 3, 0])
    assert summarize(jax.tree.map(lambda a: a[:2], flow)).collapsed_share == 1


def test_sweeps_and_attention_take_alpha():
    q, k, alpha = np.eye(2, 3, dtype=np.float32), np.eye(4, 3, dtype=np.float32), np.float32(1.5)

    @quick_jit
    def flows(q, k, alpha):
        sweep = temperature_sweep(2 * q @ k.T, [2.0], alpha=alpha).flow
        heads = attention_flow(q[:, None], k[:, None], scale=1.0, alpha=jnp.reshape(alpha, (1, 1)))
        return jax.tree.map(jnp.squeeze, (sweep, heads))

    sweep, heads = flows(q, k, alpha)
    chex.assert_trees_all_close(sweep, heads, rtol=1e-5)
    np.testing.assert_allclose(sweep.max_probability, jsj.entmax(q @ k.T).max(-1), rtol=1e-5)

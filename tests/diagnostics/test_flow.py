"""The gradient flow against mpmath, its edge cases, summaries and temperature sweeps."""

import functools

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flow_cases import FLOW, NONE, ONE, SPOILT
from helpers import U, long_product, quick_jit

from jaxsoftjac.diagnostics import (
    attention_flow,
    gradient_flow,
    summarize,
    temperature_sweep,
)

pytestmark = pytest.mark.once

mpmath.mp.dps = 60


def reference(x):
    """Every field of one row's flow, from the dense matrix in 60 digits; the top class is first."""
    K, x = len(x), [mpmath.mpf(float(v)) for v in x]
    e = [mpmath.exp(v - x[0]) for v in x]
    sigma = [v / sum(e) for v in e]
    J = mpmath.matrix(K, K)
    for i in range(K):
        for j in range(K):
            J[i, j] = -sigma[i] * sigma[j] if i != j else sigma[i] * sum(sigma[:i] + sigma[i + 1 :])
    eigenvalues = sorted(mpmath.eigsy(J, eigvals_only=True))
    entropy = -sum(s * mpmath.log(s) for s in sigma)
    norm = mpmath.sqrt(sum(v**2 for v in J))
    trace = sum(J[i, i] for i in range(K))
    lengths = [mpmath.sqrt(sum(((i == j) - sigma[j]) ** 2 for j in range(K))) for i in range(K)]
    return {
        "classes": K,
        "entropy": entropy,
        "entropy_share": entropy / mpmath.log(K),
        "max_probability": sigma[0],
        "effective_classes": mpmath.exp(entropy),
        "spectral_norm": eigenvalues[-1],
        "spectral_norm_share": eigenvalues[-1] * 2,
        "frobenius_norm": norm,
        "gradient_gain": norm / mpmath.sqrt(K - 1),
        "effective_rank": trace**2 / norm**2,
        "condition_number": eigenvalues[-1] / eigenvalues[1],
        "saturation": sum(sigma[1:]),
        "digits_lost": -mpmath.log10(sum(s * n for s, n in zip(sigma, lengths, strict=True))),
        "is_collapsed": sum(e[1:]) <= 2.0**-24,
        "support": K,
    }


@pytest.mark.parametrize("K", [2, 3, 7])
def test_every_field_keeps_its_digits_at_any_gap(K):
    gaps = np.array([0, 1, 10, 16, 17, 20, 40, 80])[:, None]
    x = np.random.default_rng(K).normal(size=(len(gaps), K)).astype(np.float32)
    x[:, 0] = x.max(1)
    x[:, :1] += gaps
    flow = jax.tree.map(lambda a: np.asarray(a, np.float64), FLOW(x))
    for row, logits in enumerate(x):
        spread = np.ptp(logits)
        for name, expected in reference(logits).items():
            scale = 1 if name == "digits_lost" else abs(float(expected))
            error = abs(float(getattr(flow, name)[row] - expected))
            assert error <= (spread + 16) * U * scale, (name, gaps[row], error / scale)


@pytest.mark.parametrize(
    "sigma",
    [
        [0.5, 0.5],
        [0.25] * 4,
        [0.4, 0.4, 0.1, 0.1],
        [0.7, 0.1, 0.1, 0.1],
        [0.4, 0.3, 0.3 - 1e-6, 1e-6],
        [*np.geomspace(1, 1e-6, 7) / np.geomspace(1, 1e-6, 7).sum()],
        [1 / 3 + 1e-7, 1 / 3, 1 / 3 - 1e-7],
    ],
)
def test_ties_and_clusters(sigma):
    x = np.log(sigma).astype(np.float32)
    found, expected = FLOW(x), reference(x)
    for name in ("spectral_norm", "condition_number", "effective_rank"):
        np.testing.assert_allclose(getattr(found, name), float(expected[name]), rtol=32 * U)


def test_extreme_eigenvalues_of_wide_rows():
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 300)) * np.array([0.01, 1, 3, 8])[:, None]
    sigma = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    J = -sigma[:, :, None] * sigma[:, None, :] + np.eye(300) * sigma[:, :, None]
    eigenvalues = np.linalg.eigvalsh(J)
    flow = FLOW(x.astype(np.float32))
    np.testing.assert_allclose(flow.spectral_norm, eigenvalues[:, -1], rtol=1e-5)
    condition = eigenvalues[:, -1] / eigenvalues[:, 1]
    np.testing.assert_allclose(flow.condition_number[:3], condition[:3], rtol=1e-5)


def test_gain_is_the_root_mean_square_over_vectors_of_sum_zero():
    x = np.array([3, 1, 0, -2, 0.5], np.float32)
    basis = np.linalg.qr(np.eye(5) - 1 / 5)[0][:, :4]  # orthonormal, each of sum 0
    products = long_product(np.tile(x, (4, 1)), basis.T)
    np.testing.assert_allclose(
        gradient_flow(x).gradient_gain, np.sqrt((products**2).sum() / 4).astype(float), rtol=1e-6
    )


def test_digits_lost_are_those_that_the_textbook_product_loses():
    random, lost, predicted = np.random.default_rng(0), [], []
    for gap in (0, 3, 6, 9, 12):
        x, v = random.normal(size=(2, 2000, 32)).astype(np.float32)
        x[:, 0] += gap
        e = np.exp(x - x.max(1, keepdims=True))  # in float32, whatever the JAX version
        sigma = e / e.sum(1, keepdims=True)
        textbook = sigma * (v - (sigma * v).sum(1, keepdims=True, dtype=np.float32))
        exact = long_product(x, v)
        error = np.abs(textbook - exact).sum(1).mean() / np.abs(exact).sum(1).mean()
        lost.append(float(np.log10(error / U)))
        predicted.append(np.mean(np.asarray(FLOW(x).digits_lost)))
    np.testing.assert_allclose(predicted, lost, atol=0.6)


def test_collapse_is_where_the_plain_gradient_at_the_label_vanishes():
    gaps = np.linspace(14, 19, 41, dtype=np.float32)
    x = np.stack([gaps, 0 * gaps], axis=1)
    plain = np.asarray(jax.nn.softmax(x))[:, 0] - np.float32(1)
    collapsed = np.asarray(FLOW(x).is_collapsed)
    np.testing.assert_array_equal(collapsed, plain == 0)
    assert collapsed.any()
    assert not collapsed.all()


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("x", "where", "expected"),
    [
        ([5.0], None, ONE),
        ([-INF, 2.0, -INF], None, ONE),
        ([-INF, -INF], None, NONE),
        ([1.0, 2.0], [False, False], NONE),
        ([NAN, 2.0, INF], [False, True, False], ONE),
        ([NAN], None, {**SPOILT, "classes": 1.0, "support": 1.0}),
        ([1.0, NAN, 2.0], None, {**SPOILT, "classes": 3.0, "support": 3.0}),
        ([1.0, INF, 2.0], None, {**SPOILT, "classes": 3.0, "support": 3.0}),
        ([INF], None, {**SPOILT, "classes": 1.0, "support": 1.0}),
    ],
)
def test_edges(x, where, expected):
    flow = gradient_flow(np.array(x, np.float32), where=where and np.array(where))
    assert flow._fields == tuple(expected)
    found = {name: float(value) for name, value in flow._asdict().items()}
    np.testing.assert_equal(found, expected)


def test_excluded_classes_are_as_if_they_were_not_there():
    x = np.array([[2, NAN, 1, -INF, 0.5], [-1, INF, 9, -INF, 0]], np.float32)
    where = np.array([True, False, True, True, True])
    chex.assert_trees_all_close(FLOW(x, where=where), FLOW(x[:, [0, 2, 4]]), rtol=1e-6)


def test_axes_vmap_and_dtypes():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    flow = FLOW(x)
    chex.assert_tree_shape_prefix(flow, (2, 3))
    quick = functools.partial(quick_jit, static_argnames="axis")(gradient_flow)
    chex.assert_trees_all_close(quick_jit(jax.vmap(gradient_flow))(x), flow, rtol=1e-6)
    chex.assert_trees_all_close(quick(x.transpose(2, 0, 1), axis=0), flow, rtol=1e-6)
    flat = quick(x.reshape(2, 12))
    chex.assert_trees_all_close(quick(x, axis=(1, 2)), flat, rtol=1e-6)
    half = quick(x.astype(jnp.bfloat16))
    assert half.entropy.dtype == jnp.float32
    chex.assert_trees_all_close(half, quick(x.astype(jnp.bfloat16).astype(np.float32)), rtol=1e-6)
    integers = jax.eval_shape(gradient_flow, np.array([3, 1, 0]))
    assert integers.entropy.dtype == jnp.result_type(float)


def test_time_and_memory_are_linear_in_the_classes():
    K = 1024
    program = FLOW.lower(jax.ShapeDtypeStruct((K,), jnp.float32)).compile()
    analysis = program.memory_analysis()
    assert analysis.temp_size_in_bytes < 64 * K  # K² floats would be 4096 K bytes
    assert program.cost_analysis()["flops"] < 2000 * K


def test_summary_is_of_the_rows_that_pass_a_gradient():
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    x[0, 0, 1:] = -INF  # one class
    x[1, 1, 0] = 50
    flow = FLOW(x)
    summary = summarize(flow, axis=1, levels=(0.0, 0.5, 1.0))
    np.testing.assert_array_equal(summary.rows, [6, 7, 7])
    np.testing.assert_allclose(summary.collapsed_share, [0, 1 / 7, 0], rtol=1e-6)
    entropy = np.asarray(flow.entropy)
    kept = [entropy[0, 1:], entropy[1], entropy[2]]
    expected = [[np.quantile(row, q, method="nearest") for row in kept] for q in (0, 0.5, 1)]
    np.testing.assert_array_equal(summary.quantiles.entropy, np.array(expected, np.float32))
    chex.assert_trees_all_close(
        jax.jit(summarize)(flow), summarize(jax.tree.map(np.ravel, flow)), rtol=1e-6
    )


def test_summary_hides_no_nan_and_survives_infinity():
    x = np.array([[0, 0, -200], [1, 0, -200], [1, 0, 0]], np.float32)
    condition = summarize(FLOW(x), levels=(0, 0.5, 1)).quantiles.condition_number
    assert np.isfinite(condition[0])
    np.testing.assert_array_equal(condition[1:], [INF, INF])
    x[1] = NAN
    assert np.all(np.isnan(summarize(FLOW(x)).quantiles.entropy))
    alone = summarize(FLOW(x[:1, :1]))
    assert (alone.rows, np.isnan(alone.collapsed_share)) == (0, True)


def test_sweep_is_the_flow_at_each_temperature():
    x = np.array([[3, 1, 0, -2], [0.1, 0, 0, -INF]], np.float32)
    sweep = jax.jit(temperature_sweep)(x, np.array([0.5, 1, 1e4], np.float32))
    for i, temperature in enumerate((0.5, 1, 1e4)):
        at = jax.tree.map(lambda a, i=i: a[i], sweep.flow)
        chex.assert_trees_all_close(at, FLOW(x / np.float32(temperature)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sweep.flow.entropy_share[2], 1, rtol=1e-6)
    spoilt = temperature_sweep(x, [0.0, -1.0, NAN]).flow.spectral_norm
    assert np.all(np.isnan(spoilt))


def test_bad_input():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="`x` must be real, got dtype bool"):
        gradient_flow(np.zeros(3, bool))
    for empty in (np.zeros((2, 0)), np.float32(1)):
        with pytest.raises(ValueError, match="`x` must have at least one class on `axis`"):
            gradient_flow(empty, axis=None if empty.ndim == 0 else -1)
    with pytest.raises(ValueError, match="`axis` must lie in"):
        gradient_flow(x, axis=2)
    with pytest.raises(TypeError, match="`where` must be boolean"):
        gradient_flow(x, where=np.ones(3))
    with pytest.raises(ValueError, match=r"`temperatures` must have shape \(n,\), got \(\)"):
        temperature_sweep(x, 1.0)
    with pytest.raises(ValueError, match=r"`levels` must lie in \[0, 1\], got 2"):
        summarize(FLOW(x), levels=(0.5, 2))
    with pytest.raises(ValueError, match="`axis` must lie in"):
        summarize(FLOW(x), axis=1)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[1, 4\], got 5"):
        gradient_flow(x, alpha=5)
    with pytest.raises(ValueError, match=r"`alpha` must broadcast to \(2,\), got \(3,\)"):
        gradient_flow(x, alpha=np.ones(3))
    with pytest.raises(ValueError, match=r"`alpha` must have shape \(\) or \[..., N, 1\], got"):
        attention_flow(x[:, None], x[:, None], alpha=np.ones(2))


def test_no_rows_have_no_flow():
    assert gradient_flow(jnp.zeros((0, 3))).entropy.shape == (0,)

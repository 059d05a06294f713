"""JAX's own debugging modes find nothing in results that are finite; eager calls compile once."""

import os
import subprocess
import sys

import debugging_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from debugging_cases import FUNCTIONS, INF, ROWS
from helpers import quick_jit

import jaxsoftjac as jsj

pytestmark = pytest.mark.once


@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_debug_nans_finds_none(name, compiled):
    f = FUNCTIONS[name]

    def total(x):
        return jnp.sum(f(x))

    with jax.debug_nans(True), jax.disable_jit(not compiled):
        x = jnp.asarray(ROWS)
        for result in (f(x), jax.grad(total)(x), jax.jvp(f, (x,), (jnp.ones_like(x),))[1]):
            assert np.all(~np.isnan(np.asarray(result)))


@pytest.mark.slow
def test_nothing_leaks():
    """In a process of its own: JAX looks for leaks in all that there is."""
    strict = {"JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    strict["JAX_ENABLE_X64"] = str(jax.config.jax_enable_x64)
    traced = subprocess.run(
        [sys.executable, debugging_cases.__file__],
        env=os.environ | strict,
        capture_output=True,
        text=True,
    )
    assert traced.returncode == 0, traced.stderr
    assert traced.stdout.splitlines() == list(FUNCTIONS)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if "where" not in n])
def test_a_second_eager_call_does_not_compile(name, caplog):
    x = jnp.asarray(ROWS)
    FUNCTIONS[name](x)
    with jax.log_compiles():
        FUNCTIONS[name](x + 1)
        compiled = [r.message for r in caplog.records if "Compiling" in r.message]
        FUNCTIONS[name](x + 2)
    assert [r.message for r in caplog.records if "Compiling" in r.message] == compiled


WITH_LOOPS = {
    "gradient_flow": jsj.gradient_flow,
    "gradient_flow, entmax": lambda x: jsj.gradient_flow(x, alpha=1.5),
    "attention_flow": lambda x: jsj.attention_flow(x[:, None], x[:, None], is_causal=True),
    "temperature_sweep": lambda x: jsj.diagnostics.temperature_sweep(x, [0.5, 1.0]),
    "EntmaxJacobian": lambda x: jsj.EntmaxJacobian.from_logits(x, 1.5).mv(x),
    "softmax_regression_path": lambda x: jsj.regression.softmax_regression_path(
        x, [0, 1] * 3, l2=[1.0, 0.1]
    ),
}


@pytest.mark.parametrize("name", WITH_LOOPS)
def test_a_second_eager_call_with_a_loop_does_not_compile(name, caplog):
    """A loop over a function that is new in each call would be compiled in each."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    WITH_LOOPS[name](x)
    with jax.log_compiles():
        WITH_LOOPS[name](x)
    assert [r.message for r in caplog.records if "Compiling" in r.message] == []


ON_DEVICE = {
    "softmax": lambda x, labels: jsj.softmax(x),
    "log_softmax": lambda x, labels: jsj.log_softmax(x),
    "logsumexp": lambda x, labels: jsj.logsumexp(x, axis=-1),
    "softmax_vjp": lambda x, labels: jsj.softmax_vjp(x, x),
    "softmax_jacobian": lambda x, labels: jsj.softmax_jacobian(x),
    "cross_entropy": lambda x, labels: jsj.cross_entropy(
        x, labels, label_smoothing=0.1, z_loss=0.1, ignore_index=1
    ),
    "entropy": lambda x, labels: jsj.entropy(x),
    "kl_divergence": lambda x, labels: jsj.kl_divergence(x, x),
    "linear_cross_entropy": lambda x, labels: jsj.linear_cross_entropy(x, x.T, labels),
    "dot_product_attention": lambda x, labels: jsj.dot_product_attention(*[x[:, None]] * 3),
    "SoftmaxJacobian": lambda x, labels: jsj.SoftmaxJacobian.from_logits(x).mv(x),
    "SoftmaxJacobian.eigvalsh": lambda x, labels: jsj.SoftmaxJacobian(x).eigvalsh(),
}


@pytest.mark.parametrize("name", ON_DEVICE)
def test_an_eager_call_transfers_nothing(name):
    x = jax.nn.softmax(jnp.arange(9, dtype=jnp.float32).reshape(3, 3))
    labels = jnp.arange(3, dtype=jnp.int32)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(ON_DEVICE[name](x, labels))


@pytest.mark.as_compiled
def test_a_fused_producer_does_not_miss_the_top():
    x = jnp.asarray([[3e10, 1e10, 2.9e10], [1e30, -1e30, 9e29]], jnp.float32)
    for f in (jsj.softmax, lambda x: jnp.exp(jsj.log_softmax(x))):
        np.testing.assert_array_equal(jax.jit(lambda x, f=f: f(x / 3))(x), [[1, 0, 0]] * 2)
    loss = jax.jit(jax.value_and_grad(lambda x: jnp.sum(jsj.cross_entropy(x / 3, [0, 0]))))
    value, gradient = loss(x)
    assert value == 0
    assert not np.any(np.asarray(gradient))


EXCLUDED = {
    "softmax": lambda x: jsj.softmax(x),
    "log_softmax": lambda x: jnp.where(jnp.isinf(x), 0, jsj.log_softmax(x)),
    "logsumexp": lambda x: jsj.logsumexp(x, axis=-1),
    "cross_entropy": lambda x: jsj.cross_entropy(x, np.array([1, 1])),
    "entropy": jsj.entropy,
    "kl_divergence": lambda x: jsj.kl_divergence(
        x, jnp.where(jnp.isinf(x), x, jnp.cos(jnp.where(jnp.isinf(x), 0, x)))
    ),
    "SoftmaxJacobian.mv": lambda x: jsj.SoftmaxJacobian.from_logits(x).mv(jnp.ones_like(x)),
    "softmax, where": lambda x: jsj.softmax(x, where=np.array([True, True, False, True])),
}


@pytest.mark.parametrize("name", EXCLUDED)
def test_reverse_over_reverse_through_a_scan_with_excluded_classes(name):
    """JAX 0.10's scan drops the rules there, so that the formulas are differentiated."""
    f, x = EXCLUDED[name], jnp.asarray([[0, 1, -INF, 2], [1, 0, -INF, -100]], jnp.float32)

    def scanned(x):
        def body(c, _):
            return c, jnp.sum(jnp.sin(f(c)))

        return jnp.sum(jax.lax.scan(body, x, None, length=2)[1])

    def plain(x):
        return 2 * jnp.sum(jnp.sin(f(x)))

    v = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), jnp.float32)
    found, expected = (
        quick_jit(jax.grad(lambda x, g=g: jnp.vdot(jax.grad(g)(x), v)))(x) for g in (scanned, plain)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.any(np.asarray(found)[:, 2])

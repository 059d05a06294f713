"""All functions of rows on rows that break things, against the oracle in long double."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import U
from hostile_rows import (
    IGNORED,
    OPTIONS,
    ROWS,
    SIZES,
    Row,
    agree,
    cases,
    check_losses,
    spread_of,
)

import jaxsoftjac as jsj

pytestmark = pytest.mark.once

every_kind = pytest.mark.parametrize(
    ("dtype", "masked"),
    [("float32", False), ("float32", True), ("bfloat16", False), ("float16", True)],
)


@every_kind
@pytest.mark.parametrize("K", SIZES)
def test_softmax_and_its_products(K, dtype, masked):
    x, where, _, oracle = cases(K, dtype, masked)
    v = np.random.default_rng(3).normal(size=(ROWS, K)).astype(dtype)

    @jax.jit
    def both(x, v):
        sigma, pullback = jax.vjp(lambda x: jsj.softmax(x, where=where), x)
        pushed = jax.jvp(lambda x: jsj.softmax(x, where=where), (x,), (v,))[1]
        return sigma, pullback(v)[0], pushed, jsj.log_softmax(x, where=where)

    x, results = jax.device_get((x, both(x, v)))
    for i, (sigma, pulled, pushed, log_sigma) in enumerate(zip(*results, strict=True)):
        row, label = oracle[i], f"row {i}: {x[i]}"
        agree(sigma, row.softmax(), dtype, spread_of(row), label)
        if row.is_plain:
            exact = row.product(np.asarray(v[i], np.longdouble))
            agree(pulled, exact, dtype, spread_of(row), label)
            agree(pushed, exact, dtype, spread_of(row), label)
            agree(log_sigma, row.log_sigma, dtype, spread_of(row), label)
        elif row.is_empty:
            assert not np.any(pulled), label
            assert not np.any(pushed), label


@every_kind
@pytest.mark.parametrize("K", SIZES)
def test_logsumexp_and_entropy_with_their_gradients(K, dtype, masked):
    x, where, _, oracle = cases(K, dtype, masked)

    @jax.jit
    def both(x):
        lse = functools.partial(jsj.logsumexp, axis=-1, where=where)
        entropy = functools.partial(jsj.entropy, where=where)
        return [(f(x), jax.grad(lambda x, f=f: jnp.sum(f(x)))(x)) for f in (lse, entropy)]

    x, ((lse, sigma), (entropy, gradient)) = jax.device_get((x, both(x)))
    for i, row in enumerate(oracle):
        label = f"row {i}: {x[i]}"
        value, slope = row.entropy()
        if not 0 < value < 2.0**-110:  # made of what is flushed to 0
            agree(entropy[i], value, dtype, spread_of(row), label)
        if not row.has_nan and not row.has_inf:
            # The top and the logarithm are of opposite sign where they are nearly as large.
            rounding = 2 * U * abs(float(row.x.max())) if row.is_plain else 0
            agree(lse[i], row.log_normalizer, dtype, 0, label, rounding)
            agree(sigma[i], row.sigma, dtype, spread_of(row), label)
            if not 0 < np.abs(slope).sum() < 2.0**-110:
                agree(gradient[i], slope, dtype, spread_of(row) + 200, label)
        elif row.has_inf and not row.has_nan:
            assert lse[i] == np.inf


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "masked"), [("float32", False), ("float32", True)])
@pytest.mark.parametrize("K", SIZES)
def test_cross_entropy_with_every_option(K, dtype, masked, options):
    x, where, labels, oracle = cases(K, dtype, masked)

    @jax.jit
    def both(x):
        def loss(x):
            return jsj.cross_entropy(x, labels, where=where, ignore_index=IGNORED, **options)

        return loss(x), jax.grad(lambda x: jnp.sum(loss(x)))(x)

    check_losses(*both(x), x, labels, oracle, options)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("K", SIZES)
def test_kl_divergence_and_its_gradients(K, masked):
    x, where, _, oracle = cases(K, "float32", masked)
    y, others = jnp.roll(x, 1, 0), [oracle[i - 1] for i in range(len(oracle))]
    if masked:
        others = [Row(a, w) for a, w in zip(*map(np.asarray, (y, where)), strict=True)]

    @jax.jit
    def both(x, y):
        f = functools.partial(jsj.kl_divergence, where=where)
        return f(x, y), jax.grad(lambda x, y: jnp.sum(f(x, y)), argnums=(0, 1))(x, y)

    x, y, values, (by_model, by_target) = jax.device_get((x, y, *both(x, y)))
    for i, (q, p) in enumerate(zip(oracle, others, strict=True)):
        label = f"row {i}: {x[i]}, {y[i]}"
        if q.has_nan or p.has_nan or q.has_inf or p.has_inf:
            assert np.isnan(values[i]), label
        elif q.is_empty or p.is_empty:
            assert values[i] == 0, label
            assert not np.any(by_model[i]), label
            assert not np.any(by_target[i]), label
        elif ((np.asarray(p.sigma, np.float32) > 0) & ~q.kept).any():
            assert values[i] == np.inf, label
            assert np.isfinite(by_target[i]).all(), label
            difference = np.where(q.kept, q.sigma - p.sigma, 0)
            np.testing.assert_allclose(by_model[i], difference.astype(float), atol=64 * U)
        else:
            both_kept = p.kept & q.kept & (p.normal_sigma() > 0)
            ratio = np.where(both_kept, p.log_sigma, 0) - np.where(both_kept, q.log_sigma, 0)
            exact = np.sum(p.sigma * ratio)
            # Each log has its own rounding, of the size of the entropies that are subtracted.
            size = float(np.sum(p.sigma * np.abs(ratio)) + 1e-30)
            beyond = exact > np.finfo(np.float32).max
            error = 0 if beyond else abs(float(values[i]) - float(exact))
            assert error <= 400 * U * max(size, 1e-3), (label, values[i], exact)
            assert np.isinf(values[i]) == beyond, (label, values[i], exact)
            if size < 1e30:
                hot = int(np.argmax(np.maximum(q.sigma, p.sigma)))
                difference = q.sigma - p.sigma
                difference[hot] = -np.sum(np.delete(difference, hot))
                # Nearly equal rows: what their own rounding makes of the difference.
                size = float(np.abs(difference).sum())
                agree(by_model[i], difference, "float32", 64 + 16 / max(size, 0.1), label, 2.0**-60)


def test_there_are_enough_cases():
    rows_of = len(SIZES) * ROWS
    assert 4 * rows_of * 4 + 4 * rows_of * 2 + 2 * rows_of * len(OPTIONS) + 2 * rows_of >= 2000

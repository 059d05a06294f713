"""sparsemax, 1.5-entmax and their losses on rows that break things, and at real sizes."""

import jax
import numpy as np
import pytest
from hostile_rows import ROWS, Row, rows
from plain_entmax import long_entmax, long_jacobian

import jaxsoftjac as jsj

pytestmark = pytest.mark.once


def exact_loss(z, p, label, alpha):
    """⟨p, z⟩ − z_c + H(p), measured from the top, in long double."""
    d = z - z.max()
    alpha = np.longdouble(alpha)
    return (p * np.where(p > 0, d, 0)).sum() - d[label] + (p - p**alpha).sum() / alpha / (alpha - 1)


def check_plain(row, label, v, alpha, found):
    """A row with a value: p, both products with J, and the loss."""
    p, pulled, pushed, loss = found
    z = np.where(row.kept, row.x, -np.longdouble(1e39))
    exact = long_entmax(z, alpha)
    assert np.abs(p - exact).max() < 1e-6, (z, p)
    product = long_jacobian(np.asarray(p, np.longdouble), alpha) @ v
    size = max(np.abs(product).sum(), 1e-30)
    assert np.abs(pulled - product).sum() <= 1e-4 * size, (z, pulled, product)
    assert np.abs(pushed - product).sum() <= 1e-4 * size, (z, pushed, product)
    if row.kept[label]:
        expected = exact_loss(z, exact, label, alpha)
        if expected < np.finfo(np.float32).max:
            assert abs(loss - expected) <= 1e-5 * expected + 1e-6, (z, loss, expected)
    else:
        assert loss == np.inf, z


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0])
@pytest.mark.parametrize("K", [1, 5, 33])
def test_hostile_rows(K, alpha):
    random = np.random.default_rng([K, 3])
    x, where, labels = rows(random, ROWS, K, "float32")
    v = random.normal(size=x.shape).astype(np.float32)
    labels = np.clip(labels, 0, K - 1)

    @jax.jit
    def everything(x, v):
        def f(x):
            return jsj.entmax(x, alpha, where=where)

        p, pullback = jax.vjp(f, x)
        loss = jsj.entmax_loss(x, labels, alpha, where=where)
        return p, pullback(v)[0], jax.jvp(f, (x,), (v,))[1], loss

    for i, found in enumerate(zip(*map(np.asarray, everything(x, v)), strict=True)):
        row = Row(x[i], where[i])
        if row.is_plain:
            check_plain(row, labels[i], v[i], alpha, found)
        elif row.is_empty:
            assert not np.any(found[1]), x[i]
            assert not np.any(found[2]), x[i]
        else:
            assert np.isnan(found[0][where[i]]).all(), x[i]
            assert np.isnan(found[3]), x[i]


@pytest.mark.slow  # of use as compiled
@pytest.mark.parametrize("shape", [(1257, 10), (40, 1000), (2, 50000)])
def test_real_sizes(shape):
    random = np.random.default_rng(0)
    x, v = 2 * random.normal(size=(2, *shape)).astype(np.float32)

    @jax.jit
    def both(x, v):
        members = [jax.vjp(f, x) for f in (jsj.entmax, jsj.sparsemax)]
        return [(p, pullback(v)[0]) for p, pullback in members]

    found = jax.tree.map(np.asarray, both(x, v))
    for alpha, (p, pulled) in zip((1.5, 2.0), found, strict=True):
        exact = long_entmax(x, alpha)
        assert np.abs(p - exact).max() < 1e-6
        s = np.where(exact > 0, exact ** np.longdouble(2 - alpha), 0)
        product = s * (v - (s * v).sum(-1, keepdims=True) / s.sum(-1, keepdims=True))
        assert np.abs(pulled - product).max() <= 1e-3 * np.abs(product).max()

"""sparsemax and entmax: values, structure, α and its derivative, and rows that break things."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from plain_entmax import long_entmax, long_jacobian

import jaxsoftjac as jsj

ALPHAS = (1.0, 1.1, 1.5, 1.75, 2.0, 3.0, 4.0)
STATIC = (1.0, 1.3, 1.5, 2.0, 3.0)
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def rows(K, scale=1.0, dtype="float32", count=8):
    random = np.random.default_rng([K, int(10 * scale)])
    return jnp.asarray(random.normal(size=(count, K)) * scale, dtype)


@quick_jit
def every_alpha(x):
    """Pairs of α and p: α as a number, and as an array."""
    array = jnp.asarray(ALPHAS, x.dtype)[:, None]
    learned = jsj.entmax(jnp.broadcast_to(x, (len(ALPHAS), *x.shape)), array)
    numbers = [(jnp.asarray(a), jsj.entmax(x, a)) for a in STATIC]
    return numbers + list(zip(array[:, 0], learned, strict=True))


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("K", [1, 7, 300])
def test_values_have_all_digits(K, scale):
    x = rows(K, scale, WIDE)
    for alpha, p in every_alpha(x):
        error = np.abs(np.asarray(p, np.longdouble) - long_entmax(x, alpha)).max()
        assert error <= 8 * EPS[str(x.dtype)], (alpha, error)
        close(jnp.sum(p, -1), np.ones(len(x)))


@pytest.mark.parametrize("alpha", ALPHAS[1:])
def test_a_class_that_hardly_belongs_to_the_support(alpha):
    """With two classes p₁^β − p₂^β = β·gap. For α > 2 p₂ is steep in the threshold at its edge.

    The threshold is the sum of two floats: for α > 3 its last bit is ε^{2/β} of such a class.
    """
    beta, inside = np.longdouble(alpha - 1), 10.0 ** -np.arange(1, 9)
    gap = (1 + np.concatenate([-inside, inside])).astype(WIDE) / WIDE.type(beta)
    low, high = np.zeros_like(gap, np.longdouble), np.full_like(gap, 0.5, np.longdouble)
    for _ in range(90):
        p = (low + high) / 2
        is_low = (1 - p) ** beta - p**beta > beta * gap.astype(np.longdouble)
        low, high = np.where(is_low, p, low), np.where(is_low, high, p)
    found = jsj.entmax(jnp.stack([np.zeros_like(gap), -gap], -1), alpha)
    error = np.abs(np.asarray(found[:, 1], np.longdouble) - low).max()
    eps = EPS[str(found.dtype)]
    assert error <= max(8 * eps, eps ** (2 / (alpha - 1)))


def test_alpha_1_is_softmax_and_alpha_2_sparsemax_to_the_digit():
    x = rows(9)
    np.testing.assert_array_equal(jsj.entmax(x, 1), jsj.softmax(x))
    np.testing.assert_array_equal(jsj.entmax(x, 2), jsj.sparsemax(x))


def test_an_alpha_for_each_head():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), WIDE)
    alpha = jnp.asarray([[1.0], [1.5], [2.0]], WIDE)

    @quick_jit
    def both(x):
        last = jsj.entmax(x, alpha)
        first = jsj.entmax(jnp.moveaxis(x, -1, 0), alpha, axis=0)
        heads = [jsj.softmax(x[:, 0]), jsj.entmax(x[:, 1]), jsj.sparsemax(x[:, 2])]
        return last, jnp.moveaxis(first, 0, -1), jnp.stack(heads, 1)

    last, first, expected = both(x)
    close(last, expected)
    close(first, expected)


@quick_jit
def jacobians(x):
    return [(jsj.entmax(x, a), jax.jacfwd(lambda x, a=a: jsj.entmax(x, a))(x)) for a in STATIC]


def test_the_jacobian_is_that_of_the_family():
    x = rows(7, 0.4, WIDE)[0]
    for alpha, (p, J) in zip(STATIC, jacobians(x), strict=True):
        exact = long_jacobian(long_entmax(x, alpha), alpha)
        close(J, exact, scale=float(np.abs(exact).max()) * max(1, 10 * (alpha - 2)))
        close(J, J.T)
        close(J.sum(0), np.zeros(7), scale=float(np.abs(exact).max()))
        eigenvalues = np.linalg.eigvalsh(np.asarray(J, np.float64))
        large = 1e-5 * eigenvalues.max()
        assert eigenvalues.min() > -large
        assert (eigenvalues > large).sum() == (np.asarray(p) > 0).sum() - 1


@quick_jit
def by_alpha(x, a):
    return jax.jvp(lambda a: jsj.entmax(x, a), (a,), (jnp.ones_like(a),))[1]


@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.5, 2.0, 2.5])
def test_the_derivative_by_alpha(alpha):
    x, h = rows(6, 0.5, WIDE), 1e-6
    a = jnp.full(8, alpha, WIDE)
    exact = long_entmax(x, alpha + h) - long_entmax(x, max(alpha - h, 1))
    exact = exact / np.longdouble(min(2 * h, h + alpha - 1))
    derivative = quick_jit(
        lambda a: jax.jvp(lambda a: jsj.entmax(x, a), (a,), (jnp.ones(8, WIDE),))
    )
    np.testing.assert_allclose(derivative(a)[1], exact.astype(float), atol=2e-5)
    close(jnp.sum(derivative(a)[1], -1), np.zeros(8))


def test_the_derivative_by_alpha_in_both_modes_and_twice():
    x, a = rows(5, 0.5, WIDE), jnp.linspace(1, 3, 8, dtype=WIDE)

    def f(a):
        return jnp.sum(jnp.sin(3 * jsj.entmax(x, a)))

    forward, reverse, twice = quick_jit(
        lambda a: (jax.jacfwd(f)(a), jax.grad(f)(a), jax.jvp(jax.grad(f), (a,), (a,))[1])
    )(a)
    close(forward, reverse)
    if WIDE == jnp.float64:
        h = 1e-6
        gradient = quick_jit(jax.grad(f))
        middle = (gradient(a + h * a) - gradient(a - h * a))[1:] / (2 * h)
        np.testing.assert_allclose(twice[1:], middle, rtol=1e-4, atol=1e-6)


def test_the_limits_and_the_loss_by_alpha():
    """α → 1 and 2 from values beside them; ∂/∂α of p and of the loss by finite differences."""
    x, h = rows(6, 0.5, WIDE), 1e-5 if WIDE == jnp.float64 else 1e-2
    alphas = jnp.asarray([1, 1 + h, 2 - h, 2, 2 + h], WIDE)[:, None]

    @quick_jit
    def values_and_slopes(x, alphas):
        x = jnp.broadcast_to(x, (5, *x.shape))
        alphas = jnp.broadcast_to(alphas, x.shape[:-1])

        def both(alphas):
            labels = jnp.full(alphas.shape, 2)
            return jsj.entmax(x, alphas), jsj.entmax_loss(x, labels, alphas)

        return jax.jvp(both, (alphas,), (jnp.ones_like(alphas),))

    (p, loss), slopes = values_and_slopes(x, alphas)
    close(p[0], jsj.softmax(x))
    close(p[3], jsj.sparsemax(x))
    close(loss[0], jsj.cross_entropy(x, 2))
    for value, slope in zip((p, loss), slopes, strict=True):
        np.testing.assert_allclose((value[1] - value[0]) / h, slope[0], atol=20 * h)
        np.testing.assert_allclose((value[4] - value[2]) / (2 * h), slope[3], atol=20 * h)
        assert np.abs(slope[0]).max() > 0.05


def test_permuted_and_shifted_rows():
    x, order = rows(7, 0.5, WIDE), np.random.default_rng(1).permutation(7)
    kinds = every_alpha(x), every_alpha(x[:, order]), every_alpha(x + 8)
    for (_, a), (_, b), (_, c) in zip(*kinds, strict=True):
        close(b, a[:, order])
        close(c, a)


@pytest.mark.once
def test_adversarial_rows_need_few_steps():
    """Depths that Newton's method takes away one by one; the theory bounds the steps."""
    x = jnp.asarray(-np.cumsum(2.0 ** -np.arange(40.0))[None] / 2, jnp.float32)
    x = jnp.concatenate([x, -(1 - 2.0 ** -jnp.arange(40.0, dtype=jnp.float32))[None]])
    for alpha in (1.5, 2.0):
        error = np.abs(np.asarray(jsj.entmax(x, alpha), np.longdouble) - long_entmax(x, alpha))
        assert error.max() < 1e-6


HOSTILE = np.array(
    [
        [1e30, -1e30, 0, 5],
        [-1e30, -1e30, -1e30, -1e30],
        [3e38, -3e38, 3e38, 0],
        [-np.inf, 2, 1, -np.inf],
        [1, 0, 0, -1],  # on the edge of sparsemax's support
        [2, 0, 0, 0],  # and of that of 1.5-entmax
        [1e-40, 0, -1e-40, 0],
    ],
    np.float32,
)


@pytest.mark.once
def test_hostile_rows():
    x = jnp.asarray(HOSTILE)

    @jax.jit
    def values_and_derivatives(x):
        fs = [functools.partial(jsj.entmax, alpha=a) for a in (1.5, 2.0, 3.0)]
        fs.append(lambda x: jsj.entmax(x, jnp.linspace(1, 2, 7, dtype=jnp.float32)))
        v = jnp.cos(jnp.arange(28, dtype=x.dtype)).reshape(x.shape)
        vjp = [jax.vjp(f, x)[1](v)[0] for f in fs]
        hvp = [jax.jvp(lambda x, f=f: jax.vjp(f, x)[1](v)[0], (x,), (v,))[1] for f in fs]
        return [f(x) for f in fs], vjp, hvp

    with jax.debug_nans(True):
        values, vjp, hvp = values_and_derivatives(x)
    chex.assert_tree_all_finite((values, vjp, hvp))
    for alpha, p in zip((1.5, 2.0, 3.0), values, strict=False):
        exact = long_entmax(np.where(np.isinf(HOSTILE), -1e30, HOSTILE), alpha)
        assert np.abs(np.asarray(p, np.longdouble) - exact).max() < 1e-6
    for p, derivative in zip(values[:3], vjp[:3], strict=True):
        assert not np.any(np.asarray(derivative)[np.asarray(p) == 0])


@pytest.mark.once
@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_rows_without_a_value(alpha):
    f = functools.partial(jsj.entmax, alpha=alpha)
    x = jnp.asarray([[-np.inf] * 3, [np.nan, 0, 1], [np.inf, 0, 1], [0, 0, 0]], jnp.float32)
    p = f(x)
    assert np.isnan(p[:3]).all()
    close(p[3], np.full(3, 1 / 3), "float32")
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)
    assert not np.any(np.asarray(gradient)[0])
    where = np.array([[False] * 3, [False, True, True], [False, True, True], [True] * 3])
    p, gradient = f(x, where=where), jax.grad(lambda x: jnp.sum(f(x, where=where) ** 2))(x)
    chex.assert_tree_all_finite((p, gradient))
    assert not np.any(np.asarray(p)[~where])
    assert not np.any(np.asarray(gradient)[~where])
    assert f(jnp.zeros((2, 0))).shape == (2, 0)


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype):
    x = rows(33, 1.0, dtype)
    g = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(dtype)

    @jax.jit
    def value_and_vjp(x, g):
        p, pullback = jax.vjp(jsj.entmax, x)
        return p, pullback(g)[0]

    wide = value_and_vjp(x.astype(jnp.float32), g.astype(jnp.float32))
    for half, whole in zip(value_and_vjp(x, g), wide, strict=True):
        np.testing.assert_array_equal(half, whole.astype(dtype))


@pytest.mark.once
def test_one_residual_of_the_logits_size():
    x = jnp.ones((3, 40), jnp.float32)
    for f in (jsj.sparsemax, jsj.entmax, lambda x: jsj.entmax(x, 1.3)):
        kept = [a for a in jax.tree.leaves(jax.vjp(f, x)[1]) if a.size >= x.size]
        assert [a.shape for a in kept] == [x.shape]


@pytest.mark.once
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_a_sharded_batch(axis_type):
    mesh = jax.make_mesh((4,), ("n",), axis_types=(getattr(jax.sharding.AxisType, axis_type),))
    x = rows(6)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("n")))
    alpha = jnp.linspace(1, 2, 8, dtype=jnp.float32)
    with jax.set_mesh(mesh):
        placed = jax.device_put(alpha, jax.NamedSharding(mesh, jax.P("n")))
        derivative = quick_jit(jax.grad(lambda x, a: jnp.sum(jnp.sin(jsj.entmax(x, a))), (0, 1)))
        jax.tree.map(close, derivative(sharded, placed), derivative(x, alpha))
        static = quick_jit(jax.grad(lambda x: jnp.sum(jnp.sin(jsj.sparsemax(x)))))
        close(static(sharded), static(x))


@pytest.mark.once
def test_errors():
    x = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="`x` must be real, got dtype bool"):
        jsj.sparsemax(x > 0)
    with pytest.raises(TypeError, match="`alpha` must be real"):
        jsj.entmax(x, 1j)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[1, 4\], got 0.5"):
        jsj.entmax(x, 0.5)
    with pytest.raises(ValueError, match=r"`alpha` must broadcast to \(2,\), got \(3,\)"):
        jsj.entmax(x, jnp.ones(3))
    with pytest.raises(ValueError, match="`axis` must lie in"):
        jsj.entmax(x, axis=2)
    with pytest.raises(ValueError, match="`where` must broadcast"):
        jsj.entmax(x, where=np.ones(4, bool))
    assert np.isnan(jsj.entmax(x, jnp.asarray([0.5, 1.5]))[0]).all()
    assert jsj.sparsemax(np.array([3, 1])).dtype == jnp.result_type(float)

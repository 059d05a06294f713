"""Edge rows of softmax, log_softmax and logsumexp: values as jax.nn's, derivatives never NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, f32, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxsoftjac as jsj

INF, NAN = np.inf, np.nan


def over_the_last_axis(logsumexp):
    """A logsumexp with the default axis of softmax."""

    def function(x, axis=-1, **options):
        return logsumexp(x, axis=axis, **options)

    return function


FUNCTIONS = {
    "softmax": (jsj.softmax, jax.nn.softmax),
    "log_softmax": (jsj.log_softmax, jax.nn.log_softmax),
    "logsumexp": (over_the_last_axis(jsj.logsumexp), over_the_last_axis(jax.nn.logsumexp)),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


@functools.partial(quick_jit, static_argnums=0)
def derivatives(f, x, t=None, where=None):
    """Jacobian by both modes, and two HVPs of a smooth function of f."""
    f = f if where is None else functools.partial(f, where=where)
    t = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) if t is None else t

    def smooth(x):
        y = f(x)
        return jnp.sum(jnp.sin(jnp.where(jnp.isfinite(y), y, 0)))

    return (
        jax.jacfwd(f)(x),
        jax.jacrev(f)(x),
        jax.jvp(jax.grad(smooth), (x,), (t,))[1],
        jax.grad(lambda x: jnp.vdot(jax.grad(smooth)(x), t))(x),
    )


@pytest.mark.once
@each_function
@pytest.mark.parametrize(
    "x",
    [
        f32(2, 1, 0.5),
        f32(2, 1, 0.5, -0.5),
        f32(3),
        f32(0, -INF, 1),
        f32(-INF, 5),
        f32(-INF, -INF),
        f32(0, INF, 1),
        f32(0, NAN, 1),
        f32(INF, -INF),
        f32(INF, INF),
        f32(3e38, -3e38),
        f32(1e-40, 0),
        jnp.zeros((2, 0), jnp.float32),
        jnp.asarray([1, 0, 3], jnp.int8),
    ],
    ids=str,
)
def test_values_are_those_of_jax_nn(name, x):
    ours, theirs = FUNCTIONS[name]
    expected = theirs(x.astype(jnp.float32))  # jax.nn subtracts integers before it casts them
    for how in (lambda f: f, jax.jit):
        np.testing.assert_allclose(how(ours)(x), expected, rtol=3e-6, atol=1e-7)


@each_function
def test_unsigned_integers_do_not_wrap(name):
    ours, _ = FUNCTIONS[name]
    x = np.array([1, 0, 1], np.uint8)
    close(ours(x), ours(x.astype(jnp.result_type(float))))


def test_the_seeds_own_numbers():
    sigma = np.array([0.6285, 0.2312, 0.1402])
    np.testing.assert_allclose(jsj.softmax(f32(2, 1, 0.5)), sigma, atol=5e-5)
    np.testing.assert_allclose(
        jsj.softmax_vjp(f32(0.1, -0.3, 0.2), jsj.softmax(f32(2, 1, 0.5))),
        (np.diag(sigma) - np.outer(sigma, sigma)) @ [0.1, -0.3, 0.2],
        atol=5e-5,
    )


@pytest.mark.once
@each_function
@pytest.mark.parametrize("axis", [0, 1, -1, 2, (0, 2), (2, 1), (-1, 0), None, ()], ids=str)
def test_axes_are_those_of_jax_nn(name, axis):
    ours, theirs = FUNCTIONS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)

    @quick_jit
    def values_and_jvps(x):
        each = (functools.partial(f, axis=axis) for f in (ours, theirs))
        return [jax.jvp(f, (x,), (jnp.cos(x),)) for f in each]

    jax.tree.map(close, *values_and_jvps(x))


@each_function
def test_a_scalar_is_a_row_of_one_class(name):
    ours, theirs = FUNCTIONS[name]
    close(ours(f32(3)[0], axis=None), theirs(f32(3)[0], axis=None))
    with pytest.raises(ValueError, match="`axis`"):
        jsj.softmax(f32(3)[0])


@each_function
def test_one_class(name):
    expected = {"softmax": 0, "log_softmax": 0, "logsumexp": 1}[name]
    for d in derivatives(FUNCTIONS[name][0], f32(3.7))[:2]:
        assert np.all(np.asarray(d) == expected)


@pytest.mark.once
@each_function
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_without_finite_logits_has_gradient_zero(name, dtype):
    x = jnp.asarray([[-INF, -INF, -INF], [0, 1, 2]], dtype)
    for d in derivatives(FUNCTIONS[name][0], x):
        assert np.all(np.isfinite(np.asarray(d, np.float32)))
        assert np.any(np.asarray(d, np.float32) != 0)
        if d.ndim == 2:
            assert np.all(np.asarray(d[0], np.float32) == 0)


@pytest.mark.once
@each_function
@pytest.mark.parametrize("junk", [NAN, INF, -INF])
def test_excluded_classes_are_ignored(name, junk):
    ours, theirs = FUNCTIONS[name]
    where = np.array([[True, False, True], [False, False, False]])
    x = jnp.broadcast_to(f32(0.5, junk, 2), (2, 3))
    np.testing.assert_allclose(ours(x, where=where), theirs(x, where=where), rtol=1e-6)
    t = jnp.broadcast_to(f32(1, 9, -2), (2, 3))
    kept = derivatives(ours, x, t, where)
    alone = derivatives(ours, f32(0.5, 2), f32(1, -2))
    for d, expected in zip(kept, alone, strict=True):
        assert np.all(np.isfinite(d))
        axes = (0,) if d.ndim == 2 else (0, slice(None), 0) if d.ndim == 4 else (0, 0)
        selected = d[axes] if d.ndim != 4 else d[0, :, 0]
        ix = np.ix_(*([0, 2] if n == 3 else [0] for n in selected.shape))
        close(np.asarray(selected)[ix].reshape(expected.shape), expected)


@pytest.mark.once
@each_function
def test_some_minus_infinities(name):
    f = FUNCTIONS[name][0]
    with_them = derivatives(f, f32(0.5, -INF, 2, -INF), f32(1, 9, -2, 9))
    without = derivatives(f, f32(0.5, 2), f32(1, -2))
    for d, expected in zip(with_them, without, strict=True):
        d = np.array(d)
        places = np.ix_(*([0, 2] if n == 4 else [0] for n in d.shape))
        close(d[places].reshape(expected.shape), expected)
        d[places] = 0
        assert np.all(d == 0)


@pytest.mark.once
@each_function
def test_a_nan_is_never_masked_away(name):
    f = FUNCTIONS[name][0]
    x = f32(0, NAN, 1)
    assert np.all(np.isnan(f(x)))
    assert np.all(np.isnan(jax.grad(lambda x: jnp.sum(f(x)))(x)))
    assert np.all(np.isnan(jax.jvp(f, (x,), (jnp.ones_like(x),))[1]))


@pytest.mark.once
@pytest.mark.parametrize("v", [INF, -INF, NAN])
def test_a_cotangent_that_is_not_finite_where_sigma_is_zero(v):
    x, g = f32(0, 1, -INF, -300), f32(1, 2, v, v)
    expected = jsj.softmax_vjp(f32(1, 2), jsj.softmax(f32(0, 1)))
    for result in (
        jax.vjp(jsj.softmax, x)[1](g)[0],
        jax.jvp(jsj.softmax, (x,), (g,))[1],
        jax.jit(jsj.softmax_vjp)(g, jsj.softmax(x)),
    ):
        close(result, jnp.concatenate([expected, f32(0, 0)]))


def test_logsumexp_options_are_those_of_jax_nn():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    b = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)), jnp.float32)
    several = (
        {},
        {"axis": 1, "keepdims": True},
        {"return_sign": True},
        {"axis": 0, "b": b, "return_sign": True},
        {"axis": (0, 1), "where": b > 0, "return_sign": True},
        {"axis": -1, "b": b, "where": b > 0, "keepdims": True},
    )
    functions = jsj.logsumexp, jax.nn.logsumexp
    both = quick_jit(lambda x: [[f(x, **options) for options in several] for f in functions])
    jax.tree.map(close, *both(x))
    assert jsj.logsumexp(jnp.zeros((2, 0)), axis=-1).tolist() == [-INF, -INF]
    assert jsj.logsumexp(f32(-INF, -INF), return_sign=True)[1] == 0


@pytest.mark.parametrize("f", [jsj.softmax, jsj.log_softmax, jsj.logsumexp])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.array([True, False]),), TypeError, "`x` must be real, got dtype bool"),
        ((np.array([1j]),), TypeError, "`x` must be real, got dtype complex"),
        ((np.zeros(3, np.float32), 1), ValueError, r"`axis` must lie in \[-1, 1\)"),
        ((np.zeros((3, 3), np.float32), (0, -2)), ValueError, "`axis` must not name an axis twice"),
        ((np.zeros(3, np.float32), 1.5), TypeError, "`axis` must be an int.*got float"),
    ],
)
def test_bad_input(f, arguments, error, message):
    with pytest.raises(error, match=message):
        f(*arguments)


@pytest.mark.parametrize("f", [jsj.softmax, jsj.log_softmax, jsj.logsumexp])
def test_bad_where(f):
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="`where` must be boolean, got dtype float32"):
        f(x, where=x)
    with pytest.raises(ValueError, match=r"`where` must broadcast to shape \(2, 3\), got \(2,\)"):
        f(x, where=np.array([True, False]))


def bits(*shape):
    """float32 arrays of any bit pattern."""
    return hnp.arrays(np.uint32, shape, elements=st.integers(0, 2**32 - 1)).map(
        lambda a: a.view(np.float32)
    )


@jax.jit
def everything(x, v):
    sigma, product = jax.jvp(jsj.softmax, (x,), (v,))
    log_sigma, centred = jax.jvp(jsj.log_softmax, (x,), (v,))
    total, mean = jax.jvp(lambda x: jsj.logsumexp(x, axis=-1), (x,), (v,))
    pulled = jax.vjp(jsj.softmax, x)[1](v)[0]
    return sigma, log_sigma, total, product, pulled, centred, mean


@pytest.mark.once
@settings(max_examples=300, deadline=None)
@given(bits(5), bits(5))
def test_never_nan_where_the_table_says_finite(x, v):
    v = np.where(np.isfinite(v), np.clip(v, -1e30, 1e30), 0).astype(np.float32)
    sigma, log_sigma, total, product, pulled, centred, mean = everything(x, v)
    if np.any(np.isnan(x)) or np.any(x == INF):
        assert np.all(np.isnan(sigma))
        return
    if np.all(x == -INF):
        assert total == -INF
        assert not any(np.any(a) for a in (product, pulled, centred, mean))
        return
    assert np.all((sigma >= 0) & (sigma <= 1))
    assert not np.any(np.isnan(log_sigma))
    assert np.all(log_sigma <= 0)
    for derivative in (product, pulled, centred, mean):
        assert np.all(np.isfinite(derivative))
    assert np.all(np.asarray(product)[x == -INF] == 0)

"""Cross-entropy: exact in the tails, the Hessian J in every mode, every option and edge."""

import functools

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import WIDE, U, close, f32, long_softmax, quick_jit

import jaxsoftjac as jsj

INF = np.inf
HOWS = [lambda f: f, jax.jit]
each_how = pytest.mark.parametrize("how", HOWS)
loss_and_gradient = jax.value_and_grad(jsj.cross_entropy)


def exact_cross_entropy(x, label):
    """Value and gradient in long double."""
    sigma, log_sigma, _ = long_softmax(x)
    gradient = sigma.copy()
    gradient[label] = -np.delete(sigma, label).sum()
    return -log_sigma[label], gradient


@pytest.mark.once
@pytest.mark.parametrize("gap", [0, 16, 40, 80])
def test_long_double_agrees_with_mpmath(gap):
    row = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    row[1] += gap
    with mpmath.workdps(60):
        rest = mpmath.fsum(mpmath.exp(float(a - row[1])) for a in np.delete(row, 1).astype(float))
        exact = [float(a) for a in (mpmath.log1p(rest), -rest / (1 + rest))]
    value, gradient = exact_cross_entropy(row, 1)
    np.testing.assert_allclose([float(value), float(gradient[1])], exact, rtol=1e-14)


@pytest.mark.once
@each_how
@pytest.mark.parametrize("K", [2, 10, 1000, 100_000])
@pytest.mark.parametrize("gap", [0, 8, 16, 40, 80])
def test_value_and_gradient_keep_their_digits(how, K, gap):
    row = np.random.default_rng(K).normal(size=K).astype(np.float32)
    row[1] += gap
    for label in (1, 0):  # the confident class, and one that is wrong
        value, gradient = exact_cross_entropy(row, label)
        v, g = how(loss_and_gradient)(row, label)
        allowed = (np.ptp(row) + 16) * U
        np.testing.assert_allclose(v, value, rtol=allowed)
        normal = np.abs(gradient) > 1e-36
        np.testing.assert_allclose(np.asarray(g)[normal], gradient[normal], rtol=allowed)
        # Each entry is rounded by itself: the sum is 0 to a few units of what is summed.
        assert abs(np.sum(np.asarray(g, np.float64))) <= 8 * U * np.sum(np.abs(gradient))


@jax.jit
def hessians(x):
    """Either mode over either mode."""

    def loss(x):
        return jsj.cross_entropy(x, 0)

    def pushed(x):
        along = jax.vmap(lambda v: jax.jvp(loss, (x,), (v,))[1])
        return along(jnp.eye(4, dtype=x.dtype))

    first = jax.grad(loss), pushed
    return [outer(inner)(x) for inner in first for outer in (jax.jacfwd, jax.jacrev)]


@pytest.mark.once
@pytest.mark.parametrize("gap", [0, 16, 40, 80])
def test_the_hessian_is_the_jacobian_in_every_mode(gap):
    x = f32(gap, 0, 1, -1)
    J = np.asarray(jsj.softmax_jacobian(x))
    for H in hessians(x):
        assert np.abs(np.asarray(H) - J).sum() <= 16 * U * np.abs(J).sum()
    H = np.asarray(jsj.cross_entropy_hessian(x, 0))
    chex.assert_trees_all_equal(H, H.T, J)
    assert np.linalg.eigvalsh(H.astype(np.float64))[0] > -1e-6 * np.max(H)


def plain(x, target, where, smoothing, z_loss):
    """Every option in float64, as torch.nn.functional.cross_entropy means them."""
    x = np.where(where, x, -np.inf)
    total = np.log(np.exp(x).sum(-1, keepdims=True))
    target = (1 - smoothing) * target + smoothing * where / where.sum(-1, keepdims=True)
    terms = np.where(target == 0, 0, target * (total - np.where(where, x, 0)))
    return terms.sum(-1) + z_loss * total[..., 0] ** 2


@functools.partial(quick_jit, static_argnames=("label_smoothing", "z_loss"))
def with_options(x, labels, probabilities, where, **options):
    """Of labels on either axis, of probabilities, and the gradient of the first."""
    loss = functools.partial(jsj.cross_entropy, labels=labels, ignore_index=-100, **options)
    of_rows = functools.partial(loss, where=where)
    of_columns = loss(x.T, axis=0, where=where.T)
    of_probabilities = jsj.cross_entropy(x, probabilities, where=where, **options)
    gradient = jax.grad(lambda x: jnp.sum(of_rows(x)))(x)
    return of_rows(x), of_columns, of_probabilities, gradient


LOW = [pytest.param(dtype, marks=pytest.mark.once) for dtype in ("bfloat16", "float16")]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [WIDE, *LOW])
def test_options_against_plain_float64(smoothing, z_loss, masked, dtype):
    random = np.random.default_rng(3)
    x = jnp.asarray(random.normal(size=(5, 6)) * 2, dtype)
    exact = np.asarray(x, np.float64)
    labels = np.array([0, 3, -100, 5, 1])
    where = np.ones((5, 6), bool)
    if masked:
        where[:, 2] = where[1, 4] = False
    probabilities = np.exp(exact[::-1]) * where
    probabilities = jnp.asarray(probabilities / probabilities.sum(-1, keepdims=True), dtype)
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    of_rows, of_columns, of_probabilities, gradient = with_options(
        x, labels, probabilities, where, **options
    )
    one_hot = np.eye(6)[np.maximum(labels, 0)]
    expected = plain(exact, one_hot, where, smoothing, z_loss) * (labels != -100)
    close(of_rows, expected)
    close(of_columns, expected)
    given = np.asarray(probabilities, np.float64)
    close(of_probabilities, plain(exact, given, where, smoothing, z_loss))
    gradient = np.asarray(gradient, np.float32)
    assert not np.any(gradient[2])
    assert not np.any(gradient[~where])


def test_labels_of_any_integer_kind():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 300)), jnp.float32)
    expected = jsj.cross_entropy(x, np.array([3, 200]))
    for dtype in (np.uint8, np.int16, np.uint32, np.int32):
        close(jsj.cross_entropy(x, np.array([3, 200], dtype)), expected)
    close(jsj.cross_entropy(x, 7), jsj.cross_entropy(x, np.array([7, 7])))


@each_how
def test_labels_out_of_range_spoil_their_own_example_only(how):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    labels = np.array([0, -1, 4, -100, 3, 255])
    loss = how(lambda x: jsj.cross_entropy(x, labels, ignore_index=-100))
    gradient = jax.grad(lambda x: jnp.sum(loss(x)))(x)
    nan = np.isin(labels, [-1, 4, 255])
    assert np.array_equal(np.isnan(loss(x)), nan)
    assert np.array_equal(np.isnan(gradient).all(-1), nan)
    assert np.array_equal(np.isnan(gradient).any(-1), nan)
    assert loss(x)[3] == 0
    hessian = jsj.cross_entropy_hessian(x, labels, ignore_index=-100)
    assert np.array_equal(np.isnan(hessian).any((1, 2)), nan)
    assert not np.any(hessian[3])


def test_an_excluded_label_costs_infinity():
    where = np.array([True, False, True])
    for x, options in ((f32(0, 1, 2), {"where": where}), (f32(0, -INF, 2), {})):
        loss, gradient = loss_and_gradient(x, 1, **options)
        assert loss == INF
        np.testing.assert_allclose(gradient, np.insert(jsj.softmax(f32(0, 2)), 1, 0))


@pytest.mark.once
@each_how
@pytest.mark.parametrize(
    ("x", "label", "loss", "gradient"),
    [
        ((-3e38, 3e38), 0, INF, (-1, 1)),
        ((-3e38, 3e38), 1, 0, (0, 0)),
        ((-INF, -INF, -INF), 1, INF, (0, 0, 0)),
        ((7, -INF, -INF), 0, 0, (0, 0, 0)),
        ((2, 2, 2), 1, np.log(3), (1 / 3, -2 / 3, 1 / 3)),
        ((5, 5, -INF), 0, np.log(2), (-1 / 2, 1 / 2, 0)),  # the label ties with the top
    ],
)
def test_the_label_at_the_edges(how, x, label, loss, gradient):
    v, g = how(loss_and_gradient)(f32(*x), label)
    np.testing.assert_allclose(v, loss, rtol=2 * U)
    np.testing.assert_allclose(g, gradient, rtol=2 * U)


@pytest.mark.once
@each_how
def test_a_tangent_at_an_excluded_class_is_not_read(how):
    x, v = f32(0, -INF, 1), f32(1, np.nan, 3)
    pushed = how(lambda x, v, label: jax.jvp(lambda x: jsj.cross_entropy(x, label), (x,), (v,))[1])
    for label in (0, 2):
        expected = pushed(x[::2], v[::2], label // 2)
        np.testing.assert_allclose(pushed(x, v, label), expected, rtol=4 * U)


@pytest.mark.once
@pytest.mark.parametrize("labels", [np.zeros(2, np.int32), np.full((2, 3), 1 / 3, np.float32)])
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"z_loss": 0.1}])
def test_a_row_without_classes_has_derivative_0_with_every_option(labels, options):
    def f(x):
        return jsj.cross_entropy(x, labels, **options)

    gradient = jax.grad(lambda x: jnp.sum(f(x)))
    modes = jax.jacfwd(f), jax.jacrev(f), jax.jacfwd(gradient), jax.jacrev(gradient)
    x = f32((0, 1, -INF), (-INF, -INF, -INF))
    for derivative in quick_jit(lambda x: [mode(x) for mode in modes])(x):
        assert np.all(np.isfinite(derivative))
        assert not np.any(np.asarray(derivative)[1])


@pytest.mark.once
def test_masked_and_infinite_logits_have_finite_derivatives():
    where = np.array([True, True, True, False])

    @quick_jit
    def derivatives(x):
        f = functools.partial(jsj.cross_entropy, labels=0, where=where, label_smoothing=0.1)
        return jax.grad(f)(x), jax.jacfwd(f)(x), jax.hessian(f)(x)

    gradient, *others = derivatives(f32(0, -INF, 1, np.nan))
    assert all(np.all(np.isfinite(d)) for d in (gradient, *others))
    assert np.all(np.asarray(gradient)[[1, 3]] == 0)


def test_all_ignored():
    options = {"ignore_index": 9, "z_loss": 0.1}
    value, gradient = loss_and_gradient(f32(0, 1, 2), 9, **options)
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_residual_of_the_logits_size(dtype):
    x = jnp.ones((6, 50), dtype)
    for f in (
        lambda x: jsj.cross_entropy(x, np.arange(6), label_smoothing=0.1, z_loss=0.1),
        jsj.entropy,
    ):
        leaves = jax.tree.leaves(jax.vjp(f, x)[1])
        assert [(a.shape, a.dtype) for a in leaves if a.size >= x.size] == [(x.shape, x.dtype)]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (np.ones((2, 3)), np.zeros(3, int)),
            {},
            ValueError,
            r"`labels` must have shape \(2,\), got \(3,\)",
        ),
        ((np.ones((2, 3)), np.zeros((2, 1), int)), {}, ValueError, r"shape \(2,\), got \(2, 1\)"),
        (
            (np.ones((2, 3)), np.ones(2)),
            {},
            ValueError,
            r"the shape \(2, 3\) of `logits`, got \(2,\)",
        ),
        ((np.ones((2, 3)), np.ones(2) > 0), {}, TypeError, "`labels` must be real, got dtype bool"),
        ((np.ones((2, 3)) > 0, 0), {}, TypeError, "`logits` must be real, got dtype bool"),
        ((np.ones(3), 0), {"axis": 1}, ValueError, "`axis` must lie in"),
        (
            (np.ones(3), 0),
            {"axis": 1.5},
            TypeError,
            "`axis` must be an int.*, got float",
        ),
        (
            (np.ones(3), 0),
            {"label_smoothing": 1.1},
            ValueError,
            r"`label_smoothing` must lie in \[0, 1\], got 1.1",
        ),
        (
            (np.ones(3), 0),
            {"label_smoothing": "a"},
            TypeError,
            "`label_smoothing` must be a real number, got str",
        ),
        (
            (np.ones(3), 0),
            {"z_loss": -1.0},
            ValueError,
            "`z_loss` must be ≥ 0 and finite, got -1.0",
        ),
        ((np.ones(3), np.ones(3)), {"ignore_index": 0}, ValueError, "`ignore_index` must be None"),
        ((np.ones(3), 0), {"where": np.ones(3)}, TypeError, "`where` must be boolean"),
    ],
)
def test_bad_input(arguments, options, error, message):
    arguments = tuple(
        a.astype(np.float32) if getattr(a, "dtype", None) == np.float64 else a for a in arguments
    )
    for f in (jsj.cross_entropy, jsj.cross_entropy_hessian):
        with pytest.raises(error, match=message):
            f(*arguments, **options)

"""Cross-entropy, entropy and KL: exact in the tails, every option and edge, sharded, in models."""

import functools
import re

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import WIDE, U, close
from jax.sharding import PartitionSpec as P

import jaxsoftjac as jsj

f32 = lambda *a: jnp.asarray(a, jnp.float32)  # noqa: E731
HOWS = [lambda f: f, jax.jit]


def exact_cross_entropy(x, label):
    """Value and gradient in 80 digits, as arrays of float."""
    with mpmath.workdps(80):
        e = [mpmath.exp(mpmath.mpf(float(a))) for a in x]
        total = mpmath.fsum(e)
        others = [a / total for i, a in enumerate(e) if i != label]
        gradient = [float(a / total) for a in e]
        gradient[label] = float(-mpmath.fsum(others))
        return float(-mpmath.log(e[label] / total)), np.array(gradient)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("K", [2, 10, 1000, 100_000])
@pytest.mark.parametrize("gap", [0, 8, 16, 40, 80])
def test_value_and_gradient_keep_their_digits(how, K, gap):
    x = np.random.default_rng(K).normal(size=K).astype(np.float32)
    for label in (1, 0):  # the confident class, and one that is wrong
        row = x.copy()
        row[1] += gap
        value, gradient = exact_cross_entropy(row, label)
        loss = how(jax.value_and_grad(lambda x: jsj.cross_entropy(x, label)))  # noqa: B023
        v, g = loss(row)
        allowed = (np.ptp(row) + 16) * U
        np.testing.assert_allclose(v, value, rtol=allowed)
        normal = np.abs(gradient) > 1e-36
        np.testing.assert_allclose(np.asarray(g)[normal], gradient[normal], rtol=allowed)
        # Each entry is rounded by itself: the sum is 0 to a few units of what is summed.
        assert abs(np.sum(np.asarray(g, np.float64))) <= 8 * U * np.sum(np.abs(gradient))


@pytest.mark.parametrize("gap", [0, 16, 40, 80])
def test_the_hessian_is_the_jacobian_in_every_mode(gap):
    x = f32(gap, 0, 1, -1)
    loss = lambda x: jsj.cross_entropy(x, 0)  # noqa: E731
    J = np.asarray(jsj.softmax_jacobian(x))
    g = jax.grad(loss)
    pushed = lambda x: jax.vmap(lambda v: jax.jvp(loss, (x,), (v,))[1])(jnp.eye(4, dtype=x.dtype))  # noqa: E731
    for H in (jax.jacfwd(g)(x), jax.jacrev(g)(x), jax.jacrev(pushed)(x), jax.jacfwd(pushed)(x)):
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


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [WIDE, "bfloat16", "float16"])
def test_options_against_plain_float64(smoothing, z_loss, masked, dtype):
    random = np.random.default_rng(3)
    x = jnp.asarray(random.normal(size=(5, 6)) * 2, dtype)
    exact = np.asarray(x, np.float64)
    labels = np.array([0, 3, -100, 5, 1])
    where = np.ones((5, 6), bool)
    if masked:
        where[:, 2] = where[1, 4] = False
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "where": where}
    one_hot = np.eye(6)[np.maximum(labels, 0)]
    expected = plain(exact, one_hot, where, smoothing, z_loss) * (labels != -100)
    loss = functools.partial(jsj.cross_entropy, ignore_index=-100, **options)
    close(jax.jit(loss)(x, labels), expected)
    close(loss(x.T, labels, axis=0, where=where.T), expected)
    gradient = jax.grad(lambda x: jnp.sum(loss(x, labels)))(x)
    assert not np.any(np.asarray(gradient[2], np.float32))
    assert not np.any(np.asarray(gradient, np.float32)[~where])
    probabilities = np.exp(exact[::-1]) * where
    probabilities /= probabilities.sum(-1, keepdims=True)
    given = jnp.asarray(probabilities, dtype)
    close(
        jsj.cross_entropy(x, given, **options),
        plain(exact, np.asarray(given, np.float64), where, smoothing, z_loss),
    )


def test_labels_of_any_integer_kind():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 300)), jnp.float32)
    expected = jsj.cross_entropy(x, np.array([3, 200]))
    for dtype in (np.uint8, np.int16, np.uint32, np.int32):
        close(jsj.cross_entropy(x, np.array([3, 200], dtype)), expected)
    close(jsj.cross_entropy(x, 7), jsj.cross_entropy(x, np.array([7, 7])))


@pytest.mark.parametrize("how", HOWS)
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
    x, where = f32(0, 1, 2), np.array([True, False, True])
    assert jsj.cross_entropy(x, 1, where=where) == np.inf
    assert jsj.cross_entropy(f32(0, -np.inf, 2), 1) == np.inf
    assert np.all(np.isfinite(jax.grad(lambda x: jsj.cross_entropy(x, 1, where=where))(x)))


def test_all_ignored_and_no_classes_left():
    x = f32(0, 1, 2)[None]
    loss = lambda x: jnp.sum(jsj.cross_entropy(x, np.array([9]), ignore_index=9, z_loss=0.1))  # noqa: E731
    assert loss(x) == 0
    assert not np.any(jax.grad(loss)(x))
    for f in (jsj.entropy, lambda x, where: jsj.kl_divergence(x, 2 * x, where=where)):
        f = functools.partial(f, where=np.zeros(3, bool))
        assert f(f32(0, 1, 2)) == 0
        assert not np.any(jax.grad(f)(f32(0, 1, 2)))


def test_one_residual_of_the_logits_size():
    x = jnp.ones((6, 50), jnp.bfloat16)
    for f in (
        lambda x: jsj.cross_entropy(x, np.arange(6), label_smoothing=0.1, z_loss=0.1),
        jsj.entropy,
    ):
        leaves = jax.tree.leaves(jax.vjp(f, x)[1])
        assert [(a.shape, a.dtype) for a in leaves if a.size >= x.size] == [(x.shape, x.dtype)]


@pytest.mark.parametrize("gap", [16, 40, 80])
def test_entropy_near_one_hot(gap):
    x = np.array([gap, 0, 1, -1], np.float32)
    with mpmath.workdps(80):
        e = [mpmath.exp(mpmath.mpf(float(a))) for a in x]
        s = [a / mpmath.fsum(e) for a in e]
        log_s = [mpmath.log(a) for a in s]
        H = -mpmath.fsum(a * b for a, b in zip(s, log_s, strict=True))
        gradient = [float(-a * (b + H)) for a, b in zip(s, log_s, strict=True)]
    for how in HOWS:
        v, g = how(jax.value_and_grad(jsj.entropy))(x)
        np.testing.assert_allclose(v, float(H), rtol=(gap + 32) * U)
        np.testing.assert_allclose(g, gradient, rtol=(2 * gap + 128) * U)


@pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-2, 0.3, 3, 40])
def test_kl_near_equality_and_far_from_it(distance):
    random = np.random.default_rng(1)
    x = random.normal(size=(8, 20)).astype(np.float32)
    y = (x + distance * random.normal(size=x.shape)).astype(np.float32)
    with mpmath.workdps(60):
        expected, gradients = [], []
        for a, b in zip(x, y, strict=True):
            q, p = ([mpmath.exp(mpmath.mpf(float(v))) for v in row] for row in (a, b))
            q, p = ([v / mpmath.fsum(row) for v in row] for row in (q, p))
            expected.append(
                float(mpmath.fsum(s * mpmath.log(s / t) for s, t in zip(p, q, strict=True)))
            )
            gradients.append([float(t - s) for s, t in zip(p, q, strict=True)])
    for how in HOWS:
        values = how(jsj.kl_divergence)(x, y)
        assert np.all(values >= 0)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        g = how(jax.grad(lambda x: jnp.sum(jsj.kl_divergence(x, y))))(x)
        size = np.abs(gradients).sum(-1, keepdims=True)
        np.testing.assert_allclose(
            np.asarray(g, np.float64) / size, np.array(gradients) / size, atol=1e-5
        )
    assert not np.any(jsj.kl_divergence(x, x))


def test_masked_and_infinite_logits_have_finite_gradients():
    x, y = f32(0, -np.inf, 1, np.nan), f32(1, -np.inf, 0, 2)
    where = np.array([True, True, True, False])
    for f in (
        lambda x: jsj.entropy(x, where=where),
        lambda x: jsj.kl_divergence(x, y, where=where),
        lambda x: jsj.kl_divergence(y, x, where=where),
        lambda x: jsj.cross_entropy(x, 0, where=where, label_smoothing=0.1),
    ):
        for d in (jax.grad(f)(x), jax.jacfwd(f)(x), jax.hessian(f)(x)):
            assert np.all(np.isfinite(d))
        assert np.all(np.asarray(jax.grad(f)(x))[[1, 3]] == 0)
    assert jsj.kl_divergence(f32(0, -np.inf), f32(0, 0)) == np.inf


def derivatives(loss, x):
    """Value, gradient, jvp and the three second-order nestings of a scalar function."""
    v = jnp.cos(x)
    pushed = lambda x: jax.jvp(loss, (x,), (v,))[1]  # noqa: E731
    return (
        loss(x),
        jax.grad(loss)(x),
        pushed(x),
        jax.jvp(jax.grad(loss), (x,), (v,))[1],
        jax.grad(pushed)(x),
        jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), v))(x),
    )


def test_classes_split_over_a_mapped_axis():
    mesh = jax.make_mesh((4,), ("k",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)) * 9, WIDE)
    labels = np.array([0, 5, -100])
    options = {"label_smoothing": 0.1, "z_loss": 0.1, "ignore_index": -100}

    def split_loss(x):
        local = functools.partial(jsj.cross_entropy, axis_name="k", **options)
        each = jax.shard_map(
            lambda x: local(x, labels), mesh=mesh, in_specs=P(None, "k"), out_specs=P()
        )
        return jnp.sum(jnp.sin(each(x)))

    def whole_loss(x):
        return jnp.sum(jnp.sin(jsj.cross_entropy(x, labels, **options)))

    both = jax.jit(lambda x: (derivatives(split_loss, x), derivatives(whole_loss, x)))(x)
    for split, whole in zip(*both, strict=True):
        close(split, whole)
    text = jax.jit(jax.grad(split_loss)).lower(x).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    over_vmap = jax.vmap(
        lambda x: jsj.cross_entropy(x, labels, axis_name="k", **options),
        axis_name="k",
    )(jnp.moveaxis(x.reshape(3, 4, 2), 1, 0))
    close(over_vmap[2], jsj.cross_entropy(x, labels, **options))
    rows_of_hessian = jax.shard_map(
        lambda x: jsj.cross_entropy_hessian(x, labels, axis_name="k", **options),
        mesh=mesh,
        in_specs=P(None, "k"),
        out_specs=P(None, "k", None),
    )
    close(rows_of_hessian(x), jsj.cross_entropy_hessian(x, labels, **options))


def gathers_of_rows(f, *arguments):
    """The all-gathers in the compiled program whose result holds whole rows of 64 classes."""
    text = f.lower(*arguments).compile().as_text()
    return [line for line in text.splitlines() if re.search(r"= \S*\b64\]\S* all-gather", line)]


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_classes_are_not_gathered(axis_type):
    mesh = jax.make_mesh(
        (2, 4), ("n", "k"), axis_types=2 * (getattr(jax.sharding.AxisType, axis_type),)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), jnp.float32)
    labels = np.array([0, 63, 17, 5], np.int32)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, P("n", "k")))
    with jax.set_mesh(mesh):
        placed = jax.device_put(labels, jax.NamedSharding(mesh, P("n")))
        losses = {
            "cross_entropy": lambda x, c: jnp.sum(jsj.cross_entropy(x, c, label_smoothing=0.1)),
            "entropy": lambda x, c: jnp.sum(jsj.entropy(x)),
            "kl_divergence": lambda x, c: jnp.sum(jsj.kl_divergence(x, jnp.sin(x))),
        }
        if axis_type == "Auto":  # what the check must find
            assert gathers_of_rows(jax.jit(lambda x: jnp.sort(x, axis=-1)), sharded)
        for loss in losses.values():
            gradient = jax.jit(jax.value_and_grad(loss))
            assert not gathers_of_rows(gradient, sharded, placed)
            for a, b in zip(gradient(sharded, placed), gradient(x, labels), strict=True):
                close(a, b)


def separable():
    random = np.random.default_rng(0)
    features = random.normal(size=(64, 5)).astype(np.float32)
    labels = (features @ random.normal(size=(5, 3))).argmax(-1).astype(np.int32)
    return features, labels


@jax.numpy_dtype_promotion("standard")  # optax's own updates mix floats and step counts
def test_trains_a_flax_model():
    features, labels = separable()
    model = nnx.Sequential(
        nnx.Linear(5, 16, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(16, 3, rngs=nnx.Rngs(1))
    )
    optimizer = nnx.Optimizer(model, optax.adam(3e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss = lambda model: jnp.mean(jsj.cross_entropy(model(features), labels))  # noqa: E731
        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    values = [float(step(model, optimizer)) for _ in range(30)]
    assert values[-1] < 0.5 * values[0]


@jax.numpy_dtype_promotion("standard")
def test_trains_an_equinox_model():
    features, labels = separable()
    model = eqx.nn.MLP(5, 3, 16, 1, key=jax.random.key(0), dtype=jnp.float32)
    optimizer = optax.adam(3e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        loss = lambda model: jnp.mean(jsj.cross_entropy(jax.vmap(model)(features), labels))  # noqa: E731
        value, gradient = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, value

    values = []
    for _ in range(30):
        model, state, value = step(model, state)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]


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
        ((np.ones(3), 0), {"axis": None}, TypeError, "`axis` must be an int, got NoneType"),
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
            "`label_smoothing` must be a Python number",
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


def test_bad_input_of_the_divergences():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="`target_logits` must have the shape of `logits`"):
        jsj.kl_divergence(x, x[:1])
    with pytest.raises(TypeError, match="`target_logits` must be real, got dtype bool"):
        jsj.kl_divergence(x, x > 0)
    with pytest.raises(TypeError, match="`axis` must be an int, got tuple"):
        jsj.entropy(x, axis=(0, 1))

"""linear_cross_entropy against cross_entropy of the logits: modes, options, edges, memory."""

import functools
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import WIDE, U, close, long_product, long_softmax, quick_jit, relative_error
from linear_cases import (
    LABELS,
    NAMES,
    NESTINGS,
    OPTIONS,
    N,
    V,
    blockwise,
    compiled_modes,
    dense,
    logits,
    modes,
    operands,
)

import jaxsoftjac as jsj
from jaxsoftjac.losses import linear_cross_entropy


@pytest.mark.parametrize(
    ("options", "reduction"),
    [("all", "none"), pytest.param("all", "mean", marks=pytest.mark.slow), ("plain", "sum")],
)
def test_agrees_with_cross_entropy_of_the_logits_in_every_mode(options, reduction):
    @functools.partial(quick_jit, static_argnums=0)
    def all_modes(loss, rows):
        f = functools.partial(loss, options=OPTIONS[options], reduction=reduction)
        return {name: modes(f)[name](rows) for name in NESTINGS}

    actual, expected = all_modes(blockwise, operands()), all_modes(dense, operands())
    jax.tree.map(functools.partial(close, scale=3.0), actual, expected)


@pytest.mark.parametrize("block_size", [1, 3, 5, 10, 11, 100])
def test_the_cut_of_the_vocabulary_does_not_matter(block_size):
    labels = np.abs(LABELS) % V

    def ours(rows):
        hidden, kernel, bias = map(rows.get, NAMES)
        losses = linear_cross_entropy(hidden, kernel, labels, bias=bias, block_size=block_size)
        return jnp.sum(jnp.sin(losses))

    def whole(rows):
        return jnp.sum(jnp.sin(jsj.cross_entropy(logits(rows), labels)))

    both = quick_jit(lambda rows: [jax.value_and_grad(f)(rows) for f in (ours, whole)])
    jax.tree.map(close, *both(operands()))


def test_log_normalizer_and_its_derivatives():
    def both(rows, function):
        losses, log_normalizer = function(rows)
        return jnp.sum(jnp.sin(losses)) + jnp.sum(jnp.cos(log_normalizer))

    def ours(rows):
        return blockwise(rows, {}, "none", return_log_normalizer=True)

    def plain(rows):
        return dense(rows, {}, "none"), jsj.logsumexp(logits(rows), axis=-1)

    for function in (ours, plain):
        shapes = jax.tree.map(jnp.shape, jax.eval_shape(function, operands()))
        assert shapes == ((N,), (N,))
    second = [
        quick_jit(modes(functools.partial(both, function=f))["forward over reverse"])
        for f in (ours, plain)
    ]
    jax.tree.map(close, second[0](operands()), second[1](operands()))


def exact_tail(z, v, label):
    """Loss, its gradient and Hessian product along v, of a row of logits in long double."""
    sigma, log_sigma, _ = long_softmax(z)
    gradient = sigma.copy()
    gradient[label] = -np.delete(sigma, label).sum()
    return -log_sigma[label], gradient, long_product(z, v)


@functools.partial(jax.jit, static_argnames="reduction")
def value_gradient_and_product(hidden, kernel, direction, labels, reduction):
    def loss(k):
        return jnp.sum(linear_cross_entropy(hidden, k, labels, block_size=4, reduction=reduction))

    hvp = jax.jvp(jax.grad(loss), (kernel,), (direction,))[1]
    return *jax.value_and_grad(loss)(kernel), hvp


@pytest.mark.once
@pytest.mark.parametrize("gap", [16, 40, 80])
@pytest.mark.parametrize("label", [4, 0], ids=["right", "wrong"])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_exact_where_the_prediction_is_confident(gap, label, reduction):
    hidden = np.array([[1, 1]], np.float32)
    kernel = np.zeros((2, 9), np.float32)
    kernel[0, 4], kernel[1] = gap, np.arange(9) / 8
    direction = np.sin(1 + kernel)

    found = value_gradient_and_product(hidden, kernel, direction, np.array([label]), reduction)
    value, gradient, hvp = map(np.asarray, found)
    z, v = (
        (hidden.astype(np.longdouble) @ a.astype(np.longdouble))[0] for a in (kernel, direction)
    )
    expected = exact_tail(z, v, label)
    np.testing.assert_allclose(value, expected[0], rtol=(gap + 16) * U)
    np.testing.assert_allclose(gradient[0], expected[1], rtol=(gap + 16) * U)
    assert relative_error(hvp[0], expected[2]) <= 128 * U


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ignored_examples_and_labels_out_of_range(reduction):
    rows = operands()
    labels = jnp.array([-100, -100, 2, 2, 2, 2])
    dirty = rows["hidden"].at[0].set(jnp.nan)
    f = functools.partial(linear_cross_entropy, reduction=reduction, ignore_index=-100)
    both = quick_jit(jax.value_and_grad(f, (0, 1)))
    value, (gradient, _) = both(dirty, rows["kernel"], labels)
    close(value, f(rows["hidden"][2:], rows["kernel"], labels[2:]))
    assert not np.any(np.asarray(gradient[:2]))
    nothing = both(dirty, rows["kernel"], jnp.full(N, -100))
    assert not any(np.any(np.asarray(a)) for a in jax.tree.leaves(nothing))
    for wrong in (-1, V, -100):
        losses, pullback = jax.vjp(
            lambda h, wrong=wrong: linear_cross_entropy(
                h, rows["kernel"], labels.at[:2].set(wrong)
            ),
            rows["hidden"],
        )
        bad = np.isnan(np.asarray(losses))
        assert bad.tolist() == [True, True, False, False, False, False]
        assert np.isnan(np.asarray(pullback(jnp.ones(N, WIDE))[0])).any(1).tolist() == bad.tolist()


@pytest.mark.parametrize("weights", [None, np.ones(V)])
@pytest.mark.parametrize("spoilt", [None, np.nan, np.inf])
def test_an_excluded_class(spoilt, weights):
    """Its column of the kernel counts for nothing, whatever is there."""
    rows = operands()
    if spoilt is not None:
        rows["kernel"] = rows["kernel"].at[:, 5].set(spoilt)
    bias = rows["bias"].at[5].set(-jnp.inf)
    kept = np.delete(np.arange(V), 5)

    def total(hidden, kernel, label, of_classes=slice(None)):
        own = None if weights is None else weights[of_classes]
        options = {"bias": bias[of_classes], "class_weights": own, "label_smoothing": 0.1}
        return jnp.sum(linear_cross_entropy(hidden, kernel, label, block_size=3, **options))

    g = quick_jit(jax.value_and_grad(total, (0, 1)), static_argnums=2)
    less = quick_jit(jax.value_and_grad(functools.partial(total, of_classes=kept), (0, 1)))
    value, (of_hidden, of_kernel) = g(rows["hidden"], rows["kernel"], 7)
    expected, (expected_of_hidden, expected_of_kernel) = less(
        rows["hidden"], rows["kernel"][:, kept], 6
    )
    close(value, expected)
    close(of_hidden, expected_of_hidden)
    close(of_kernel[:, kept], expected_of_kernel)
    assert not np.any(np.asarray(of_kernel[:, 5]))
    assert np.isposinf(g(rows["hidden"], rows["kernel"], 5)[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_operands(dtype):
    rows = operands(dtype)

    def f(rows):
        return blockwise(rows, {}, "mean")

    value, gradient = jax.jit(jax.value_and_grad(f))(rows)
    exact, exact_gradient = quick_jit(jax.value_and_grad(f))(
        jax.tree.map(lambda a: a.astype(WIDE), rows)
    )
    assert value.dtype == jnp.float32
    close(value, exact, "float32")
    for name, g in gradient.items():
        assert g.dtype == rows[name].dtype
        close(g, exact_gradient[name], dtype, scale=0.0)


def test_second_derivatives_inside_a_scan():
    """JAX 0.10 differentiates formulas there, not rules: they must be right as well."""

    def scanned(loss):
        def total(rows):
            def step(carry, hidden):
                losses = loss({**rows, "hidden": hidden}, OPTIONS["all"], "none")
                return carry + jnp.sum(losses), None

            both = jnp.stack([rows["hidden"], -rows["hidden"]])
            return jax.lax.scan(step, jnp.zeros((), WIDE), both)[0]

        return total

    actual, expected = (
        quick_jit(modes(scanned(loss))["forward over reverse"])(operands())
        for loss in (blockwise, dense)
    )
    jax.tree.map(functools.partial(close, scale=3.0), actual, expected)


def test_the_hessian_is_symmetric():
    rows = operands()
    a, b = (jax.tree.map(lambda x, s=s: jnp.cos(s * x), rows) for s in (3, 7))
    gradient = jax.grad(lambda rows: blockwise(rows, OPTIONS["all"], "mean"))
    hvp = quick_jit(lambda t: jax.jvp(gradient, (rows,), (t,))[1])

    def dot(s, t):
        return sum(jnp.vdot(s[k], t[k]) for k in s)

    close(dot(a, hvp(b)), dot(b, hvp(a)))


@pytest.mark.once
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_nothing_of_the_size_of_the_logits(reduction):
    n, d, v = 256, 8, 8192
    rows = {"hidden": jnp.ones((n, d), jnp.float32), "kernel": jnp.ones((d, v), jnp.float32)}
    labels = jnp.zeros(n, jnp.int32)

    def loss(rows):
        return linear_cross_entropy(
            rows["hidden"], rows["kernel"], labels, reduction=reduction, block_size=128
        )

    for name, compiled in compiled_modes(loss, rows):
        assert f"[{n},{v}]" not in compiled.as_text(), name
        assert compiled.memory_analysis().temp_size_in_bytes < n * v * 4 / 3, name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": jnp.ones((3, 5))}, ValueError, r"`kernel` must have shape \(2, V ≥ 1\)"),
        ({"kernel": jnp.ones((2, 0))}, ValueError, r"`kernel` must have shape"),
        ({"kernel": jnp.ones((2, 5), bool)}, TypeError, "`kernel` must be real"),
        ({"labels": jnp.zeros(4, int)}, ValueError, r"`labels` must have shape \(3,\), got \(4,\)"),
        (
            {"labels": jnp.zeros(3)},
            TypeError,
            "`labels` must be integers or a LinearTarget, got dtype float",
        ),
        ({"bias": jnp.ones(4)}, ValueError, r"`bias` must have shape \(5,\), got \(4,\)"),
        ({"weights": jnp.ones(4)}, ValueError, r"`weights` must have shape \(3,\), got \(4,\)"),
        ({"reduction": "max"}, ValueError, "`reduction` must be one of none, sum, mean"),
        ({"block_size": 0}, ValueError, "`block_size` must be ≥ 1 or None, got 0"),
        ({"logit_softcap": 0.0}, ValueError, "`logit_softcap` must be > 0 or None, got 0.0"),
        ({"label_smoothing": 2.0}, ValueError, r"`label_smoothing` must lie in \[0, 1\]"),
        ({"z_loss": -1.0}, ValueError, "`z_loss` must be ≥ 0"),
    ],
)
def test_bad_input(change, error, message):
    given = {"hidden": jnp.ones((3, 2)), "kernel": jnp.ones((2, 5)), "labels": jnp.zeros(3, int)}
    with pytest.raises(error, match=message):
        linear_cross_entropy(**(given | change))


@pytest.mark.once
def test_trains_a_language_model_on_real_text():
    """Two layers with tied embeddings, on a page of Python's own documentation."""
    text = np.frombuffer(topics["assignment"].encode("ascii", "ignore"), np.uint8)
    characters, codes = np.unique(text, return_inverse=True)
    windows = np.lib.stride_tricks.sliding_window_view(codes[:2000], 5)
    random = np.random.default_rng(0)
    shapes = {"embedding": (len(characters), 16), "first": (64, 32), "second": (32, 16)}
    params = {k: jnp.asarray(random.normal(size=s) / 8, jnp.float32) for k, s in shapes.items()}
    optimizer = optax.sgd(0.5, momentum=0.9)

    def loss(params, windows):
        context, target = windows[:, :4], windows[:, 4]
        inputs = params["embedding"][context].reshape(-1, 64)
        hidden = jnp.tanh(inputs @ params["first"]) @ params["second"]
        return linear_cross_entropy(hidden, params["embedding"].T, target, reduction="mean")

    @jax.jit
    def train(params, windows):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, windows)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=60)[1]

    losses = np.asarray(train(params, jnp.asarray(windows)))
    frequencies = np.bincount(windows[:, 4]) / len(windows)
    unigram = -np.sum(frequencies * np.log(np.maximum(frequencies, 1e-9)))
    np.testing.assert_allclose(losses[0], np.log(len(characters)), rtol=0.1)
    assert losses[-1] < 0.8 * unigram

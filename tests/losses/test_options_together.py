"""Options that could undo one another: each pair against what the plain loss says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import U

import jaxsoftjac as jsj

pytestmark = pytest.mark.once

INF = np.inf
HIDDEN = np.zeros((1, 2), np.float32)
KERNEL = np.zeros((2, 3), np.float32)


def linear(label, bias, **options):
    """The losses beneath a kernel of 0, whose logits are the bias; and their gradient by it."""

    def loss(bias):
        return jnp.sum(jsj.linear_cross_entropy(HIDDEN, KERNEL, [label], bias=bias, **options))

    return jax.jit(jax.value_and_grad(loss))(jnp.asarray(bias, jnp.float32))


@pytest.mark.parametrize("softcap", [1.0, np.float32(0.5), np.inf])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("label", [0, 2])
def test_a_cap_does_not_bring_an_excluded_class_back(softcap, smoothing, label):
    bias = jnp.array([0.3, -0.2, -INF], jnp.float32)
    capped = (
        bias if softcap == np.inf else jnp.float32(softcap) * jnp.tanh(bias / jnp.float32(softcap))
    )
    capped = jnp.where(jnp.isinf(bias), -INF, capped).astype(jnp.float32)
    value, gradient = linear(label, bias, logit_softcap=softcap, label_smoothing=smoothing)
    expected = jsj.cross_entropy(capped, label, label_smoothing=smoothing)
    np.testing.assert_allclose(value, expected, rtol=4 * U)
    assert gradient[2] == 0
    assert np.all(np.isfinite(np.asarray(gradient)))


def test_a_cap_in_the_gauss_newton_product_keeps_the_exclusion():
    tangents = np.ones((1, 2), np.float32), np.ones((2, 3), np.float32), np.float32([1, 2, 3])
    bias = np.float32([0, 0, -INF])
    _, _, by_bias = jsj.linear_cross_entropy_gauss_newton(
        HIDDEN, KERNEL, [0], tangents, bias=bias, logit_softcap=1.0
    )
    np.testing.assert_allclose(by_bias, [-0.25, 0.25, 0], rtol=4 * U)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("logits", "label"),
    [
        ((0, -INF, 1), 0),
        ((0, -INF, 1), 1),
        ((-INF, -INF, -INF), 1),
        ((4, -INF, -INF), 0),
    ],
)
def test_plain_and_linear_agree_on_excluded_classes(logits, label, smoothing, z_loss):
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    loss = jax.value_and_grad(lambda x: jsj.cross_entropy(x, label, **options))
    value, gradient = loss(jnp.asarray(logits, jnp.float32))
    linear_value, linear_gradient = linear(label, logits, **options)
    np.testing.assert_allclose(linear_value, value, rtol=4 * U)
    np.testing.assert_allclose(linear_gradient, gradient, rtol=8 * U, atol=2 * U)
    assert not np.any(np.asarray(gradient)[np.isinf(logits)])
    if smoothing == 1 and not z_loss and not np.all(np.isinf(logits)):
        target = np.float32(np.eye(3)[0])
        expected = jsj.cross_entropy(jnp.asarray(logits, jnp.float32), target, **options)
        np.testing.assert_allclose(value, expected, rtol=4 * U)


def test_blocks_without_classes_count_for_nothing():
    options = {"bias": np.full(3, -INF, np.float32), "label_smoothing": 1.0, "block_size": 1}
    loss, log_normalizer = jsj.linear_cross_entropy(
        HIDDEN, KERNEL, [1], return_log_normalizer=True, **options
    )
    assert (loss[0], log_normalizer[0]) == (0, -INF)


BROKEN = [(np.nan, 0, 1), (INF, 0, 1), (-INF, -INF, -INF), (1e38, -1e38, INF)]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
@pytest.mark.parametrize("row", BROKEN, ids=str)
def test_an_ignored_row_is_worth_0_in_every_mode(row, options):
    x = jnp.asarray([row, (1, 2, 3)], jnp.float32)
    labels = np.array([-100, 2])

    def loss(x):
        return jsj.cross_entropy(x, labels, ignore_index=-100, **options)

    gradient = jax.grad(lambda x: jnp.sum(loss(x)))
    for derivative in (gradient(x), jnp.sum(jax.jacfwd(loss)(x), 0), jax.jacrev(gradient)(x)[0]):
        assert not np.any(np.asarray(derivative)[0])
    assert loss(x)[0] == 0

    def linear_loss(hidden, kernel):
        return jsj.linear_cross_entropy(
            hidden, kernel, labels, ignore_index=-100, reduction="sum", **options
        )

    by_hidden, by_kernel = jax.grad(linear_loss, argnums=(0, 1))(x, jnp.eye(3, dtype=jnp.float32))
    assert not np.any(np.asarray(by_hidden)[0])
    assert np.all(np.isfinite(np.asarray(by_kernel)))


def test_a_row_of_zeros_as_probabilities_does_not_move_with_its_logits():
    x = jnp.asarray([(np.nan, INF, 1), (1, 2, 3)], jnp.float32)
    target = np.float32([[0, 0, 0], [0.5, 0.5, 0]])
    gradient = jax.grad(lambda x: jnp.sum(jsj.cross_entropy(x, target)))(x)
    assert not np.any(np.asarray(gradient)[0])
    assert np.all(np.isfinite(np.asarray(gradient)))


def test_the_log_normalizer_of_ignored_examples_is_theirs():
    random = np.random.default_rng(0)
    hidden, kernel = (
        random.normal(size=(4, 3)).astype("f4"),
        random.normal(size=(3, 7)).astype("f4"),
    )

    def normalizers(hidden, labels, ignore_index):
        return jsj.linear_cross_entropy(
            hidden, kernel, labels, ignore_index=ignore_index, return_log_normalizer=True
        )[1]

    labels = np.array([1, -1, 2, -1])
    exact = jsj.logsumexp(hidden @ kernel, axis=-1)
    np.testing.assert_allclose(normalizers(hidden, labels, -1), exact, rtol=1e-6)
    gradient = jax.grad(lambda h: jnp.sum(normalizers(h, labels, -1)))(hidden)
    expected = jax.grad(lambda h: jnp.sum(jsj.logsumexp(h @ kernel, axis=-1)))(hidden)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("dtype", "index"),
    [(np.uint32, 2**32 - 1), (np.uint8, 255), (np.int8, -100), (np.uint8, -100), (np.int32, 7)],
)
def test_ignore_index_of_every_label_type(dtype, index, wide):
    """Also where JAX has no 64-bit integers, in which every index would fit."""
    with jax.enable_x64(wide):
        x = jnp.asarray([(0, 1, 2), (2, 1, 0)], jnp.float32)
        fits = np.iinfo(dtype).min <= index <= np.iinfo(dtype).max
        labels = np.array([index if fits else 0, 0], dtype)
        of_rows = jsj.cross_entropy(x, labels, ignore_index=index)
        eye = jnp.eye(3, dtype=jnp.float32)
        beneath = jsj.linear_cross_entropy(x, eye, labels, ignore_index=index)
        for losses in (of_rows, beneath):
            assert (losses[0] == 0) == fits
            assert losses[1] > 0


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6, -1e6])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_common_bias_costs_no_digits(offset, reduction):
    random = np.random.default_rng(1)
    hidden, kernel = random.normal(size=(8, 4)), random.normal(size=(4, 50))
    hidden, kernel = hidden.astype(np.float32), kernel.astype(np.float32)
    bias = (random.normal(size=50) + offset).astype(np.float32)
    labels = random.integers(0, 50, 8)
    z = hidden.astype(np.float64) @ kernel + bias.astype(np.float64)
    sigma = np.exp(z - z.max(1, keepdims=True))
    sigma /= sigma.sum(1, keepdims=True)
    sigma[np.arange(8), labels] -= 1

    def loss(bias):
        options = {"bias": bias, "reduction": reduction, "block_size": 16}
        return jnp.sum(jsj.linear_cross_entropy(hidden, kernel, labels, **options))

    for gradient in (jax.grad(loss)(bias), jax.jacfwd(loss)(bias)):
        error = np.abs(np.asarray(gradient) - sigma.sum(0)).max()
        assert error < 1e-6 * np.abs(sigma.sum(0)).max()
        assert abs(float(jnp.sum(gradient))) < 2e-6 * np.abs(sigma).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_a_class_that_is_as_far_below_as_numbers_go_is_not_excluded(smoothing):
    x = np.float32([2e38, -1.9e38, 0])
    value = (1 - smoothing) * 2e38 + smoothing * (2e38 - 1e37 / 3)
    gradient = np.array([1, 0, smoothing - 1]) - smoothing / 3

    def loss(x):
        return jsj.cross_entropy(x, 2, label_smoothing=smoothing)

    for found in (
        jax.jit(jax.value_and_grad(loss))(x),
        linear(2, x, label_smoothing=smoothing, block_size=2),
    ):
        np.testing.assert_allclose(found[0], value, rtol=1e-6)
        np.testing.assert_allclose(found[1], gradient, atol=1e-6)


FAR = np.float32([[3e38, -3e38, 1, 2], [2e38, -2e38, -1.9e38, 2e38]])
TEACHER = jnp.asarray([[0, -200, 0, -1], [1, -1e4, 0, 0]], jnp.float32)
CLASS_WEIGHTS = jnp.asarray([1, 0.5, 2, 1], jnp.float32)
SMOOTHED = 0.9 * np.eye(4)[[0, 3]] + 0.1 / 4
LIKELY = np.asarray(jax.nn.softmax(TEACHER), np.float64)


def of_a_teacher(x, block_size):
    examples = jnp.eye(2, dtype=jnp.float32)
    target = jsj.losses.LinearTarget(examples, TEACHER)
    return jsj.linear_cross_entropy(examples, x, target, block_size=block_size)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (lambda x: jsj.cross_entropy(x, jax.nn.softmax(TEACHER)), LIKELY),
        (lambda x: jsj.kl_divergence(x, TEACHER), LIKELY),  # whose entropy is rounded away
        (lambda x: of_a_teacher(x, 4), LIKELY),
        (lambda x: of_a_teacher(x, 2), LIKELY),
        (
            lambda x: jsj.cross_entropy(
                x, jnp.array([0, 3]), label_smoothing=0.1, class_weights=CLASS_WEIGHTS
            ),
            SMOOTHED * np.asarray(CLASS_WEIGHTS),
        ),
    ],
    ids=["probabilities", "divergence", "teacher", "teacher in blocks", "class weights"],
)
def test_targets_of_classes_further_apart_than_numbers_go(loss, target):
    """Where the mean is a number, so is the loss."""
    logits = np.float64(FAR)
    log_sigma = logits - logits.max(-1, keepdims=True)
    log_sigma -= np.log(np.exp(log_sigma).sum(-1, keepdims=True))
    value, pullback = jax.vjp(jax.jit(loss), jnp.asarray(FAR))
    np.testing.assert_allclose(value, -(target * log_sigma).sum(-1), rtol=1e-6)
    slopes = target.sum(-1, keepdims=True) * np.exp(log_sigma) - target
    np.testing.assert_allclose(pullback(jnp.ones(2, jnp.float32))[0], slopes, atol=1e-6)


@pytest.mark.parametrize("name", ["label_smoothing", "z_loss"])
def test_options_may_be_traced_and_have_a_derivative(name):
    x = jnp.asarray([[0, 1, 2.5], [3, -1, 0]], jnp.float32)
    hidden, kernel = x, jnp.asarray(np.eye(3) + 0.1, jnp.float32)

    def plain(s):
        return jnp.sum(jsj.cross_entropy(x @ kernel, [0, 1], **{name: s}))

    def blocks(s):
        options = {name: s, "reduction": "sum", "block_size": 2}
        return jsj.linear_cross_entropy(hidden, kernel, [0, 1], **options)

    for f in (plain, blocks):
        expected = f(0.25)
        for value in (np.float32(0.25), jnp.float32(0.25)):
            np.testing.assert_allclose(f(value), expected, rtol=4 * U)
        slope = jax.jit(jax.grad(f))(jnp.float32(0.25))
        finite = (f(0.3) - f(0.2)) / 0.1  # the loss is linear in both
        np.testing.assert_allclose(slope, finite, rtol=1e-4)


def test_a_traced_cap_has_a_derivative():
    x, kernel = jnp.asarray([[0, 1, 2.5]], jnp.float32), jnp.eye(3, dtype=jnp.float32)

    def blocks(c):
        return jsj.linear_cross_entropy(
            x, kernel, [0], logit_softcap=c, reduction="sum", block_size=2
        )

    def plain(c):
        return jnp.sum(jsj.cross_entropy(c * jnp.tanh(x / c), [0]))

    found, expected = (jax.value_and_grad(f)(jnp.float32(2.0)) for f in (blocks, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_cap_beyond_all_logits_is_none():
    x, kernel = jnp.asarray([[0, 1, 2.5]], jnp.float32), jnp.eye(3, dtype=jnp.float32)
    found = jsj.linear_cross_entropy(x, kernel, [0], logit_softcap=3e38)
    np.testing.assert_array_equal(found, jsj.linear_cross_entropy(x, kernel, [0]))


def test_no_features():
    losses = jsj.linear_cross_entropy(np.zeros((2, 0)), np.zeros((0, 3)), [0, 2])
    np.testing.assert_allclose(losses, [np.log(3)] * 2, rtol=1e-6)


def test_where_is_no_mask_of_examples_and_the_error_says_what_is():
    x, kept = jnp.zeros((5, 3)), np.ones(5, bool)
    with pytest.raises(ValueError, match="to leave an example out, weight its loss by 0"):
        jsj.cross_entropy(x, np.zeros(5, int), where=kept)

"""One meaning of `ignore_index` and `weights` everywhere: the mean over the examples kept."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit

import jaxsoftjac as jsj
from jaxsoftjac.curvature import (
    fisher_product,
    gauss_newton_diagonal,
    gauss_newton_product,
    sampled_fisher_product,
)
from jaxsoftjac.optimizers import diagonal_gauss_newton, gauss_newton_cg, natural_gradient

pytestmark = pytest.mark.once

random = np.random.default_rng(0)
PARAMS = {"first": jnp.asarray(random.normal(size=(4, 5)), WIDE)}
PARAMS["kernel"] = jnp.asarray(random.normal(size=(5, 3)), WIDE)
TANGENTS = jax.tree.map(jnp.cos, PARAMS)
INPUTS = jnp.asarray(random.normal(size=(6, 4)), WIDE)
LABELS = np.array([0, -100, 2, -100, 1, 0])
KEPT = LABELS != -100
KEY = jax.random.key(0)


def hidden(params, inputs):
    return jnp.tanh(inputs @ params["first"])


def model(params, inputs):
    return hidden(params, inputs) @ params["kernel"]


# name → function of (options) → function (inputs, labels) → a product or diagonal
QUANTITIES = {
    "gauss_newton_product": lambda **o: (
        lambda x, y: gauss_newton_product(model, **o)(PARAMS, x, y, TANGENTS)
    ),
    "gauss_newton_product, head": lambda **o: (
        lambda x, y: gauss_newton_product(hidden, head="kernel", **o)(PARAMS, x, y, TANGENTS)
    ),
    "fisher_product": lambda **o: lambda x, y: fisher_product(model, **o)(PARAMS, x, y, TANGENTS),
    "fisher_product, head": lambda **o: (
        lambda x, y: fisher_product(hidden, head="kernel", **o)(PARAMS, x, y, TANGENTS)
    ),
    "gauss_newton_diagonal": lambda **o: (
        lambda x, y: gauss_newton_diagonal(model, **o)(PARAMS, x, labels=y)
    ),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16])
@pytest.mark.parametrize(
    "options", [{"ignore_index": -1}, {"class_weights": np.ones(256)}], ids=str
)
def test_labels_of_few_bits(options, dtype):
    """256 classes, and -1 that an unsigned label cannot be."""
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(4, 256)), WIDE)
    labels = np.array([0, 1, 100, 127, 5, 127 if dtype == np.int8 else 255], dtype)
    product = gauss_newton_product(lambda kernel, x: x @ kernel, **options)
    close(
        product(kernel, INPUTS, labels, jnp.cos(kernel)),
        product(kernel, INPUTS, labels.astype(np.int32), jnp.cos(kernel)),
    )


@pytest.mark.parametrize("samples", [1, 2])
def test_the_kernel_column_of_an_excluded_class_counts_for_nothing(samples):
    bias = jnp.zeros(5, WIDE).at[3].set(-jnp.inf)
    kernel, hidden = jnp.cos(jnp.arange(20, dtype=WIDE)).reshape(4, 5), INPUTS[:3]

    def product(column):
        params = {"hidden": hidden, "kernel": kernel.at[:, 3].set(column), "bias": bias}
        head, tangents = ("kernel", "bias"), jax.tree.map(jnp.ones_like, params)
        of = sampled_fisher_product(lambda p, _: p["hidden"], head=head, samples=samples)
        return of(params, None, KEY, tangents)

    jax.tree.map(close, product(jnp.nan), product(1.0))


@pytest.mark.parametrize("name", QUANTITIES)
def test_ignored_examples_are_as_if_absent(name):
    make, reference = QUANTITIES[name], QUANTITIES["gauss_newton_product"]
    if name == "gauss_newton_diagonal":
        reference = make

    @quick_jit
    def both(inputs, labels, kept_inputs, kept_labels):
        return make(ignore_index=-100)(inputs, labels), reference()(kept_inputs, kept_labels)

    of_all, of_kept = both(INPUTS, LABELS, INPUTS[KEPT], LABELS[KEPT])
    jax.tree.map(close, of_all, of_kept)
    nothing = quick_jit(make(ignore_index=-100))(INPUTS, np.full_like(LABELS, -100))
    assert not any(np.any(a) for a in jax.tree.leaves(nothing))


@pytest.mark.parametrize("name", QUANTITIES)
def test_weights_are_repetitions(name):
    weights = np.array([1, 0, 2, 1, 0, 3])
    labels = np.arange(6) % 3
    repeated = np.repeat(np.arange(6), weights)
    weighted, plain = QUANTITIES[name](weights=weights), QUANTITIES[name]()
    jax.tree.map(
        close,
        quick_jit(weighted)(INPUTS, labels),
        quick_jit(plain)(INPUTS[repeated], labels[repeated]),
    )


@pytest.mark.parametrize("head", [None, "kernel"])
def test_a_fisher_matrix_reads_no_labels(head):
    """Only whether they are kept: labels of any value give what no labels give."""
    f = fisher_product(model if head is None else hidden, head=head)
    expected = quick_jit(lambda x: f(PARAMS, x, None, TANGENTS))(INPUTS)
    for labels in (np.full(6, -100), np.full(6, 2**31 - 1), np.arange(6)):
        jax.tree.map(close, quick_jit(f)(PARAMS, INPUTS, labels, TANGENTS), expected)


@pytest.mark.parametrize("head", [None, "kernel"])
def test_a_label_out_of_range_is_nan_in_a_gauss_newton_product(head):
    f = gauss_newton_product(model if head is None else hidden, head=head)
    product = quick_jit(f)(PARAMS, INPUTS, LABELS, TANGENTS)
    assert all(np.all(np.isnan(a)) for a in jax.tree.leaves(product))


@pytest.mark.parametrize("head", [None, "kernel"])
def test_samples_are_of_the_kept_mean(head):
    """The sampled matrix of all examples converges to the exact one of those that are kept."""
    options = {"head": head, "ignore_index": -100}
    of = model if head is None else hidden

    @quick_jit
    def everything(labels):
        sampled = sampled_fisher_product(of, samples=3000, **options)
        diagonal = gauss_newton_diagonal(of, samples=3000, **options)
        return (
            sampled(PARAMS, INPUTS, KEY, TANGENTS, labels),
            fisher_product(of, **options)(PARAMS, INPUTS, labels, TANGENTS),
            diagonal(PARAMS, INPUTS, KEY, labels),
            gauss_newton_diagonal(model, ignore_index=-100)(PARAMS, INPUTS, labels),
        )

    product, exact, diagonal, exact_diagonal = everything(LABELS)
    for actual, expected in ((product, exact), (diagonal, exact_diagonal)):
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert 1e-4 < np.linalg.norm(a - e) / np.linalg.norm(e) < 0.06  # about 1/√3000


@pytest.mark.parametrize("make", [gauss_newton_cg, natural_gradient, "diagonal"])
@pytest.mark.parametrize("head", [None, "kernel"])
def test_optimizers_step_by_the_kept_examples(make, head):
    if make == "diagonal":
        make = partial(diagonal_gauss_newton, learning_rate=0.1)
    of = model if head is None else hidden
    optimizer = make(of, head=head, ignore_index=-100, seed=1)
    gradient = jax.tree.map(lambda a: a / 10, TANGENTS)

    @quick_jit
    def update(inputs, labels):
        state = optimizer.init(PARAMS)
        return optimizer.update(gradient, state, PARAMS, inputs=inputs, labels=labels)[0]

    of_all = update(INPUTS, LABELS)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(of_all))
    changed = update(jnp.where(KEPT[:, None], INPUTS, 7), LABELS)
    for a, b in zip(jax.tree.leaves(of_all), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)
    nothing = update(INPUTS, np.full_like(LABELS, -100))
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(nothing))


def test_labels_are_needed_to_ignore_some():
    for call in (
        lambda: fisher_product(model, ignore_index=-100)(PARAMS, INPUTS, None, TANGENTS),
        lambda: gauss_newton_diagonal(model, ignore_index=-100)(PARAMS, INPUTS),
        lambda: sampled_fisher_product(model, ignore_index=-100)(PARAMS, INPUTS, KEY, TANGENTS),
    ):
        with pytest.raises(ValueError, match="`labels` must be given where `ignore_index` is"):
            call()
    with pytest.raises(TypeError, match="`label_smoothing` is no option of a Fisher matrix"):
        fisher_product(model, label_smoothing=0.1)
    with pytest.raises(ValueError, match="`samples` must be given where `head` is"):
        gauss_newton_diagonal(hidden, head="kernel")


def hessian_product(loss, at, v):
    return jax.jvp(jax.grad(loss), (at,), (v,))[1]


LOGITS = jnp.asarray(random.normal(size=(3, 4)), WIDE)
ALONG = jnp.cos(3 * LOGITS)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 0.5])])
@pytest.mark.parametrize("labels", ["probabilities", "class weights"])
def test_the_product_is_the_hessian_of_the_mean_loss(labels, weights):
    """Of logits that are the parameters, whatever the mass of the target."""
    options = {} if weights is None else {"weights": jnp.asarray(weights, WIDE)}
    if labels == "probabilities":  # the second example has none, as padding
        target = jnp.asarray([[0.2, 0.3, 0, 0.5], [0, 0, 0, 0], [0, 0.5, 0, 0]], WIDE)
    else:
        target = np.array([0, 3, 1])
        options["class_weights"] = jnp.asarray([1, 2, 0.5, 4], WIDE)
    product = gauss_newton_product(lambda p, x: p, **options)

    def loss(z):
        return jsj.cross_entropy(z, target, reduction="mean", **options)

    close(product(LOGITS, None, target, ALONG), hessian_product(loss, LOGITS, ALONG))


@pytest.mark.parametrize("name", [n for n in QUANTITIES if n.startswith("gauss_newton_product")])
def test_class_weights_mean_the_same_with_and_without_a_head(name):
    options = {"class_weights": jnp.asarray([1, 2, 0.5], WIDE)}
    labels = np.arange(6) % 3

    def loss(params):
        return jsj.cross_entropy(model(params, INPUTS), labels, reduction="mean", **options)

    def loss_of_logits(z):
        return jsj.cross_entropy(z, labels, reduction="mean", **options)

    z, push = jax.linearize(lambda p: model(p, INPUTS), PARAMS)
    along = hessian_product(loss_of_logits, z, push(TANGENTS))
    expected = jax.linear_transpose(push, PARAMS)(along)[0]
    jax.tree.map(close, QUANTITIES[name](**options)(INPUTS, labels), expected)


def test_the_value_of_an_infinite_loss_of_weight_0():
    z = jnp.asarray([[0, 1, -np.inf], [0, 1, -np.inf]], WIDE)
    product = gauss_newton_product(lambda p, x: p, weights=np.array([0.0, 1.0]), linearized=True)
    value, *_ = product(z, None, np.array([2, 1]))
    close(value, jnp.log1p(jnp.exp(jnp.asarray(-1, WIDE))))


@pytest.mark.parametrize("head", [None, "kernel"])
def test_the_loss_is_the_mean(head):
    with pytest.raises(TypeError, match="`reduction` is no option: the loss is the mean"):
        gauss_newton_product(hidden, head=head, reduction="sum")


def test_weights_are_one_for_each_example():
    for weights in (np.ones(2), np.ones((6, 1))):
        with pytest.raises(ValueError, match=r"`weights` must have shape \(6,\) or \(\), got"):
            gauss_newton_product(model, weights=weights)(PARAMS, INPUTS, np.arange(6) % 3, TANGENTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_exact_diagonal_of_many_outputs_is_added_up_in_float32(dtype):
    """Of one weight that moves every logit by ±1: Σ σ(1 − …) is 1, whatever their number."""
    signs = jnp.where(jnp.arange(4096) % 2, 1, -1).astype(dtype)
    diagonal = gauss_newton_diagonal(lambda p, x: (x @ p)[:, None] * signs[None])
    found = jax.jit(diagonal)(jnp.zeros(1, dtype), jnp.ones((1, 1), dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), 1, rtol=2.0**-6)

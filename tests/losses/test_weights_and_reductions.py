"""Weights of examples and classes, reductions and several class axes, against plain float64."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit

import jaxsoftjac as jsj

pytestmark = pytest.mark.once

N, K = 6, 5
RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(N, K)) * 3
LABELS = RANDOM.integers(0, K, N)
PROBABILITIES = RANDOM.dirichlet(np.ones(K), N)
WEIGHTS, CLASS_WEIGHTS = RANDOM.uniform(0.5, 2, N), RANDOM.uniform(0.5, 2, K)
IGNORED = LABELS[0]


def plain(x, labels, s, z, weights, class_weights, ignore_index, reduction):
    """As torch's cross_entropy, with weights of examples and a z-loss beside."""
    log_sigma = x - np.log(np.exp(x).sum(-1, keepdims=True))
    of_class = np.ones(K) if class_weights is None else class_weights
    if labels.ndim == 1:
        target, share = np.eye(K)[labels], of_class[labels]
    else:
        target, share = labels, np.ones(N)
    target = (1 - s) * target + s / K
    losses = -(of_class * target * log_sigma).sum(-1) + z * np.log(np.exp(x).sum(-1)) ** 2
    factor = np.ones(N) if weights is None else np.broadcast_to(weights, N)
    if ignore_index is not None:
        factor = np.where(labels == ignore_index, 0, factor)
    if reduction == "none":
        return factor * losses
    total = (factor * losses).sum()
    return total if reduction == "sum" else total / (factor * share).sum()


CASES = [
    (labels, s, z, weights, class_weights, ignore_index)
    for labels, (s, z), weights, class_weights, ignore_index in itertools.product(
        (LABELS, PROBABILITIES),
        ((0.0, 0.0), (0.3, 0.01)),
        (None, WEIGHTS),
        (None, CLASS_WEIGHTS),
        (None, IGNORED),
    )
    if ignore_index is None or labels is LABELS
]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_agrees_with_the_plain_formula(reduction):
    def loss(x, case):
        labels, s, z, weights, class_weights, ignore_index = case
        return jsj.cross_entropy(
            x,
            labels if labels is LABELS else jnp.asarray(labels, x.dtype),
            label_smoothing=s,
            z_loss=z,
            weights=weights,
            class_weights=class_weights,
            ignore_index=ignore_index,
            reduction=reduction,
        )

    values = quick_jit(lambda x: [loss(x, case) for case in CASES])(jnp.asarray(X, WIDE))
    for value, case in zip(values, CASES, strict=True):
        close(value, plain(X, *case, reduction))


@pytest.mark.parametrize("labels", [LABELS, PROBABILITIES], ids=["integers", "probabilities"])
def test_derivatives_by_logits_and_weights(labels):
    def ours(x, weights, class_weights, s):
        labels_ = labels if labels is LABELS else jnp.asarray(labels, x.dtype)
        options = {"weights": weights, "class_weights": class_weights, "label_smoothing": s}
        return jsj.cross_entropy(x, labels_, **options, z_loss=0.01, reduction="mean")

    def plainly(x, weights, class_weights, s):
        one_hot = jax.nn.one_hot(LABELS, K, dtype=x.dtype)
        target = one_hot if labels is LABELS else jnp.asarray(labels, x.dtype)
        shares = class_weights[LABELS] if labels is LABELS else jnp.ones(N, x.dtype)
        target = class_weights[None] * ((1 - s) * target + s / K)
        losses = -jnp.sum(target * jax.nn.log_softmax(x), -1)
        losses = losses + 0.01 * jax.nn.logsumexp(x, -1) ** 2
        return jnp.sum(weights * losses) / jnp.sum(weights * shares)

    at = tuple(jnp.asarray(a, WIDE) for a in (X, WEIGHTS, CLASS_WEIGHTS, 0.2))
    every = range(4)
    for ours_d, plain_d in zip(
        quick_jit(jax.grad(ours, every))(*at), quick_jit(jax.grad(plainly, every))(*at), strict=True
    ):
        close(ours_d, plain_d)
    along = jax.tree.map(jnp.cos, at)
    products = (
        quick_jit(lambda *at, f=f: jax.jvp(jax.grad(f, every), at, along)[1])(*at)
        for f in (ours, plainly)
    )
    for ours_d, plain_d in zip(*products, strict=True):
        close(ours_d, plain_d)


def test_several_axes_are_numbered_in_row_major_order():
    x = jnp.asarray(RANDOM.normal(size=(3, 2, 4)), WIDE)
    labels = np.array([5, 0])
    rows = x.transpose(1, 0, 2).reshape(2, 12)
    where = np.arange(24).reshape(3, 2, 4) != 1
    close(jsj.cross_entropy(x, labels, axis=(0, 2)), jsj.cross_entropy(rows, labels))
    close(jsj.cross_entropy(x, 7, axis=None), jsj.cross_entropy(x.ravel(), 7))
    target = jsj.softmax(jnp.sin(x), axis=(2, 0), where=where)
    close(
        jsj.cross_entropy(x, target, axis=(-1, 0), where=where),
        jsj.cross_entropy(
            x.transpose(1, 2, 0).reshape(2, 12),
            target.transpose(1, 2, 0).reshape(2, 12),
            where=where.transpose(1, 2, 0).reshape(2, 12),
        ),
    )


def test_without_weight_an_infinite_loss_is_0():
    x = jnp.asarray([[0.0, -jnp.inf], [0.0, 1.0]], WIDE)
    options = {"weights": np.array([0.0, 2.0]), "reduction": "mean"}
    value, gradient = jax.value_and_grad(lambda x: jsj.cross_entropy(x, [1, 1], **options))(x)
    close(value, jsj.cross_entropy(x[1], 1))
    close(gradient, jnp.stack([jnp.zeros(2, WIDE), jax.grad(jsj.cross_entropy)(x[1], 1)]))
    none = jsj.cross_entropy(x, [0, 1], weights=0.0, reduction="mean")
    assert none == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_class_weight_an_excluded_label_costs_nothing(smoothing):
    """As with the label as probabilities, and beneath a kernel; NaN logits are not hidden."""
    x, w = jnp.asarray([0.5, -jnp.inf, 1], WIDE), jnp.asarray([1, 0, 3], WIDE)
    options = {"label_smoothing": smoothing}

    def both(f, x):
        return jax.value_and_grad(lambda x: f(x, class_weights=w, **options))(x)

    def beneath(x, **options):
        hidden, kernel = jnp.zeros((1, 2), WIDE), jnp.zeros((2, 3), WIDE)
        return jsj.linear_cross_entropy(hidden, kernel, [1], bias=x, **options)[0]

    found = both(lambda x, **o: jsj.cross_entropy(x, 1, **o), x)
    target = jnp.asarray([0, 1, 0], WIDE)
    jax.tree.map(close, found, both(lambda x, **o: jsj.cross_entropy(x, target, **o), x))
    jax.tree.map(close, found, both(beneath, x))
    assert np.isfinite(found[0])
    assert (found[0] == 0) == (smoothing == 0)
    assert np.isnan(jsj.cross_entropy(x.at[0].set(jnp.nan), 1, class_weights=w, **options))


def test_weights_of_classes_that_are_split():
    def split(x, class_weights):
        slices = jnp.moveaxis(x.reshape(N, K, 1), 1, 0), class_weights.reshape(K, 1)
        options = {"label_smoothing": 0.3, "reduction": "mean", "axis_name": "k"}
        local = jax.vmap(
            lambda x, w: jsj.cross_entropy(x, LABELS, class_weights=w, **options), axis_name="k"
        )
        return local(*slices)[0]

    at = jnp.asarray(X, WIDE), jnp.asarray(CLASS_WEIGHTS, WIDE)
    close(split(*at), plain(X, LABELS, 0.3, 0.0, None, CLASS_WEIGHTS, None, "mean"))


LINEAR_OPTIONS = [
    {"bias": None, "reduction": "sum"},
    {"bias": None, "z_loss": 0.3, "ignore_index": 2},
    {"label_smoothing": 0.2, "reduction": "mean", "ignore_index": 2},
    {"label_smoothing": 1.0, "z_loss": 0.1},
]


@pytest.mark.parametrize("options", LINEAR_OPTIONS)
def test_the_linear_loss_weighs_classes_alike(options):
    kernel = jnp.asarray(RANDOM.normal(size=(K, 7)), WIDE)
    class_weights = jnp.asarray(RANDOM.uniform(0.5, 2, 7), WIDE).at[1].set(0)
    bias = jnp.asarray([0, 1, -np.inf, 2, 0, -1, 1], WIDE)
    options = {"bias": bias, "weights": WEIGHTS} | options
    bias = options.pop("bias")
    at = jnp.asarray(X, WIDE), kernel, class_weights

    def linear(x, kernel, w):
        ours = {"bias": bias, "block_size": 3, "class_weights": w} | options
        return jsj.linear_cross_entropy(x, kernel, LABELS, **ours)

    def on_logits(x, kernel, w):
        logits = x @ kernel + (0 if bias is None else bias[None])
        return jsj.cross_entropy(logits, LABELS, class_weights=w, **options)

    @functools.partial(quick_jit, static_argnums=0)
    def in_every_order(f, *at):
        def total(*at):
            finite = jnp.where(jnp.isfinite(f(*at)), f(*at), 0)  # a label may be excluded
            return jnp.sum(jnp.sin(finite))

        gradient = jax.grad(total, (0, 1, 2))
        return f(*at), gradient(*at), jax.jvp(gradient, at, jax.tree.map(jnp.cos, at))[1]

    ours = in_every_order(linear, *at)
    if options.get("label_smoothing") == 1:  # then a label may be excluded: nothing of it counts
        chex.assert_tree_all_finite(ours)
    jax.tree.map(close, ours, in_every_order(on_logits, *at))

    def losses(logits):
        summed = options | {"reduction": "sum"}
        return jsj.cross_entropy(logits, LABELS, class_weights=class_weights, **summed)

    if options.get("reduction") != "mean" and bias is None:
        logits, push = jax.linearize(jnp.matmul, *at[:2])
        along = jax.tree.map(jnp.sin, at[:2])
        curved = jax.jvp(jax.grad(losses), (logits,), (push(*along),))[1]
        product = jsj.linear_cross_entropy_gauss_newton(
            *at[:2], LABELS, along, class_weights=class_weights, block_size=3, **options
        )
        jax.tree.map(close, product, jax.linear_transpose(push, *at[:2])(curved))


def test_the_linear_loss_weighs_classes_that_are_split():
    kernel = jnp.asarray(RANDOM.normal(size=(K, 6)), WIDE)
    class_weights, x = jnp.asarray(RANDOM.uniform(0.5, 2, 6), WIDE), jnp.asarray(X, WIDE)
    options = {"label_smoothing": 0.3, "z_loss": 0.1, "reduction": "mean"}

    def split(x, kernel, w):
        local = jax.vmap(
            lambda kernel, w: jsj.linear_cross_entropy(
                x, kernel, LABELS, class_weights=w, axis_name="v", **options
            ),
            axis_name="v",
        )
        return local(jnp.moveaxis(kernel.reshape(K, 2, 3), 1, 0), w.reshape(2, 3))[0]

    whole = jsj.cross_entropy(x @ kernel, LABELS, class_weights=class_weights, **options)
    close(split(x, kernel, class_weights), whole)


def test_class_weights_of_a_smoothed_and_capped_linear_loss_are_refused():
    with pytest.raises(ValueError, match="`class_weights` must be None with both"):
        jsj.linear_cross_entropy(
            X, X.T, LABELS, class_weights=np.ones(N), label_smoothing=0.1, logit_softcap=2.0
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": np.ones(K)}, r"`weights` must have shape \(6,\) or \(\), got \(5,\)"),
        ({"class_weights": np.ones(N)}, r"`class_weights` must have shape \(5,\), got \(6,\)"),
        ({"reduction": "average"}, "`reduction` must be one of none, sum, mean, got 'average'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        jsj.cross_entropy(jnp.asarray(X), LABELS, **options)


def test_a_weight_that_changes_compiles_nothing():
    x = jnp.asarray(X, WIDE)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(x, weights, s):
        return jsj.cross_entropy(x, LABELS, weights=weights, label_smoothing=s, reduction="sum")

    for s in (0.0, 0.1):
        value = loss(x, jnp.asarray(WEIGHTS, WIDE), jnp.asarray(s, WIDE))
        close(value, plain(X, LABELS, s, 0.0, WEIGHTS, None, None, "sum"))

"""A teacher's softmax as the target of linear_cross_entropy, against the plain formulas."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, U, close, long_centre, long_product, long_softmax, quick_jit
from linear_cases import NESTINGS, N, V, compiled_modes, modes, operands

import jaxsoftjac as jsj
from jaxsoftjac import LinearTarget, linear_cross_entropy, linear_cross_entropy_gauss_newton

pytestmark = pytest.mark.once

INF = np.inf
D = 3  # of the teacher
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.2}


def student_and_teacher(dtype=WIDE):
    random = np.random.default_rng(3)
    shapes = {"hidden": (N, D), "kernel": (D, V), "bias": (V,)}
    target = {k: jnp.asarray(random.normal(size=s), dtype) for k, s in shapes.items()}
    return {
        "student": operands(dtype),
        "teacher": {**target, "temperature": jnp.asarray(1.7, dtype)},
    }


def capped(z, softcap):
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def ours(rows, reduction="none", softcap=None, block_size=4, **options):
    target = LinearTarget(**rows["teacher"], logit_softcap=softcap)
    own = dict(rows["student"])
    given = {"bias": own.pop("bias"), "logit_softcap": softcap, "block_size": block_size}
    return linear_cross_entropy(*own.values(), target, **given, reduction=reduction, **options)


def plain(rows, reduction="none", softcap=None, weights=1.0, label_smoothing=0.0, z_loss=0.0):
    z, t = (
        capped(rows[k]["hidden"] @ rows[k]["kernel"] + rows[k]["bias"][None, :], softcap)
        for k in ("student", "teacher")
    )
    lse = jax.nn.logsumexp(z, -1, keepdims=True)
    p = (1 - label_smoothing) * jax.nn.softmax(t / rows["teacher"]["temperature"])
    losses = jnp.sum((p + label_smoothing / V) * (lse - z), -1) + z_loss * lse[:, 0] ** 2
    losses = weights * losses
    if reduction == "none":
        return losses
    return jnp.sum(losses) / jnp.sum(jnp.broadcast_to(weights, losses.shape))


def test_agrees_with_the_plain_formula_in_every_mode():
    options = {"reduction": "mean", "softcap": 2.0, "weights": jnp.arange(1.0, N + 1, dtype=WIDE)}

    @functools.partial(quick_jit, static_argnums=0)
    def all_modes(loss, rows):
        f = functools.partial(loss, **options, **OPTIONS)
        return {name: modes(f)[name](rows) for name in NESTINGS}

    rows = student_and_teacher()
    actual, expected = all_modes(ours, rows), all_modes(plain, rows)
    jax.tree.map(functools.partial(close, scale=3.0), actual, expected)


@pytest.mark.parametrize("block_size", [1, 5, 11])
def test_the_cut_of_the_vocabulary_does_not_matter(block_size):
    def derivatives(f):
        return quick_jit(jax.value_and_grad(lambda rows: jnp.sum(jnp.sin(f(rows)))))

    rows = student_and_teacher()
    found = derivatives(functools.partial(ours, block_size=block_size))(rows)
    jax.tree.map(close, found, derivatives(plain)(rows))


def test_operands_of_several_dtypes():
    rows = student_and_teacher("float32")
    exact = quick_jit(functools.partial(ours, **OPTIONS))(rows)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), rows["teacher"])
    pair = quick_jit(jax.value_and_grad(lambda rows: jnp.sum(ours(rows, **OPTIONS))))
    value, gradient = pair({**rows, "teacher": low})
    close(value, jnp.sum(exact), "bfloat16")
    assert all(a.dtype == jnp.bfloat16 for a in jax.tree.leaves(gradient["teacher"]))


def test_the_gauss_newton_product_and_the_log_normalizer_are_those_of_any_label():
    rows = student_and_teacher()
    hidden, kernel, bias = rows["student"].values()
    target = LinearTarget(**rows["teacher"])
    along = tuple(jnp.cos(a) for a in (hidden, kernel, bias))
    options = {"bias": bias, "reduction": "mean", "block_size": 4, "z_loss": 0.2}

    @quick_jit
    def both(labels):
        product = linear_cross_entropy_gauss_newton(hidden, kernel, labels, along, **options)
        return product, linear_cross_entropy(
            hidden, kernel, labels, return_log_normalizer=True, **options
        )[1]

    jax.tree.map(close, both(target), both(jnp.zeros(N, int)))


def products_of(function, *arguments):
    """How many products of two matrices a program has; a loop's count once."""
    program = str(jax.make_jaxpr(function)(*arguments))
    two_axes, not_batched = r"\[\d+,\d+\] = dot_general\[\s*", r".*, \(\[\], \[\]\)\)"
    return len(re.findall(two_axes + "dimension_numbers=" + not_batched, program))


def test_a_teacher_that_does_not_learn_costs_its_logits():
    rows = student_and_teacher()
    del rows["teacher"]["temperature"]  # its derivative takes the logits once more

    def gradient(student, teacher):
        return jax.grad(lambda s: ours({"student": s, "teacher": teacher}, "mean"))(student)

    def of_labels(hidden, kernel):
        return linear_cross_entropy(hidden, kernel, 0, block_size=4, reduction="mean")

    operands = (rows["student"][k] for k in ("hidden", "kernel"))
    labels = products_of(jax.grad(of_labels, (0, 1)), *operands)
    frozen = products_of(gradient, rows["student"], rows["teacher"])
    learning = products_of(jax.grad(functools.partial(ours, reduction="mean")), rows)
    assert (labels, frozen, learning) == (2 * 4, 2 * 6, 2 * 8)  # the first block and the loop


@functools.partial(jax.jit, static_argnums=4)
def value_and_derivatives(z, t, v, w, reduction):
    """The losses, their gradient by logits z and t, and the Hessian product along (v, w).

    The hidden states are the unit matrix, so that the kernels are the logits.
    """
    one = jnp.eye(len(z), dtype=z.dtype)

    def loss(z, t):
        target = LinearTarget(one, t)
        return linear_cross_entropy(one, z, target, block_size=4, reduction=reduction)

    gradient = jax.grad(lambda z, t: jnp.sum(loss(z, t)), (0, 1))
    return loss(z, t), *jax.jvp(gradient, (z, t), (v, w))


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_exact_where_teacher_and_student_are_sure(reduction):
    random = np.random.default_rng(0)
    z, t, v, w = random.normal(size=(4, 8, 9)).astype(np.float32)
    gaps = [(16, 16), (40, 40), (16, 40), (40, 16), (80, 60), (16, 0), (0, 16), (5, 7)]
    for i, (of_student, of_teacher) in enumerate(gaps):
        z[i, 4] += of_student
        t[i, (4 + 2 * (i == 3)) % 9] += of_teacher  # one of them is sure of another class
    value, gradients, products = value_and_derivatives(z, t, v, w, reduction)
    sigma, log_sigma, _ = long_softmax(z)
    p, _, top = long_softmax(t)
    losses = (p * -log_sigma).sum(-1)
    np.testing.assert_allclose(value, losses.sum() if reduction == "sum" else losses, rtol=1e-5)

    def less_one(sigma, top):  # σ, but σ − 1 at the top class
        others = np.where(np.arange(9) == top, 0, sigma)
        return np.where(np.arange(9) == top, -others.sum(-1, keepdims=True), sigma)

    apart = sigma - p
    same = z.argmax(-1) == t.argmax(-1)
    apart[same] = (less_one(sigma, z.argmax(-1)[:, None]) - less_one(p, top))[same]
    np.testing.assert_allclose(gradients[0], apart, rtol=1e-5)
    along = long_centre(t, z), long_centre(t, w)
    expected = {
        "by teacher": (gradients[1], -long_product(t, z)),
        "product by student": (products[0], long_product(z, v) - long_product(t, w)),
        "product by teacher": (
            products[1],
            -long_product(t, v) - long_product(t, along[0] * along[1]),
        ),
    }
    for name, (found, exact) in expected.items():
        error = np.abs(np.asarray(found, np.longdouble) - exact).sum(-1)
        assert np.all(error <= 1e-5 * np.abs(exact).sum(-1)), (name, error / np.abs(exact).sum(-1))


ROWS = [
    ((0, 1, 2), (0, -INF, 1)),
    ((0, -INF, 1), (0, 1, 2)),
    ((0, -INF, 1), (1, -INF, 2)),
    ((0, -INF, 1), (-200, -400, 2)),
    ((-INF, -INF, 1), (0, 1, -INF)),
    ((-INF, -INF, -INF), (0, 1, 2)),
    ((4, -INF, -INF), (3, -INF, -INF)),
    ((300, 0, -300), (200, -200, 0)),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_excluded_classes_are_as_in_cross_entropy(smoothing):
    zeros = np.zeros((1, 2), np.float32), np.zeros((2, 3), np.float32)

    def blocks(z, t):
        target = LinearTarget(*zeros, bias=t)
        options = {"label_smoothing": smoothing, "block_size": 1}
        return jnp.sum(linear_cross_entropy(*zeros, target, bias=z, **options))

    def whole(z, t):
        return jsj.cross_entropy(z, jsj.softmax(t), label_smoothing=smoothing)

    actual, expected = (jax.jit(jax.value_and_grad(f, (0, 1))) for f in (blocks, whole))
    for z, t in ROWS:
        at = np.float32(z), np.float32(t)
        found, known = actual(*at), expected(*at)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=8 * U), found, known
        )
        assert not np.any(np.asarray(found[1][0])[np.isinf(z)])
        assert not np.any(np.asarray(found[1][1])[np.isinf(t)])


def test_nothing_of_the_size_of_the_logits():
    n, d, v = 256, 8, 8192
    hidden, kernel = jnp.ones((n, d), jnp.float32), jnp.ones((d, v), jnp.float32)
    rows = {"student": (hidden, kernel), "teacher": (hidden[:, :4], kernel[:4])}

    def loss(rows):
        options = {"reduction": "mean", "block_size": 128}
        return linear_cross_entropy(*rows["student"], LinearTarget(*rows["teacher"]), **options)

    for name, compiled in compiled_modes(loss, rows):
        assert f"[{n},{v}]" not in compiled.as_text(), name
        assert compiled.memory_analysis().temp_size_in_bytes < 2 * n * v * 4 / 3, name


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_an_infinite_logit_gives_nan(whose):
    """As in cross_entropy, not a number made of the largest one, in whichever block it is."""
    hidden, kernel = jnp.ones((2, 2), jnp.float32), jnp.ones((2, 3), jnp.float32)
    of = {whose: jnp.asarray([0, INF, 0], jnp.float32)}
    target = LinearTarget(hidden, kernel, of.get("teacher"))
    for block_size in (1, 3):
        losses = linear_cross_entropy(
            hidden, kernel, target, bias=of.get("student"), block_size=block_size
        )
        assert np.isnan(losses).all()


ROW = np.ones((3, 2), np.float32)
HEAD = np.ones((2, 5), np.float32)


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ({"hidden": ROW[:2]}, {}, ValueError, r"`labels.hidden` must have shape \(3, D\), got"),
        ({"hidden": np.ones(2)}, {}, ValueError, r"`labels.hidden` must have shape \(3, D\), got"),
        ({"kernel": HEAD[:, :4]}, {}, ValueError, r"`labels.kernel` must have shape \(2, 5\), got"),
        ({"kernel": HEAD[:1]}, {}, ValueError, r"`labels.kernel` must have shape \(2, V ≥ 1\)"),
        ({"kernel": HEAD > 0}, {}, TypeError, "`labels.kernel` must be real"),
        ({"bias": HEAD[0, :4]}, {}, ValueError, r"`labels.bias` must have shape \(5,\), got"),
        ({"temperature": 0.0}, {}, ValueError, "`labels.temperature` must be > 0 and finite"),
        ({"logit_softcap": -1}, {}, ValueError, "`labels.logit_softcap` must be > 0 or None"),
        ({}, {"ignore_index": -1}, ValueError, "`ignore_index` must be None when `labels` are"),
        ({}, {"class_weights": HEAD[0]}, ValueError, "`class_weights` must be None when `labels`"),
    ],
)
def test_bad_input(target, options, error, message):
    labels = LinearTarget(**({"hidden": ROW, "kernel": HEAD} | target))
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda: linear_cross_entropy(ROW, HEAD, labels, **options))

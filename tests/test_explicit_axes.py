"""Explicit mesh axes that split batch, classes, vocabulary or keys: called as on one device."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsoftjac as jsj

N, K, D = 4, 16, 4
LABELS = np.array([0, 15, 7, 3])
RANDOM = np.random.default_rng(5)
ROWS = {"rows": (N, K)}
V = 64
HEAD = {"hidden": (N, D), "kernel": (D, V), "bias": (V,)}
HEADS = {"query": (2, 4, 2, D), "key": (2, 8, 2, D), "value": (2, 8, 2, D)}
BATCH, CLASSES, BOTH = ("n", None), (None, "k"), ("n", "k")


def operator(x):
    J = jsj.SoftmaxJacobian.from_logits(x)
    return J.mv(jnp.sin(x)) + J.solve(jnp.cos(x), 0.1) + J.frobenius_norm()[:, None]


BLOCK = {"block_size": 12}


def linear(**options):
    def loss(hidden, kernel, bias):
        return jsj.linear_cross_entropy(
            hidden, kernel, LABELS, bias=bias, z_loss=0.1, **BLOCK, **options
        )

    return loss


def taught(hidden, kernel, bias):
    """The teacher's arrays are split as the student's are, and move with them."""
    target = jsj.LinearTarget(jnp.sin(hidden), jnp.cos(kernel), bias, temperature=2.0)
    return jsj.linear_cross_entropy(hidden, kernel, target, bias=-bias, reduction="sum", **BLOCK)


def gauss_newton(hidden, kernel, bias):
    along = hidden, jnp.sin(kernel), bias
    return jsj.linear_cross_entropy_gauss_newton(hidden, kernel, LABELS, along, bias=bias, **BLOCK)


def attention(query, key, value):
    return jsj.dot_product_attention(query, key, value, block_size=2, is_causal="bottom_right")


# name: function, shapes of its arguments, what is dense in the classes
FUNCTIONS = {
    "softmax": (jsj.softmax, ROWS),
    "log_softmax": (jsj.log_softmax, ROWS),
    "cross_entropy": (lambda x: jsj.cross_entropy(x, LABELS, label_smoothing=0.1), ROWS),
    "entropy, KL": (lambda x: jsj.entropy(x) + jsj.kl_divergence(x, jnp.sin(x)), ROWS),
    "operator": (operator, ROWS),
    "softmax_jacobian": (jsj.softmax_jacobian, ROWS),
    "log_softmax_jacobian": (jsj.log_softmax_jacobian, ROWS),
    "softmax_hessian": (jsj.softmax_hessian, ROWS),
    "cross_entropy_hessian": (lambda x: jsj.cross_entropy_hessian(x, LABELS, z_loss=0.1), ROWS),
    "spectral_norm": (lambda x: jsj.SoftmaxJacobian.from_logits(x).spectral_norm(), ROWS),
    "eigvalsh": (lambda x: jsj.SoftmaxJacobian.from_logits(x).eigvalsh(), ROWS),
    "linear_cross_entropy": (linear(), HEAD),
    "linear_cross_entropy, mean": (
        linear(reduction="mean", label_smoothing=0.1, class_weights=np.linspace(0.5, 2, V)),
        HEAD,
    ),
    "linear_cross_entropy, teacher": (taught, HEAD),
    "linear_cross_entropy_gauss_newton": (gauss_newton, HEAD),
    "dot_product_attention": (attention, HEADS),
}
WHOLE_ROWS = "jacobian", "hessian", "spectral", "eigvalsh"
LAYOUTS = {
    "rows": {"batch": [BATCH], "classes": [CLASSES], "both": [BOTH]},
    "hidden": {
        "batch": [BATCH, (None, None), (None,)],
        "classes": [(None, None), CLASSES, ("k",)],
        "both": [BATCH, CLASSES, ("k",)],
        "features": [BOTH, ("k", None), (None,)],
    },
    "query": {
        "batch": [("n", None, None, None)] * 3,
        "classes": [(None, None, None, None), *[(None, "k", None, None)] * 2],
        "both": [(None, "n", None, None), *[(None, "k", None, None)] * 2],
    },
}


def every_mode(f):
    """Value and gradient, and the derivative of both: jvp and Hessian product."""

    def both(*at):
        y, pullback = jax.vjp(f, *at)
        return y, pullback(jax.tree.map(jnp.cos, y))

    return lambda *at: jax.jvp(both, at, jax.tree.map(jnp.cos, at))


def sizes_sent(program, kinds):
    """The number of elements of every result of collectives of these kinds in a program."""
    text = rf"= (\(?[^=]*?) (?:{kinds})(?:-start)?\("
    shapes = (re.findall(r"\[([\d,]*)\]", m) for m in re.findall(text, program.as_text()))
    return [math.prod(int(n) for n in s.split(",") if n) for found in shapes for s in found]


# Those that have their ways of splitting from another that is not slow.
LIKE_OTHERS = (
    "cross_entropy_hessian",
    "spectral_norm",
    "eigvalsh",
    "linear_cross_entropy, mean",
    "linear_cross_entropy, teacher",
)
NAMES = [pytest.param(n, marks=[pytest.mark.slow] * (n in LIKE_OTHERS)) for n in FUNCTIONS]


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_as_on_one_device(name):
    f, shapes = FUNCTIONS[name]
    at = tuple(jnp.asarray(RANDOM.normal(size=s) * 2, WIDE) for s in shapes.values())
    mesh = jax.make_mesh((2, 4), ("n", "k"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    modes = quick_jit(f if name == "linear_cross_entropy_gauss_newton" else every_mode(f))
    expected = modes(*at)
    for layout, specs in LAYOUTS[next(iter(shapes))].items():
        placed = tuple(
            jax.device_put(a, NamedSharding(mesh, P(*spec)))
            for a, spec in zip(at, specs, strict=True)
        )
        with jax.set_mesh(mesh):
            split = modes.lower(*placed).compile()
            results = split(*placed)
        jax.tree.map(close, results, expected)
        if not any(part in name for part in WHOLE_ROWS):
            moved = sizes_sent(split, "all-gather|all-to-all|collective-permute")
            assert max(moved, default=0) <= of_batch(shapes), layout
            added = sizes_sent(split, "all-reduce|reduce-scatter")
            allowed = max(of_batch(shapes), of_gradient(shapes, layout))
            assert max(added, default=0) <= allowed, layout


def of_batch(shapes):
    """What may be sent anywhere: nothing of the size of a head, of the logits or of the keys."""
    if "rows" in shapes:
        return 4 * N  # several numbers per row at once
    if "hidden" in shapes:
        return 3 * D * N  # with tangents and cotangents at once
    return math.prod(shapes["query"])


def of_gradient(shapes, layout):
    """The head's gradient, each device's slice of it, which is added over the batch."""
    if "hidden" not in shapes or layout == "classes":
        return 0
    return D * V if layout == "batch" else D * V // 4


@pytest.mark.once
def test_eagerly_and_without_a_mesh_in_context():
    mesh = jax.make_mesh((4,), ("k",), axis_types=(jax.sharding.AxisType.Explicit,))
    kernel = jnp.asarray(RANDOM.normal(size=(D, K)), WIDE)
    hidden = jnp.asarray(RANDOM.normal(size=(N, D)), WIDE)
    split, shared = (
        jax.device_put(a, NamedSharding(mesh, s))
        for a, s in ((kernel, P(None, "k")), (hidden, P()))
    )
    ours = jsj.linear_cross_entropy(shared, split, LABELS)
    close(ours, jsj.linear_cross_entropy(hidden, kernel, LABELS))
    expected = jsj.cross_entropy(hidden @ kernel, jsj.softmax(hidden @ kernel))
    for one, other in ((split, kernel), (kernel, split)):  # where one of the two is whole
        close(jsj.linear_cross_entropy(hidden, one, jsj.LinearTarget(shared, other)), expected)
    J = jsj.softmax_jacobian(split)
    assert jax.typeof(J).sharding.spec == P(None, "k", None)
    close(J, jsj.softmax_jacobian(kernel))

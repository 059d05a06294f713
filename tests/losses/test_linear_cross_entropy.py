import functools
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import WIDE, U, close, long_product, long_softmax, quick_jit, relative_error

import jaxsoftjac as jsj
from jaxsoftjac.losses import linear_cross_entropy, linear_cross_entropy_gauss_newton

N, D, V = 6, 4, 11
NAMES = ("hidden", "kernel", "bias")
LABELS = np.array([0, 10, 3, -100, 7, 7])
OPTIONS = {
    "plain": {},
    "all": {"label_smoothing": 0.1, "z_loss": 0.2, "logit_softcap": 2.0, "weights": True},
}


def operands(dtype=WIDE):
    random = np.random.default_rng(0)
    shapes = {"hidden": (N, D), "kernel": (D, V), "bias": (V,)}
    return {k: jnp.asarray(random.normal(size=s), dtype) for k, s in shapes.items()}


def weights_of(options):
    options = dict(options)
    weights = jnp.arange(1.0, N + 1, dtype=WIDE) if options.pop("weights", False) else None
    return options, weights


def blockwise(rows, options, reduction, **more):
    options, weights = weights_of(options)
    return linear_cross_entropy(
        rows["hidden"], rows["kernel"], LABELS, bias=rows["bias"], weights=weights,
        ignore_index=-100, reduction=reduction, block_size=4, **options, **more,
    )  # fmt: skip


def logits(rows, softcap=None):
    z = rows["hidden"] @ rows["kernel"] + rows["bias"][None, :]
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def dense(rows, options, reduction):
    options, weights = weights_of(options)
    z = logits(rows, options.pop("logit_softcap", None))
    losses = jsj.cross_entropy(z, LABELS, ignore_index=-100, **options)
    weights = jnp.ones_like(losses) if weights is None else weights
    kept = jnp.where(LABELS == -100, 0, weights)
    if reduction == "none":
        return weights * losses
    return jnp.sum(weights * losses) / (jnp.sum(kept) if reduction == "mean" else 1)


def weights_like(a):
    """Cotangents of size 1: a function of the values would amplify their rounding."""
    return jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape)


def modes(f):
    """Value, first and second derivatives of `f` by a tree, in every nesting."""

    def along(f):
        return lambda x: jax.jvp(f, (x,), (jax.tree.map(lambda a: jnp.cos(3 * a), x),))[1]

    def back(f):
        def pulled(x):
            y, pullback = jax.vjp(f, x)
            return pullback(jax.tree.map(weights_like, y))[0]

        return pulled

    return {
        "value": f,
        "jvp": along(f),
        "vjp": back(f),
        "forward over reverse": along(back(f)),
        "reverse over reverse": back(back(f)),
        "reverse over forward": back(along(f)),
        "forward over forward": along(along(f)),
    }


@pytest.mark.parametrize(
    ("options", "reduction"), [("all", "none"), ("all", "mean"), ("plain", "sum")]
)
def test_agrees_with_cross_entropy_of_the_logits_in_every_mode(options, reduction):
    @functools.partial(quick_jit, static_argnums=0)
    def all_modes(loss, rows):
        f = functools.partial(loss, options=OPTIONS[options], reduction=reduction)
        return {name: mode(rows) for name, mode in modes(f).items()}

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


def test_an_excluded_class():
    rows = operands()
    bias = rows["bias"].at[5].set(-jnp.inf)
    f = functools.partial(linear_cross_entropy, label_smoothing=0.1, block_size=3)
    kept = np.delete(np.arange(V), 5)
    g = quick_jit(jax.value_and_grad(lambda k: jnp.sum(f(rows["hidden"], k, 7, bias=bias))))
    value, gradient = g(rows["kernel"])
    less = quick_jit(
        jax.value_and_grad(lambda k: jnp.sum(f(rows["hidden"], k, 6, bias=bias[kept])))
    )
    expected, expected_gradient = less(rows["kernel"][:, kept])
    close(value, expected)
    close(gradient[:, kept], expected_gradient)
    assert not np.any(np.asarray(gradient[:, 5]))
    assert np.all(np.isposinf(f(rows["hidden"], rows["kernel"], 5, bias=bias)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_operands(dtype):
    rows = operands(dtype)
    f = lambda rows: blockwise(rows, {}, "mean")  # noqa: E731
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


@pytest.mark.parametrize("options", OPTIONS)
def test_gauss_newton_product(options):
    rows = operands()
    along = jax.tree.map(lambda a: jnp.cos(3 * a), rows)
    kwargs, weights = weights_of(OPTIONS[options])
    softcap = kwargs.get("logit_softcap")
    product = quick_jit(
        lambda rows: linear_cross_entropy_gauss_newton(
            rows["hidden"], rows["kernel"], LABELS, tuple(along[k] for k in NAMES),
            bias=rows["bias"], weights=weights, ignore_index=-100, reduction="mean",
            block_size=4, **kwargs,
        )
    )(rows)  # fmt: skip
    z, push = jax.linearize(lambda rows: logits(rows, softcap), rows)
    hessian = jsj.cross_entropy_hessian(
        z, LABELS, ignore_index=-100, label_smoothing=kwargs.get("label_smoothing", 0.0),
        z_loss=kwargs.get("z_loss", 0.0),
    )  # fmt: skip
    weights = jnp.ones(N, WIDE) if weights is None else weights
    weights = weights / jnp.sum(jnp.where(LABELS == -100, 0, weights))
    by_logits = jnp.einsum("n,nij,nj->ni", weights, hessian, push(along))
    expected = jax.linear_transpose(push, rows)(by_logits)[0]
    jax.tree.map(close, product, tuple(expected[k] for k in NAMES))
    assert sum(jnp.vdot(p, t) for p, t in zip(product, map(along.get, NAMES), strict=True)) >= 0


def test_gauss_newton_product_is_linear_symmetric_and_transformable():
    rows = operands()
    a, b = (tuple(jnp.cos(s * rows[k]) for k in NAMES) for s in (3, 7))

    def product(t, bias):
        return linear_cross_entropy_gauss_newton(
            rows["hidden"], rows["kernel"], 3, t, bias=bias, block_size=4
        )

    @quick_jit
    def all_ways(a, b):
        along_a, pull = jax.vjp(lambda t: product(t, rows["bias"]), a)
        pushed = jax.jvp(lambda t: product(t, rows["bias"]), (a,), (b,))[1]
        both = jax.vmap(lambda t: product(t, rows["bias"]))(
            jax.tree.map(lambda *c: jnp.stack(c), a, b)
        )
        by_bias = jax.jvp(lambda bias: product(a, bias), (rows["bias"],), (jnp.ones(V, WIDE),))[1]
        return along_a, product(b, rows["bias"]), pull(b)[0], pushed, both, by_bias

    along_a, along_b, pulled, pushed, both, by_bias = all_ways(a, b)
    for other in (pulled, pushed, tuple(c[1] for c in both)):
        jax.tree.map(close, other, along_b)
    jax.tree.map(close, tuple(c[0] for c in both), along_a)
    # A common offset of the logits changes nothing.
    assert max(float(jnp.max(jnp.abs(c))) for c in by_bias) < 1e-5
    t = jax.ShapeDtypeStruct((N, D), jnp.float32), jax.ShapeDtypeStruct((D, V), jnp.float32)
    exported = jax.export.export(
        jax.jit(lambda h, k: linear_cross_entropy_gauss_newton(h, k, 3, (h, k))),
        platforms=("cpu", "cuda", "tpu"),
    )(*t)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_the_recipe_beneath_a_model():
    """The three lines of the docstring, against JᵀHJ of the whole model."""
    random = np.random.default_rng(1)
    inputs, first, kernel = (
        jnp.asarray(random.normal(size=s), WIDE) for s in ((N, 3), (3, D), (D, V))
    )
    t, kernel_t = jnp.cos(first), jnp.sin(kernel)
    labels = np.arange(N)

    def features(first):
        return jnp.tanh(inputs @ first)

    hidden, push = jax.linearize(features, first)
    along = linear_cross_entropy_gauss_newton(hidden, kernel, labels, (push(t), kernel_t))
    product = jax.linear_transpose(push, first)(along[0])[0], along[1]

    z, push_all = jax.linearize(lambda first, kernel: features(first) @ kernel, first, kernel)
    by_logits = jsj.softmax_jvp(push_all(t, kernel_t), jsj.softmax(z))
    expected = jax.linear_transpose(push_all, first, kernel)(by_logits)
    jax.tree.map(close, product, expected)


def test_the_hessian_is_symmetric():
    rows = operands()
    a, b = (jax.tree.map(lambda x, s=s: jnp.cos(s * x), rows) for s in (3, 7))
    gradient = jax.grad(lambda rows: blockwise(rows, OPTIONS["all"], "mean"))
    hvp = quick_jit(lambda t: jax.jvp(gradient, (rows,), (t,))[1])
    dot = lambda s, t: sum(jnp.vdot(s[k], t[k]) for k in s)  # noqa: E731
    close(dot(a, hvp(b)), dot(b, hvp(a)))


def compiled_modes(loss, rows):
    """The compiled first and second derivatives of a loss by a tree."""
    modes_ = modes(loss)
    modes_["vjp"] = jax.grad(loss) if loss(rows).ndim == 0 else modes_["vjp"]
    for name, mode in modes_.items():
        if name not in ("value", "forward over forward", "reverse over forward"):
            yield name, jax.jit(mode).lower(rows).compile()


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


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_data_parallel_examples(axis_type):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(getattr(jax.sharding.AxisType, axis_type),))
    rows = operands()
    f = modes(lambda rows: blockwise(rows, {}, "mean"))["forward over reverse"]
    expected = quick_jit(f)(rows)
    split = jax.NamedSharding(mesh, jax.P("data", None))
    sharded = {k: jax.device_put(a, jax.NamedSharding(mesh, jax.P())) for k, a in rows.items()}
    sharded["hidden"] = jax.device_put(rows["hidden"], split)
    with jax.set_mesh(mesh):
        jax.tree.map(close, quick_jit(f)(sharded), expected)


@pytest.mark.parametrize("way", ["shard_map", "vmap"])
def test_a_kernel_that_is_split_over_devices(way):
    rows = {k: a for k, a in operands().items() if k != "bias"}
    rows["kernel"] = rows["kernel"][:, :8]
    labels = jnp.array([0, 7, 3, 4, 7, 7])
    options = {"label_smoothing": 0.1, "z_loss": 0.2}

    def local(hidden, kernel):
        return linear_cross_entropy(hidden, kernel, labels, block_size=3, axis_name="v", **options)

    if way == "shard_map":
        mesh = jax.make_mesh((2,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))
        P = jax.P
        split = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "v")), out_specs=P())
    else:

        def split(hidden, kernel):
            kernel = jnp.moveaxis(kernel.reshape(D, 2, 4), 1, 0)
            return jax.vmap(local, (None, 0), None, axis_name="v")(hidden, kernel)

    ours = modes(lambda rows: split(rows["hidden"], rows["kernel"]))
    plain = modes(
        lambda rows: jsj.cross_entropy(rows["hidden"] @ rows["kernel"], labels, **options)
    )
    names = ("jvp", "vjp", "reverse over reverse", "reverse over forward")

    def all_modes(modes):
        return quick_jit(lambda rows: {k: modes[k](rows) for k in names})

    actual, expected = all_modes(ours)(rows), all_modes(plain)(rows)
    jax.tree.map(functools.partial(close, scale=3.0), actual, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": jnp.ones((3, 5))}, ValueError, r"`kernel` must have shape \(2, V ≥ 1\)"),
        ({"kernel": jnp.ones((2, 0))}, ValueError, r"`kernel` must have shape"),
        ({"kernel": jnp.ones((2, 5), bool)}, TypeError, "`kernel` must be real"),
        ({"labels": jnp.zeros(4, int)}, ValueError, r"`labels` must have shape \(3,\), got \(4,\)"),
        ({"labels": jnp.zeros(3)}, TypeError, "`labels` must be integers, got dtype float"),
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


def test_bad_tangents():
    hidden, kernel = jnp.ones((3, 2)), jnp.ones((2, 5))
    with pytest.raises(ValueError, match="`tangents` must be a tuple of 2 arrays"):
        linear_cross_entropy_gauss_newton(hidden, kernel, 0, (hidden,))
    with pytest.raises(ValueError, match=r"`tangents \(kernel\)` must have the shape of `kernel`"):
        linear_cross_entropy_gauss_newton(hidden, kernel, 0, (hidden, hidden))


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

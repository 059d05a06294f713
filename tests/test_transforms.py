"""jacobian, hessian and hvp of functions of pytrees, alone and for each example of a batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, plain_softmax, quick_jit
from jax.flatten_util import ravel_pytree

import jaxsoftjac as jsj
from jaxsoftjac.transforms import hessian, hvp, jacobian

pytestmark = pytest.mark.once


def rows(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), WIDE)


def loss(params, x):
    """A scalar of a pytree and an array."""
    logits = jnp.tanh(x) @ params["kernel"] + params["bias"]
    return jsj.cross_entropy(logits, 1) + jnp.sum(params["bias"] ** 3)


PARAMS = {"kernel": rows(4, 3), "bias": rows(3)}


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_jacobians_of_a_batch(mode):
    x = rows(2, 5, 4)
    batched = quick_jit(jacobian(jsj.softmax, mode=mode, batch_ndim=2))(x)
    close(batched, jsj.softmax_jacobian(x))
    one = jax.jacrev(plain_softmax)(x[1, 2])
    close(quick_jit(jacobian(jsj.softmax, mode=mode))(x[1, 2]), one)
    close(batched[1, 2], one)


@pytest.mark.parametrize(
    ("inputs", "outputs", "forward"), [(2, 7, True), (7, 2, False), (3, 3, True)]
)
def test_auto_takes_the_mode_with_fewer_products(inputs, outputs, forward):
    a = rows(outputs, inputs)

    def f(x):
        return jnp.sin(a @ x)

    x = rows(5, inputs)
    close(jacobian(f, batch_ndim=1)(x), jax.vmap(jax.jacrev(f))(x))
    text = str(jax.make_jaxpr(jacobian(f))(x[0]))
    mode = jax.jacfwd if forward else jax.jacrev
    assert text == str(jax.make_jaxpr(mode(f))(x[0]))


def test_pytrees_several_arguments_and_shared_keywords():
    x = rows(4)
    by_both = quick_jit(jacobian(loss, argnums=(0, 1)))(PARAMS, x)
    chex.assert_trees_all_equal_structs(by_both, (PARAMS, x))
    chex.assert_trees_all_close(by_both, quick_jit(jax.grad(loss, (0, 1)))(PARAMS, x), rtol=1e-5)

    def logits(x, *, kernel):
        return x @ kernel

    shared = jacobian(logits, batch_ndim=1)(rows(6, 4), kernel=PARAMS["kernel"])
    close(shared, jnp.broadcast_to(PARAMS["kernel"].T, (6, 3, 4)))


def test_hessians():
    x = rows(5, 3)
    dense = quick_jit(hessian(jsj.logsumexp, batch_ndim=1))(x)
    close(dense, jsj.softmax_jacobian(x))
    close(quick_jit(hessian(jsj.softmax))(x[0]), quick_jit(jsj.softmax_hessian)(x[0]))
    ours = quick_jit(hessian(loss, argnums=(0, 1)))(PARAMS, x[0, [0, 1, 2, 0]])
    expected = quick_jit(jax.hessian(loss, argnums=(0, 1)))(PARAMS, x[0, [0, 1, 2, 0]])
    chex.assert_trees_all_close(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("argnums", [0, (1, 0), -1])
def test_hvp_is_the_dense_hessian_times_the_tangents(argnums):
    arguments = PARAMS, rows(4)
    at = arguments[argnums] if isinstance(argnums, int) else tuple(arguments[i] for i in argnums)
    tangents = jax.tree.map(jnp.cos, at)

    @quick_jit
    def everything(arguments, tangents):
        flat, unravel = ravel_pytree(at)

        def of_flat(flat):
            new = list(arguments)
            chosen = unravel(flat)
            for i, a in ((argnums, chosen),) if isinstance(argnums, int) else zip(argnums, chosen):  # noqa: B905
                new[i] = a
            return loss(*new)

        dense = jax.hessian(of_flat)(flat) @ ravel_pytree(tangents)[0]
        value_too = hvp(loss, argnums, has_value=True)(*arguments, tangents)
        return hvp(loss, argnums)(*arguments, tangents), unravel(dense), value_too

    product, dense, (value, gradient, again) = everything(arguments, tangents)
    chex.assert_trees_all_equal_structs(product, at)
    jax.tree.map(close, product, dense)
    jax.tree.map(close, again, product)
    close(value, loss(*arguments))
    jax.tree.map(close, gradient, jax.grad(loss, argnums)(*arguments))


def test_hvp_under_vmap_and_grad():
    x, v = rows(5, 3), jnp.cos(rows(5, 3))
    product = quick_jit(jax.vmap(hvp(jsj.logsumexp)))(x, v)
    close(product, jsj.softmax_jvp(v, jsj.softmax(x)))
    third = quick_jit(jax.grad(lambda x: jnp.vdot(v[0], hvp(jsj.logsumexp)(x, v[0]))))(x[0])
    close(third, jsj.softmax_second_derivative(v[0], v[0], jsj.softmax(x[0])))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (jsj.log_softmax, ["b, k"]),
        (jax.grad(lambda x: jnp.sum(jsj.cross_entropy(x, 0))), ["b, k"]),
        (lambda x, y: jsj.cross_entropy(x, y, label_smoothing=0.1), ["b, k", "b, k"]),
        (jsj.kl_divergence, ["b, k", "b, k"]),
        (jsj.dot_product_attention, ["b, 8, 2, 4"] * 3),
        (jax.grad(lambda h, k: jnp.sum(jsj.linear_cross_entropy(h, k, 0))), ["b, 5", "5, 300"]),
        (lambda h, k: jsj.linear_cross_entropy(h, k, 0), ["3, 5", "5, v"]),
    ],
)
def test_symbolic_sizes_are_exported(function, shapes):
    """What is exported once for all sizes is what is computed for one of them."""
    scope = jax.export.SymbolicScope()
    dims = [jax.export.symbolic_shape(shape, scope=scope) for shape in shapes]
    program = jax.export.export(jax.jit(function))(
        *(jax.ShapeDtypeStruct(d, jnp.float32) for d in dims)
    )
    known = {"b": 3, "k": 40, "v": 200}
    x = [
        jnp.cos(rows(*(known.get(n.strip()) or int(n) for n in shape.split(",")))).astype("float32")
        for shape in shapes
    ]
    np.testing.assert_allclose(program.call(*x), function(*x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jacobian(loss, mode="backward"), "`mode` must be one of auto, forward, reverse"),
        (lambda: jacobian(loss, batch_ndim=-1), "`batch_ndim` must be ≥ 0, got -1"),
        (lambda: hessian(loss, batch_ndim=-2), "`batch_ndim` must be ≥ 0, got -2"),
        (lambda: hvp(loss)(PARAMS, rows(4), rows(4)), "`tangents` must have the structure"),
        (
            lambda: jacobian(loss, (0, -2))(PARAMS, rows(4)),
            "`argnums` must not name an argument",
        ),
        (lambda: hvp(jnp.vdot, (0, 0))(rows(4), rows(4), rows(4)), "must not name an argument"),
        (
            lambda: hvp(jsj.logsumexp)(rows(4), rows(3)),
            r"`tangents` must have shape \(4,\), got \(3,\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("of", [jsj.jacobian, jsj.hessian])
def test_what_is_differentiated_by_is_floating(of):
    message = "what `argnums` chooses must hold floating arrays, got int"
    with pytest.raises(TypeError, match=message):
        of(lambda x: x * 1.5)(np.arange(3))
    with pytest.raises(TypeError, match=message):
        jsj.hvp(lambda x: x * 1.5)(3, 1)


def test_a_product_without_tangents():
    with pytest.raises(TypeError, match="takes arguments of `fun` and then tangents, got 1"):
        jsj.hvp(jnp.sum)(jnp.ones(2))

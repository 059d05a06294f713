"""logsumexp with weights b: shapes, digits and derivatives, also by weights of 0."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, U, close, f32, quick_jit

import jaxsoftjac as jsj

pytestmark = pytest.mark.once

SHAPES = [((2,), (3, 2)), ((), (3,)), ((3, 1), (2,)), ((2, 3), ()), ((1, 2), (2, 3, 2))]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_x_and_b_are_broadcast_before_axes_are_counted(shapes, masked):
    random = np.random.default_rng(0)
    x, b = (random.normal(size=shape) for shape in shapes)
    whole = np.broadcast_shapes(*shapes)
    where = random.random(whole[-1:]) < 0.7 if masked else None
    if masked:
        where[0] = True
        where = np.broadcast_to(where, whole)
    axes = [-1, 0, None, *([(0, -1)] if len(whole) > 1 else [])]
    ways = list(itertools.product(axes, (False, True)))

    @quick_jit
    def everything(x, b):
        options = {"b": b, "where": where, "return_sign": True}
        return [jsj.logsumexp(x, axis, keepdims=keep, **options) for axis, keep in ways]

    found = everything(jnp.asarray(x, WIDE), jnp.asarray(b, WIDE))
    terms = np.broadcast_to(b * np.exp(x), whole) * (1 if where is None else where)
    for (axis, keep), (value, sign) in zip(ways, found, strict=True):
        total = terms.sum(axis, keepdims=keep)
        with np.errstate(divide="ignore"):  # sums of nothing
            exact = np.log(np.abs(total))
        assert value.shape == exact.shape
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-5)
        close(sign, np.sign(total))


def test_the_names_of_jax_nn():
    x = f32(0, 1)
    assert jsj.logsumexp(a=x, axis=-1) == jsj.logsumexp(x, -1)
    for arguments, named in (((), {}), ((x,), {"a": x})):
        with pytest.raises(TypeError, match="takes one array, as `x` or as `a`"):
            jsj.logsumexp(*arguments, **named)


def test_the_sum_of_large_weights_does_not_overflow():
    x, b = f32(0, 0.5, 80), f32(3e38, 3e38, -1)
    value, gradient = jax.value_and_grad(lambda x: jsj.logsumexp(x, b=b))(x)
    terms = np.asarray(b, np.float64) * np.exp(np.asarray(x, np.float64))
    np.testing.assert_allclose(value, np.log(terms.sum()), rtol=4 * U)
    np.testing.assert_allclose(gradient, terms / terms.sum(), rtol=32 * U)


@pytest.mark.parametrize("gap", [1, 16, 40, 80])
def test_digits_near_the_logarithm_of_1(gap):
    """The sum less 1 is not rounded away; the second derivatives are σ₁σ₂ in all entries."""
    x, b = f32(0, -gap), f32(1, 1)
    value, second = quick_jit(
        lambda x, b: (jsj.logsumexp(x, b=b), jax.hessian(lambda x: jsj.logsumexp(x, b=b))(x))
    )(x, b)
    np.testing.assert_allclose(value, np.log1p(np.exp(-np.float64(gap))), rtol=8 * U)
    spread = np.exp(-np.float64(gap)) / (1 + np.exp(-np.float64(gap))) ** 2
    np.testing.assert_allclose(second, spread * np.array([[1, -1], [-1, 1]]), rtol=16 * U)


@pytest.mark.parametrize("b", [(1, 0, 2), (0, 0, 0.5), (1, -0.25, 0), (3, 2, 1)], ids=str)
def test_derivatives_by_both_also_where_a_weight_is_0(b):
    """exp(xᵢ)/Σ b exp(x) by bᵢ, and bᵢ times that by xᵢ; Hessians in two modes."""
    x, b = jnp.asarray([0.5, -1, 2], WIDE), jnp.asarray(b, WIDE)

    def ours(x, b):
        return jsj.logsumexp(x, b=b, return_sign=True)[0]

    def plain(x, b):
        return jnp.log(jnp.abs(jnp.sum(b * jnp.exp(x))))

    @quick_jit
    def derivatives(x, b):
        return [
            (
                jax.grad(f, (0, 1))(x, b),
                jax.jacfwd(f, (0, 1))(x, b),
                jax.hessian(f, (0, 1))(x, b),
                jax.jacrev(jax.grad(f, (0, 1)), (0, 1))(x, b),
            )
            for f in (ours, plain)
        ]

    jax.tree.map(close, *derivatives(x, b))


EDGES = [
    ((0, np.inf), None, (0, 1)),
    ((0, np.inf), (1, 1), (0, 1)),
    ((-np.inf, -np.inf), None, (0, 0)),
    ((-np.inf, -np.inf), (1, 2), (0, 0)),
    ((-np.inf, 0), (1, 2), (0, 1)),
    ((1, 2), (0, 0), (0, 0)),
    ((-np.inf, 3), (1, 0), (0, 0)),
]


@pytest.mark.parametrize(("x", "b", "expected"), EDGES, ids=str)
def test_gradients_of_rows_with_infinities(x, b, expected):
    x, b = f32(*x), None if b is None else f32(*b)

    def f(x):
        return jsj.logsumexp(x, b=b)

    for how in (jax.grad, jax.jacfwd):
        np.testing.assert_array_equal(jax.jit(how(f))(x), expected)


@pytest.mark.parametrize(
    ("x", "b", "expected"),
    [
        ((3e38, 0, 1e5), (0, 1, 1e-30), (0, 0, 1)),
        ((40, 0, 0), (0, 1e-30, 1e-30), (0, 0.5, 0.5)),
        ((90, -100, -100), (0, -1e-30, -1e-30), (0, 0.5, 0.5)),
    ],
)
def test_a_term_of_weight_0_does_not_move_however_large_it_is(x, b, expected):
    """Its ratio to the sum is beyond the largest number."""

    def f(x, b):
        return jsj.logsumexp(x, b=b, return_sign=True)[0]

    x, b = f32(*x), f32(*b)
    by_x, by_b = jax.grad(f, argnums=(0, 1))(x, b)
    close(by_x, f32(*expected))
    assert np.all(np.isfinite(by_b))
    close(jax.jvp(f, (x, b), (jnp.ones_like(x), jnp.zeros_like(b)))[1], f32(1)[0])
    assert np.all(np.isfinite(jax.hessian(f)(x, b)))


def test_infinity_less_infinity_is_nan():
    x, b = f32(np.inf, np.inf, 0), f32(1, -1, 1)
    for value in (jsj.logsumexp(x, b=b), *jsj.logsumexp(x, b=b, return_sign=True)):
        assert np.isnan(value)
    assert jsj.logsumexp(x, b=f32(1, 1, 1)) == np.inf


@pytest.mark.parametrize("b", [2.0, 2, [2, 2], np.array([2, 2])], ids=str)
def test_numbers_and_integers_as_weights_leave_the_dtype(b):
    for dtype in ("bfloat16", "float32"):
        x = jnp.zeros(2, dtype)
        assert jsj.logsumexp(x, b=b).dtype == dtype
        close(jsj.logsumexp(x, b=b), jnp.log(jnp.asarray(4, dtype)))

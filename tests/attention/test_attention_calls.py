"""How dot_product_attention is called: eagerly, in JAX's debugging modes, with every argument."""

import contextlib
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    K_LENGTHS,
    MASK,
    B,
    H,
    N,
    S,
    T,
    arrays,
    dense,
    derivatives,
    every_mode,
)
from helpers import WIDE, checking_leaks, close, quick_jit
from jax.experimental import checkify

from jaxsoftjac.attention import dot_product_attention

KEY = jax.random.key(0)

# Outside jit


def options_in_turn(i):
    """Other values of all that may change without compilation."""
    return {
        "scale": jnp.asarray(0.3 + i, WIDE),
        "logit_softcap": jnp.asarray(2.0 + i, WIDE),
        "mask": np.roll(MASK, i, -1),
        "key_value_seq_lengths": K_LENGTHS - i,
        "dropout_rate": 0.1 + 0.1 * i,
        "dropout_key": jax.random.key(i),
        "is_causal": np.True_,
        "local_window_size": (np.int64(5), 3),
        "block_size": np.int32(S),
    }


@pytest.mark.once
def test_a_second_eager_call_compiles_nothing(caplog):
    q, k, v, bias = arrays()

    def call(i, gradient):
        f = functools.partial(dot_product_attention, **options_in_turn(i))
        if gradient:
            return jax.grad(lambda *x: jnp.sum(f(*x)), (0, 1, 2, 3))(q, k, v, bias)
        return f(q, k, v, bias)

    for gradient in (False, True):
        call(0, gradient)
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            caplog.clear()
            call(1, gradient)
            assert not [r for r in caplog.messages if "ompil" in r], caplog.messages
            if not gradient:
                dot_product_attention(q[:, :1], k[:, :1], v[:, :1])
                assert [r for r in caplog.messages if "ompil" in r]  # the messages are seen


@pytest.mark.once
def test_without_compilation():
    q, k, v, _ = arrays(T=2, S=2, N=1, K=1)
    expected = quick_jit(lambda *x: dense(*x)[0])(q, k, v)
    with jax.disable_jit():
        close(dot_product_attention(q, k, v), expected)


def test_learned_scale_and_softcap_have_gradients():
    q, k, v, _ = arrays()

    def ours(scale, cap):
        o = dot_product_attention(q, k, v, scale=scale, logit_softcap=cap, block_size=(T, 4))
        return jnp.sum(jnp.sin(o))

    def expected(scale, cap):
        return jnp.sum(jnp.sin(dense(q, k, v, scale=scale, softcap=cap)[0]))

    @quick_jit
    def gradients(*x):
        first = [jax.grad(f, (0, 1))(*x) for f in (ours, expected)]
        return first, [jax.hessian(f, (0, 1))(*x) for f in (ours, expected)]

    x = jnp.asarray(0.3, WIDE), jnp.asarray(2.0, WIDE)
    for actual, wanted in gradients(*x):
        jax.tree.map(close, actual, wanted)


@pytest.mark.once
@pytest.mark.parametrize("number", [float, np.float32, np.float64, np.asarray, jnp.asarray])
def test_numbers_of_any_kind(number):
    q, k, v, _ = arrays(dtype=jnp.float32)
    options = {"scale": number(0.5), "logit_softcap": number(2.0), "block_size": np.int64(4)}
    with jax.numpy_dtype_promotion("standard"):
        expected = dense(q, k, v, scale=0.5, softcap=2.0)[0]
        close(dot_product_attention(q, k, v, **options), expected, dtype="float32")


def test_a_cap_of_infinity_is_none():
    q, k, v, _ = arrays()
    close(
        *quick_jit(lambda *x: (dot_product_attention(*x, logit_softcap=np.inf), dense(*x)[0]))(
            q, k, v
        )
    )


# JAX's debugging modes: nothing is NaN on the way to finite results.


def options_of_all_kinds():
    """Query 1 sees no key by the mask, and the first example none by its length."""
    return {
        "mask": np.array([[True, False, True, True], [False] * 4, [True] * 4]),
        "is_causal": "bottom_right",
        "local_window_size": 3,
        "key_value_seq_lengths": np.array([0, 3]),
        "logit_softcap": 2.0,
        "dropout_rate": 0.3,
        "dropout_key": KEY,
        "block_size": (3, 2),
    }


@functools.cache
def modes_of_all_kinds():
    q, k, v, _ = arrays(T=3, S=4)
    x = q, k, v, jnp.asarray([-np.inf, 0.5, 0.0, -np.inf], WIDE)

    def f(q, k, v, sink):
        options = options_of_all_kinds() | {"return_residual": True}
        return dot_product_attention(q, k, v, sink=sink, **options)

    return every_mode(f, tuple(map(jnp.ones_like, x))), x


@pytest.mark.once
@pytest.mark.parametrize("mode", ["value", "jvp", "gradient", "reverse over reverse"])
def test_no_operation_makes_a_nan(mode):
    modes, x = modes_of_all_kinds()
    f = checkify.checkify(modes[mode], errors=checkify.nan_checks)
    with checking_leaks():
        error, result = quick_jit(f)(*x)
    assert error.get() is None
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(result))
    assert "nan" not in str(jax.make_jaxpr(modes[mode])(*x))  # nor a constant


@pytest.mark.once
@pytest.mark.parametrize("context", [contextlib.nullcontext, jax.disable_jit])
def test_no_nan_is_found_by_debug_nans(context):
    """With one operation at a time compiled, few of them: one head, one block."""
    q, k, v, _ = arrays(T=2, S=2, N=1, K=1)
    options = {"is_causal": True, "key_value_seq_lengths": np.array([0, 2])}

    def loss(q):
        return jnp.sum(dot_product_attention(q, k, v, **options))

    with jax.debug_nans(True), context():
        value, gradient = jax.value_and_grad(loss)(q)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


# Bad input

SHAPES = {"query": (B, T, N, H), "key": (B, S, 2, H), "value": (B, S, 2, H)}  # [2, 7, 4, 4], …

# (arguments, what the message says)
OF_VALUE = [
    ({"query": np.zeros((7, 4))}, r"`query` .*\(7, 4\)"),
    ({"key": np.zeros((2, 10, 2, 5))}, r"`key` .*\(2, 7, 4, 4\).*\(2, 10, 2, 5\)"),
    ({"value": np.zeros((2, 9, 2, 4))}, r"`value` .*\(2, 10, 2, 4\).*\(2, 9, 2, 4\)"),
    ({"query": np.zeros((2, 7, 3, 4))}, r"heads .*\(2, 7, 3, 4\).*\(2, 10, 2, 4\)"),
    ({"bias": np.zeros((2, 3, 7, 10))}, r"`bias` .*\(2, 4, 7, 10\).*\(2, 3, 7, 10\)"),
    ({"mask": np.zeros((7, 9), bool)}, r"`mask` .*\(2, 4, 7, 10\).*\(7, 9\)"),
    ({"mask": np.zeros((1, 1, 1, 7, 10), bool)}, r"`mask` .*\(1, 1, 1, 7, 10\)"),
    ({"query_seq_lengths": np.zeros(3, int)}, r"`query_seq_lengths` .*\(2,\).*\(3,\)"),
    ({"local_window_size": -1}, r"`local_window_size` .*≥ 0.*-1"),
    ({"local_window_size": (1, 2, 3)}, r"`local_window_size` .*\(1, 2, 3\)"),
    ({"block_size": 0}, r"`block_size` .*≥ 1.* 0"),
    ({"logit_softcap": 0.0}, r"`logit_softcap` .*0\.0"),
    ({"logit_softcap": np.nan}, r"`logit_softcap` .*nan"),
    ({"logit_softcap": [1.0]}, r"`logit_softcap` .*scalar.*\(1,\)"),
    ({"scale": np.ones(2)}, r"`scale` .*scalar.*\(2,\)"),
    ({"scale": jnp.ones((1, 1))}, r"`scale` .*scalar.*\(1, 1\)"),
    ({"is_causal": "yes"}, r"`is_causal` .*'bottom_right'.*'yes'"),
    ({"implementation": "cudnn"}, r"`implementation` .*'xla'.*'cudnn'"),
    ({"sink": np.zeros(2)}, r"`sink` .*\(4,\).*\(2,\)"),
    ({"dropout_rate": 1.0}, r"`dropout_rate` .*\[0, 1\).*1\.0"),
    ({"dropout_rate": -0.1}, r"`dropout_rate` .*\[0, 1\).*-0\.1"),
    ({"dropout_rate": 0.1}, r"`dropout_key` .*0\.1"),
    ({"dropout_rate": 0.1, "dropout_key": jax.random.split(KEY)}, r"`dropout_key` .*\(2,\)"),
    ({"precision": "exact"}, r"Precision .*exact"),
]
OF_TYPE = [
    ({"key": np.zeros((2, 10, 2, 4), np.float16)}, r"`key` .*float16"),
    ({"value": np.zeros((2, 10, 2, 3), bool)}, r"`value` .*bool"),
    ({"bias": np.zeros((7, 10), complex)}, r"`bias` .*complex"),
    ({"mask": np.zeros((7, 10))}, r"`mask` .*boolean.*float"),
    ({"key_value_seq_lengths": np.zeros(2)}, r"`key_value_seq_lengths` .*float"),
    ({"local_window_size": 2.0}, r"`local_window_size` .*2\.0"),
    ({"local_window_size": True}, r"`local_window_size` .*True"),
    ({"block_size": "4"}, r"`block_size` .*'4'"),
    ({"scale": "large"}, r"`scale` .*'large'"),
    ({"scale": True}, r"`scale` .*True"),
    ({"scale": jnp.ones((), bool)}, r"`scale` .*bool"),
    ({"is_causal": 1}, r"`is_causal` .*int"),
    ({"is_causal": None}, r"`is_causal` .*NoneType"),
    ({"is_causal": np.ones(2, bool)}, r"`is_causal` .*ndarray"),
    ({"return_residual": "no"}, r"`return_residual` .*str"),
    ({"broadcast_dropout": 1}, r"`broadcast_dropout` .*int"),
    ({"sink": np.zeros(4, bool)}, r"`sink` .*bool"),
    ({"dropout_rate": 0.1, "dropout_key": 3}, r"`dropout_key` .*int"),
    ({"axis_name": 3}, r"`axis_name` .*3"),
]
BAD = [(ValueError, *row) for row in OF_VALUE] + [(TypeError, *row) for row in OF_TYPE]


@pytest.mark.once
@pytest.mark.parametrize(("error", "change", "message"), BAD)
def test_bad_input_names_the_argument_and_what_it_got(error, change, message):
    given = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    with pytest.raises(error, match=f"(?s){message}"):
        dot_product_attention(**(given | change))


def test_the_mean_of_values_near_the_largest_number_is_one():
    q, v = jnp.ones((1, 1, 1, 2), jnp.float32), jnp.full((1, 2, 1, 2), 3e38, jnp.float32)
    output = dot_product_attention(q, jnp.ones_like(v), v)
    np.testing.assert_allclose(output, v[:, :1], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "products"), [("gradient", 7), ("jvp", 7), ("forward over reverse", 19)]
)
def test_keys_of_one_block_are_multiplied_once(mode, products):
    """With the queries: once in the value, once in its derivative; 10, 10 and 29 of two blocks."""
    function = derivatives(dot_product_attention)[mode]
    assert jax.jit(function).lower(*arrays()[:3]).as_text().count("dot_general") == products

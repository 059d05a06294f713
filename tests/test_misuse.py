"""What is easily given wrong: the error names it and says what to do; and what is easily missed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close

import jaxsoftjac as jsj
from jaxsoftjac import curvature

pytestmark = pytest.mark.once

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), WIDE)
LABELS = np.array([0, 1, 2, 0])


def product(model, make=jsj.gauss_newton_product, **options):
    return make(model, **options)(X[0], X, LABELS, X[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: product(lambda p, x: (x * p[None], 0)),
            TypeError,
            r"`model` must return logits \[..., K\], got tuple",
        ),
        (
            lambda: product(lambda p, x: jnp.vdot(x[0], p), jsj.fisher_product),
            ValueError,
            r"`model` must return logits \[..., K\], got float\d+\[\]",
        ),
        (
            lambda: product(lambda p, x: x * p[None], head="kernel"),
            TypeError,
            "`head` must be a function where the parameters have no keys, got 'kernel'",
        ),
        (
            lambda: curvature.sampled_fisher_product(lambda p, x: x * p[None])(
                X[0], X, LABELS, X[0]
            ),
            TypeError,
            "`key` must be a random key, got dtype int",
        ),
        (
            lambda: jsj.SoftmaxJacobian.from_logits(X).sample(jax.random.split(jax.random.key(0))),
            ValueError,
            r"`key` must be a single random key, got shape \(2,\)",
        ),
        (
            lambda: jsj.linear_cross_entropy(X, X[0], LABELS),
            ValueError,
            r"`kernel` must have shape \(D, V ≥ 1\), got \(3,\)",
        ),
        (
            lambda: jsj.linear_cross_entropy_gauss_newton(X, X[0], LABELS, (X, X[0])),
            ValueError,
            r"`kernel` must have shape \(D, V ≥ 1\), got \(3,\)",
        ),
        (
            lambda: jsj.cross_entropy(X, jax.nn.one_hot(LABELS, 3, dtype=int)),
            ValueError,
            r"got \(4, 3\): cast what is one-hot by .astype\(float\)",
        ),
        (
            lambda: jsj.softmax(3.0),
            ValueError,
            r"`axis` must be None or \(\) for a number, which has no axis, got \(-1,\)",
        ),
        (
            lambda: jax.jit(
                lambda w: jsj.dot_product_attention(*[X[:, None]] * 3, local_window_size=w)
            )(2),
            TypeError,
            "`local_window_size` must be one or two ints ≥ 0, got",
        ),
    ],
)
def test_the_error_says_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_window_as_an_array():
    x = [X[:, None]] * 3
    windows = (1, 2), np.array([1, 2]), jnp.array([1, 2])
    found = [jsj.dot_product_attention(*x, local_window_size=w) for w in windows]
    close(found[1], found[0])
    close(found[2], found[0])


def test_a_teacher_has_arrays_only_and_can_be_mapped():
    kernel = jnp.ones((3, 5), X.dtype) * jnp.arange(5, dtype=X.dtype)[None]
    teacher = jsj.LinearTarget(X, jnp.stack([kernel] * 4))

    def loss(x, teacher):
        return jsj.linear_cross_entropy(x, kernel, teacher)

    mapped = jax.vmap(loss)(X, teacher)
    each = [loss(X[i], jsj.LinearTarget(X[i], kernel)) for i in range(4)]
    close(mapped, jnp.stack(each))
    same = jsj.LinearTarget(X, kernel, temperature=1.0)
    close(loss(X, same), loss(X, jsj.LinearTarget(X, kernel)))


def test_what_is_loaded_later_is_listed():
    assert {"examples", "optimizers", "plots", "regression"} <= set(dir(jsj))
    assert jsj.examples.__doc__
    assert "SoftmaxRegression" in dir(jsj.regression)

"""References, rows to test on, and the one tolerance table."""

import contextlib
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np

# Where structure is the subject, not rounding: compile quickly.
FAST: dict[str, int | bool] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):  # later versions have no other emitters
    FAST["xla_cpu_use_fusion_emitters"] = False
quick_jit = functools.partial(jax.jit, compiler_options=FAST)


@contextlib.contextmanager
def checking_leaks():
    """As jax.checking_leaks, which looks among all that is not frozen, over and over."""
    gc.collect()
    gc.freeze()
    with jax.checking_leaks():
        yield


U = 2.0**-24  # unit roundoff of float32
WIDE = jnp.result_type(float)  # float64 with x64 on, else float32

# Relative tolerance for structure tests, where rounding is not the subject.
RTOL = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def f32(*entries):
    """A float32 array."""
    return jnp.asarray(entries, jnp.float32)


def close(actual, expected, dtype=None, scale=1.0):
    """Asserts agreement, relative to the largest expected entry (at least `scale`)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    size = max(scale, float(np.max(np.abs(expected.astype(np.float64)), initial=0)))
    rtol = RTOL[str(dtype or actual.dtype)]
    np.testing.assert_allclose(
        actual.astype(np.float64), expected.astype(np.float64), rtol=0, atol=rtol * size
    )


def plain_softmax(x, axis=-1, where=None):
    """The textbook formula, for JAX to differentiate."""
    x = x if where is None else jnp.where(where, x, -jnp.inf)
    e = jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True)))
    return e / jnp.sum(e, axis, keepdims=True)


def long_softmax(x):
    """σ, log σ and the top index of rows, in long double."""
    x = np.asarray(x, np.longdouble)
    top = x.argmax(-1)[..., None]
    depth = x - np.take_along_axis(x, top, -1)
    e = np.exp(depth)
    np.put_along_axis(e, top, 0, -1)
    rest = e.sum(-1, keepdims=True)
    np.put_along_axis(e, top, 1, -1)
    return e / (1 + rest), depth - np.log1p(rest), top


def long_product(x, v):
    """Jv of rows in long double; the top entry is minus the sum of the others."""
    sigma, _, top = long_softmax(x)
    v = np.asarray(v, np.longdouble)
    d = v - np.take_along_axis(v, top, -1)
    w = sigma * (d - (sigma * d).sum(-1, keepdims=True))
    np.put_along_axis(w, top, 0, -1)
    np.put_along_axis(w, top, -w.sum(-1, keepdims=True), -1)
    return w


def long_centre(x, v):
    """v − ⟨σ, v⟩ of rows in long double."""
    sigma, _, top = long_softmax(x)
    v = np.asarray(v, np.longdouble)
    d = v - np.take_along_axis(v, top, -1)
    return d - (sigma * d).sum(-1, keepdims=True)


def relative_error(actual, expected):
    """‖actual − expected‖₁ / ‖expected‖₁ of each row; rows whose reference is 0 must be 0 to u³."""
    error = np.abs(np.asarray(actual, np.longdouble) - expected).sum(-1)
    norm = np.abs(expected).sum(-1)
    return (error / np.maximum(norm, 1e-30)).astype(np.float64)


def peaked_rows(K, gap, offset, modes, rows, seed=0):
    """float32 logits with `modes` classes `gap` ahead of the rest, and vectors around `offset`."""
    random = np.random.default_rng([seed, K, modes, int(gap)])
    x = random.normal(size=(rows, K))
    for row in x:
        row[random.choice(K, modes, replace=False)] += gap + 2
    v = random.normal(size=(rows, K)) + offset
    return x.astype(np.float32), v.astype(np.float32)

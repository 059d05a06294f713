"""Under jit, at sizes where compilers fuse and parallelise, against float64 NumPy.

JAX 0.10.2's CPU compiler is wrong here, where σ is broadcast against a batch of vectors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftjac as jsj

pytestmark = [pytest.mark.once, pytest.mark.slow]  # of use as compiled

SHAPES = [(1257, 10), (40, 1000), (2, 50000)]  # three vectors of that shape: over 32768 elements


def close(found, exact, tolerance=3e-5):
    found, exact = np.asarray(found, np.float64), np.asarray(exact)
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= tolerance * np.abs(exact).max()


@functools.cache
def arrays(shape):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, *shape)).astype(np.float32) * 2
    v = random.normal(size=(3, *shape)).astype(np.float32)
    return x, y, v, random.integers(0, shape[1], shape[0])


def sigma_of(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def product(sigma, v):
    v = np.asarray(v, np.float64)
    return sigma * (v - (sigma * v).sum(-1, keepdims=True))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_several_vectors(shape, batched):
    x, _, v, _ = arrays(shape)
    logits = np.stack([x, x / 2, -x]) if batched else x
    in_axes = (0, 0 if batched else None)

    @jax.jit
    def products(v, x):
        sigma = jsj.softmax(x)
        J = jsj.SoftmaxJacobian(sigma)
        both = functools.partial(jax.vmap, in_axes=in_axes)
        mv = jax.vmap(lambda v, s: jsj.SoftmaxJacobian(s).mv(v), in_axes)(v, sigma)
        columns = J @ jnp.moveaxis(v, 0, -1) if not batched else jnp.moveaxis(mv, 0, -1)
        return (
            both(jsj.softmax_vjp)(v, sigma),
            both(jsj.softmax_jvp)(v, sigma),
            both(lambda v, x: jax.jvp(jsj.softmax, (x,), (v,))[1])(v, x),
            both(lambda v, x: jax.vjp(jsj.softmax, x)[1](v)[0])(v, x),
            mv,
            jnp.moveaxis(columns, -1, 0),
        )

    exact = product(sigma_of(logits), v)
    for found in products(v, logits):
        close(found, exact)
    log_jvp = jax.jit(jax.vmap(lambda v, x: jax.jvp(jsj.log_softmax, (x,), (v,))[1], in_axes))
    v64, sigma = np.asarray(v, np.float64), sigma_of(logits)
    close(log_jvp(v, logits), v64 - (sigma * v64).sum(-1, keepdims=True))
    second = jax.jit(
        jax.vmap(lambda v, x: jsj.softmax_second_derivative(v, v, jsj.softmax(x)), in_axes)
    )
    centred = v64 - (sigma * v64).sum(-1, keepdims=True)
    close(second(v, logits), product(sigma, centred**2), 2e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_their_hessian_products(shape):
    x, y, v, labels = arrays(shape)
    sigma, target = sigma_of(x), sigma_of(y)
    one_hot = np.eye(shape[1])[labels] if shape[1] <= 1000 else None
    if one_hot is None:
        one_hot = np.zeros(shape)
        one_hot[np.arange(shape[0]), labels] = 1
    log_sigma, log_target = np.log(sigma), np.log(target)
    losses = {
        "labels": (lambda x: jsj.cross_entropy(x, labels), sigma - one_hot, 1),
        "probabilities": (
            lambda x: jsj.cross_entropy(x, jnp.asarray(target, jnp.float32)),
            sigma - target,
            1,
        ),
        "logsumexp": (lambda x: jsj.logsumexp(x, axis=-1), sigma, 1),
        "kl": (lambda x: jsj.kl_divergence(x, y), sigma - target, 1),
        "entropy": (jsj.entropy, -product(sigma, log_sigma), 0),
    }
    for f, gradient, is_convex in losses.values():

        def pulled(x, f=f):
            y, pullback = jax.vjp(f, x)
            return y, pullback(jnp.ones_like(y))[0]

        @jax.jit
        def all_orders(x, pulled=pulled):
            along = jax.vmap(lambda v: jax.jvp(pulled, (x,), (v,)), out_axes=((0, None), 0))
            (_, found), pushed_and_hvp = along(v)
            return found, *pushed_and_hvp

        found, pushed, hvp = all_orders(x)
        close(found, gradient)
        close(pushed, (gradient * np.asarray(v, np.float64)).sum(-1))
        if is_convex:
            close(hvp, product(sigma, v))
    by_target = jax.jit(jax.grad(lambda y: jnp.sum(jsj.kl_divergence(x, y))))
    close(by_target(y), product(target, log_target - log_sigma))


NAN_KEPT = {
    "softmax": lambda x: jnp.sum(jsj.softmax(x), -1),
    "log_softmax": lambda x: jsj.log_softmax(x)[:, 1],
    "logsumexp": lambda x: jsj.logsumexp(x, axis=-1),
    "cross_entropy": lambda x: jsj.cross_entropy(x, np.ones(len(x), int), z_loss=0.1),
    "entropy": jsj.entropy,
    "KL by the model": lambda x: jsj.kl_divergence(x, jnp.ones_like(x)),
    "KL by the target": lambda x: jsj.kl_divergence(jnp.ones_like(x), x),
    "entmax": lambda x: jnp.sum(jsj.entmax(x), -1),
    "entmax_loss": lambda x: jsj.entmax_loss(x, np.ones(len(x), int)),
}


@pytest.mark.parametrize("name", NAN_KEPT)
def test_a_nan_is_not_lost(name):
    """XLA's CPU compiler loses it in the maximum of so many numbers."""
    x = np.random.default_rng(0).normal(size=(1100, 33)).astype(np.float32)
    x[[5, 7]] = -np.inf
    x[5, 0] = x[6, 3] = x[7, 32] = np.nan
    assert np.flatnonzero(np.isnan(jax.jit(NAN_KEPT[name])(x))).tolist() == [5, 6, 7]


def test_a_teacher_beneath_a_vocabulary():
    N, D, V = 64, 16, 20000
    random = np.random.default_rng(2)
    shapes = {"h": (N, D), "k": (D, V), "th": (N, D // 2), "tk": (D // 2, V)}
    arrays = {k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    h, k, th, tk = (a.astype(np.float64) for a in arrays.values())
    sigma, p = sigma_of(h @ k), sigma_of(th @ tk / 2)

    def loss(rows):
        target = jsj.LinearTarget(rows["th"], rows["tk"], temperature=2.0)
        return jsj.linear_cross_entropy(rows["h"], rows["k"], target, reduction="sum")

    along = jax.tree.map(np.cos, arrays)
    value_and_gradient = jax.value_and_grad(loss)
    (value, gradient), (pushed, _) = jax.jit(
        lambda rows: jax.jvp(value_and_gradient, (rows,), (along,))
    )(arrays)
    by_student, by_teacher = sigma - p, -product(p, h @ k) / 2
    exact = {"h": by_student @ k.T, "k": h.T @ by_student}
    exact |= {"th": by_teacher @ tk.T, "tk": th.T @ by_teacher}
    for name, found in gradient.items():
        close(found, exact[name])
    close(value, -np.sum(p * np.log(sigma)))
    close(pushed, sum(np.vdot(exact[name], t) for name, t in along.items()), 2e-4)


def test_a_hessian_and_a_gauss_newton_matrix_of_a_linear_model():
    x, _, _, labels = arrays((1257, 10))
    X = x[:, :4].astype(np.float64)
    W = np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32)
    sigma = sigma_of(X @ W)
    J = np.einsum("nk,kl->nkl", sigma, np.eye(10)) - np.einsum("nk,nl->nkl", sigma, sigma)
    exact = np.einsum("na,nkl,nb->akbl", X, J, X) / len(X)
    X = jnp.asarray(X, jnp.float32)
    close(jax.jit(jax.hessian(lambda W: jnp.mean(jsj.cross_entropy(X @ W, labels))))(W), exact)
    gauss_newton = jsj.gauss_newton_product(lambda W, X: X @ W)
    basis = np.eye(40, dtype=np.float32).reshape(40, 4, 10)
    found = jax.jit(lambda W: jax.vmap(lambda t: gauss_newton(W, X, labels, t))(basis))(W)
    close(found.reshape(4, 10, 4, 10), exact)
    linear = jax.jit(
        jax.hessian(
            lambda W: jsj.linear_cross_entropy(X, W, labels, reduction="mean", block_size=4)
        )
    )
    close(linear(W), exact)


def test_the_temporaries_of_a_vjp_are_no_more_than_known():
    """On JAX 0.10 those of jax.nn's; on 0.12, where that writes into its results, two arrays.

    There the eight parts of two sums are kept as well.
    """

    def with_vjp(softmax, x, g):
        sigma, pullback = jax.vjp(softmax, x)
        return sigma, pullback(g)[0]

    x = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    ours, theirs = (
        jax.jit(functools.partial(with_vjp, softmax)).lower(x, x).compile().memory_analysis()
        for softmax in (jsj.softmax, jax.nn.softmax)
    )
    array = 512 * 1024 * 4
    known = theirs.temp_size_in_bytes if jax.__version_info__ < (0, 11) else 2 * array + array // 4
    assert ours.temp_size_in_bytes <= known + array // 100  # and numbers of a row


@pytest.mark.parametrize("mode", ["gradient", "jvp", "forward over reverse", "Gauss–Newton"])
def test_linear_losses_hold_nothing_of_the_size_of_the_kernel(mode):
    """A tangent of the kernel is read in place, and its gradient written into the result."""
    n, d, v = 64, 128, 4096
    rows = jnp.ones((n, d), jnp.float32), jnp.ones((d, v), jnp.float32)
    labels, options = jnp.zeros(n, jnp.int32), {"block_size": 256, "reduction": "mean"}

    def loss(rows):
        return jsj.linear_cross_entropy(*rows, labels, **options)

    program = {
        "gradient": jax.grad(loss),
        "jvp": lambda rows: jax.jvp(loss, (rows,), (rows,)),
        "forward over reverse": lambda rows: jax.jvp(jax.grad(loss), (rows,), (rows,))[1],
        "Gauss–Newton": lambda rows: jsj.linear_cross_entropy_gauss_newton(
            *rows, labels, rows, **options
        ),
    }[mode]
    memory = jax.jit(program).lower(rows).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.6 * d * v * 4

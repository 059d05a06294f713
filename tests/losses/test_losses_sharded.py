"""Cross-entropy, entropy and KL with the classes over devices: values, every mode, what is sent."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from jax.sharding import PartitionSpec as P

import jaxsoftjac as jsj

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)) * 9, WIDE)
LABELS = np.array([0, 5, -100])
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.1, "ignore_index": -100}


def mesh_of_classes():
    return jax.make_mesh((4,), ("k",), axis_types=(jax.sharding.AxisType.Auto,))


def derivatives(loss, x):
    """Value, gradient, jvp and the three second-order nestings of a scalar function."""
    v = jnp.cos(x)

    def pushed(x):
        return jax.jvp(loss, (x,), (v,))[1]

    return (
        loss(x),
        jax.grad(loss)(x),
        pushed(x),
        jax.jvp(jax.grad(loss), (x,), (v,))[1],
        jax.grad(pushed)(x),
        jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) * v))(x),
    )


def test_classes_split_over_a_mapped_axis():
    local = functools.partial(jsj.cross_entropy, axis_name="k", **OPTIONS)
    specs = {"in_specs": P(None, "k"), "out_specs": P()}
    split = jax.shard_map(lambda x: local(x, LABELS), mesh=mesh_of_classes(), **specs)
    losses = split, lambda x: jsj.cross_entropy(x, LABELS, **OPTIONS)

    def every_mode(loss):
        return quick_jit(lambda x: derivatives(lambda x: jnp.sum(jnp.sin(loss(x))), x)).lower(X)

    of_split, of_whole = (every_mode(loss).compile() for loss in losses)
    for a, b in zip(of_split(X), of_whole(X), strict=True):
        close(a, b)
    assert "all-reduce" in of_split.as_text()
    assert "all-gather" not in of_split.as_text()


def test_classes_split_over_an_axis_of_vmap():
    @quick_jit
    def both(x):
        split = functools.partial(jsj.cross_entropy, axis_name="k", **OPTIONS)
        slices = jnp.moveaxis(x.reshape(3, 4, 2), 1, 0)
        over_vmap = jax.vmap(lambda x: split(x, LABELS), axis_name="k")(slices)
        return over_vmap[2], jsj.cross_entropy(x, LABELS, **OPTIONS)

    close(*both(X))


def test_each_device_has_its_rows_of_the_hessian():
    local = functools.partial(jsj.cross_entropy_hessian, axis_name="k", **OPTIONS)
    specs = {"in_specs": P(None, "k"), "out_specs": P(None, "k", None)}
    split = jax.shard_map(lambda x: local(x, LABELS), mesh=mesh_of_classes(), **specs)
    close(*quick_jit(lambda x: (split(x), jsj.cross_entropy_hessian(x, LABELS, **OPTIONS)))(X))


def gathers(program, width):
    """The all-gathers in the compiled program: of narrow rows, or of anything from wide ones."""
    of_rows = r"\b64\]\S*" if width == 64 else r"\S*"
    lines = program.as_text().splitlines()
    return [line for line in lines if re.search(rf"= \S*{of_rows} all-gather", line)]


@quick_jit
def gradients(x, labels):
    losses = {
        "cross_entropy": lambda x: jsj.cross_entropy(x, labels, label_smoothing=0.1),
        "entropy": jsj.entropy,
        "kl_divergence": lambda x: jsj.kl_divergence(x, jnp.sin(x)),
        "softmax": lambda x: jsj.softmax(x) * jnp.cos(x),
        "log_softmax": lambda x: jsj.log_softmax(x) * jnp.cos(x),
    }
    each = {name: lambda x, f=f: jnp.sum(f(x)) for name, f in losses.items()}
    return {name: jax.value_and_grad(f)(x) for name, f in each.items()}


@pytest.mark.once
@pytest.mark.parametrize("width", [pytest.param(64, marks=pytest.mark.slow), 4096])
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_classes_are_not_gathered(axis_type, width):
    mesh = jax.make_mesh(
        (2, 4), ("n", "k"), axis_types=2 * (getattr(jax.sharding.AxisType, axis_type),)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, width)), jnp.float32)
    labels = np.array([0, width - 1, 17, 5], np.int32)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, P("n", "k")))
    with jax.set_mesh(mesh):
        if axis_type == "Auto":  # what the check must find
            sorting = quick_jit(lambda x: jnp.sort(x, axis=-1)).lower(sharded)
            assert gathers(sorting.compile(), width)
        placed = jax.device_put(labels, jax.NamedSharding(mesh, P("n")))
        split = gradients.lower(sharded, placed).compile()
        assert not gathers(split, width)
        jax.tree.map(close, split(sharded, placed), gradients(x, labels))

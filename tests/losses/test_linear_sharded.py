"""linear_cross_entropy over devices: of examples, and of slices of the vocabulary."""

import functools

import jax
import jax.numpy as jnp
import pytest
from helpers import close, quick_jit
from linear_cases import NESTINGS, D, blockwise, modes, operands

import jaxsoftjac as jsj
from jaxsoftjac.losses import LinearTarget, linear_cross_entropy

pytestmark = pytest.mark.once


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


@pytest.mark.parametrize("of", ["labels", "teacher"])
@pytest.mark.parametrize("way", ["shard_map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_kernel_that_is_split_over_devices(way, of):
    rows = {k: a for k, a in operands().items() if k != "bias"}
    rows["kernel"] = rows["kernel"][:, :8]
    labels = jnp.array([0, 7, 3, 4, 7, 7])
    options = {"label_smoothing": 0.1, "z_loss": 0.2}

    def target(hidden, kernel):  # its arrays move with those of the student
        return labels if of == "labels" else LinearTarget(jnp.sin(hidden), 2 * jnp.cos(kernel))

    def local(hidden, kernel):
        given = hidden, kernel, target(hidden, kernel)
        return linear_cross_entropy(*given, block_size=3, axis_name="v", **options)

    if way == "shard_map":
        mesh = jax.make_mesh((2,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))
        P = jax.P
        split = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "v")), out_specs=P())
    else:

        def split(hidden, kernel):
            kernel = jnp.moveaxis(kernel.reshape(D, 2, 4), 1, 0)
            return jax.vmap(local, (None, 0), None, axis_name="v")(hidden, kernel)

    ours = modes(lambda rows: split(rows["hidden"], rows["kernel"]))

    def whole(rows):
        expected = target(**rows)
        if of == "teacher":
            expected = jsj.softmax(expected.hidden @ expected.kernel)
        return jsj.cross_entropy(rows["hidden"] @ rows["kernel"], expected, **options)

    plain = modes(whole)

    def all_modes(modes):
        return quick_jit(lambda rows: {k: modes[k](rows) for k in NESTINGS})

    actual, expected = all_modes(ours)(rows), all_modes(plain)(rows)
    jax.tree.map(functools.partial(close, scale=3.0), actual, expected)

"""Curvature and optimizers where the examples, or the classes, are split over a mapped axis."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxsoftjac as jsj
from jaxsoftjac import curvature
from jaxsoftjac.optimizers import diagonal_gauss_newton, gauss_newton_cg, natural_gradient

pytestmark = pytest.mark.once

random = np.random.default_rng(0)
INPUTS = jnp.asarray(random.normal(size=(8, 3)), WIDE)
LABELS = jnp.asarray([0, 1, 2, 3, -1, 1, -1, -1])  # not as many on each device
PARAMS = {
    "first": jnp.asarray(random.normal(size=(3, 3)), WIDE),
    "kernel": jnp.asarray(random.normal(size=(3, 4)), WIDE),
}
TANGENTS = jax.tree.map(jnp.cos, PARAMS)
CLASS_WEIGHTS = jnp.asarray([0.5, 1, 2, 3], WIDE)


def hidden(params, inputs):
    return jnp.tanh(inputs @ params["first"])


def model(params, inputs):
    return hidden(params, inputs) @ params["kernel"]


def loss(params, inputs, labels):
    return jsj.cross_entropy(model(params, inputs), labels, ignore_index=-1, reduction="mean")


GRADIENT = jax.grad(loss)(PARAMS, INPUTS, LABELS)


def mesh_of(name, axis_type=AxisType.Auto):
    return jax.make_mesh((4,), (name,), axis_types=(axis_type,), devices=jax.devices()[:4])


def in_shard_map(check_vma, f):
    specs = P(), P("d"), P("d")
    mapped = jax.shard_map(f, mesh=mesh_of("d"), in_specs=specs, out_specs=P(), check_vma=check_vma)
    return quick_jit(mapped)


def in_parts(run, f):
    def mapped(params, *batch):
        parts = [a.reshape(4, 2, *a.shape[1:]) for a in batch]
        each = run(f)(params, *parts)
        jax.tree.map(lambda a: close(a, jnp.broadcast_to(a[:1], a.shape)), each)
        return jax.tree.map(lambda a: a[0], each)

    return mapped


MAPS = {
    "shard_map": partial(in_shard_map, True),
    "unchecked shard_map": partial(in_shard_map, False),
    "vmap": partial(in_parts, lambda f: quick_jit(jax.vmap(f, (None, 0, 0), axis_name="d"))),
    "pmap": partial(in_parts, partial(jax.pmap, axis_name="d", in_axes=(None, 0, 0))),
}


def everything(params, inputs, labels, **options):
    """What does not depend on random numbers."""
    options = {"ignore_index": -1} | options
    quadratic = jsj.gauss_newton_product(model, linearized=True, damping=0.5, **options)
    value, gradient, product = quadratic(params, inputs, labels)
    of_head = {"head": "kernel", "class_weights": CLASS_WEIGHTS} | options
    beneath = jsj.gauss_newton_product(hidden, **of_head)(params, inputs, labels, TANGENTS)

    def custom(z, y, ignore_index):
        return jsj.cross_entropy(z, y, ignore_index=ignore_index) ** 2

    of_custom = jsj.gauss_newton_product(model, custom, **options)(params, inputs, labels, TANGENTS)
    diagonal = curvature.gauss_newton_diagonal(model, **options)(params, inputs, labels)
    fisher = jsj.fisher_product(model, **options)(params, inputs, labels, TANGENTS)
    return value, gradient, product(TANGENTS), beneath, of_custom, diagonal, fisher


@pytest.mark.parametrize("way", MAPS)
def test_the_mean_is_over_the_examples_of_all_devices(way):
    found = MAPS[way](partial(everything, batch_axis_name="d"))(PARAMS, INPUTS, LABELS)
    jax.tree.map(close, found, quick_jit(everything)(PARAMS, INPUTS, LABELS))


def steps(make, params, inputs, labels, **options):
    """The updates of two steps, the second with the damping that the first has led to."""
    optimizer = make(model, ignore_index=-1, **options)
    state = optimizer.init(params)
    batch, updates = {"inputs": inputs, "labels": labels}, []
    for _ in range(2):
        update, state = optimizer.update(GRADIENT, state, params, **batch)
        updates.append(update)
        params = jax.tree.map(jnp.add, params, update)
    return updates


@pytest.mark.parametrize("way", MAPS)
def test_steps_of_conjugate_gradients_are_those_of_one_device(way):
    of = partial(steps, partial(gauss_newton_cg, precondition=False, cg_tolerance=1e-9))
    found = MAPS[way](partial(of, batch_axis_name="d"))(PARAMS, INPUTS, LABELS)
    expected = quick_jit(of)(PARAMS, INPUTS, LABELS)
    jax.tree.map(partial(close, scale=100.0), found, expected)


def sampled(params, inputs, labels):
    key = jax.random.key(0)
    options = {"ignore_index": -1, "samples": 4000, "batch_axis_name": "d"}
    product = curvature.sampled_fisher_product(model, **options)
    diagonal = curvature.gauss_newton_diagonal(model, **options)
    return product(params, inputs, key, TANGENTS, labels), diagonal(params, inputs, key, labels)


def test_samples_of_different_devices_are_independent():
    found = MAPS["shard_map"](sampled)(PARAMS, INPUTS, LABELS)
    *_, diagonal, product = quick_jit(everything)(PARAMS, INPUTS, LABELS)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves((product, diagonal)), strict=True):
        np.testing.assert_allclose(a, b, atol=0.1 * np.abs(b).max())


@pytest.mark.parametrize(
    "make", [natural_gradient, partial(diagonal_gauss_newton, learning_rate=0.1)]
)
def test_all_devices_take_the_same_steps(make):
    """JAX checks that: what differs could not be returned as one array."""
    of = partial(steps, make, batch_axis_name="d")
    first, _ = MAPS["shard_map"](of)(PARAMS, INPUTS, LABELS)
    moved = jax.tree.map(jnp.add, PARAMS, first)
    assert loss(moved, INPUTS, LABELS) < loss(PARAMS, INPUTS, LABELS)


def of_kernel(kernel, class_weights, tangents, axis_name=None):
    quadratic = jsj.gauss_newton_product(
        lambda kernel, x: x @ kernel,
        linearized=True,
        class_weights=class_weights,
        axis_name=axis_name,
    )
    value, gradient, product = quadratic(kernel, INPUTS, LABELS % 4)
    return value, gradient, product(tangents)


def placed(mesh, tree, specs):
    return jax.tree.map(lambda a, s: jax.device_put(a, jax.NamedSharding(mesh, s)), tree, specs)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("kernel", [P("k", None), P(None, "k")])
@pytest.mark.parametrize(
    ("make", "is_exact"),
    [
        (gauss_newton_cg, False),  # of a sampled preconditioner
        (partial(gauss_newton_cg, precondition=False, cg_tolerance=1e-9), True),
        (partial(diagonal_gauss_newton, learning_rate=0.1), False),
    ],
)
def test_steps_of_split_arrays(make, is_exact, kernel, kind):
    """Parameters, hidden features and examples are split; samples are those of each device."""
    mesh = jax.make_mesh((2, 4), ("b", "k"), axis_types=(kind,) * 2)
    params = {
        "first": jnp.asarray(random.normal(size=(3, 4)), WIDE),
        "kernel": jnp.asarray(random.normal(size=(4, 4)), WIDE),
    }
    optimizer = make(hidden, head="kernel", ignore_index=-1)

    def step(params, inputs, labels):
        gradient, state = jax.tree.map(jnp.cos, params), optimizer.init(params)
        return optimizer.update(gradient, state, params, inputs=inputs, labels=labels)[0]

    expected = quick_jit(step)(params, INPUTS, LABELS)
    with jax.set_mesh(mesh):
        split = placed(mesh, params, {"first": P(None, "k"), "kernel": kernel})
        found = quick_jit(step)(split, placed(mesh, INPUTS, P("b", None)), LABELS)
        found = jax.tree.map(np.asarray, found)
    if is_exact:
        jax.tree.map(partial(close, scale=100.0), found, expected)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(found))


SPLIT = P(None, "k"), P("k"), P(None, "k")


def over_explicit_axes(*arguments):
    mesh = mesh_of("k", AxisType.Explicit)
    with jax.set_mesh(mesh):
        return jax.tree.map(np.asarray, quick_jit(of_kernel)(*placed(mesh, arguments, SPLIT)))


def over_a_mapped_axis(*arguments):
    return quick_jit(
        jax.shard_map(
            partial(of_kernel, axis_name="k"),
            mesh=mesh_of("k"),
            in_specs=SPLIT,
            out_specs=(P(), *SPLIT[::2]),
        )
    )(*arguments)


@pytest.mark.parametrize("head", [None, "kernel"])
def test_examples_and_classes_split_over_two_axes(head):
    def product(params, class_weights, inputs, labels, **names):
        of = jsj.gauss_newton_product(
            model if head is None else hidden, head=head, class_weights=class_weights, **names
        )
        return of(params, inputs, labels, jax.tree.map(jnp.cos, params))

    mesh = jax.make_mesh(
        (2, 2), ("d", "k"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )
    split = {"first": P(), "kernel": P(None, "k")}
    run = jax.shard_map(
        partial(product, axis_name="k", batch_axis_name="d"),
        mesh=mesh,
        in_specs=(split, P("k"), P("d"), P("d")),
        out_specs=split,
    )
    arguments = PARAMS, CLASS_WEIGHTS, INPUTS, LABELS % 4
    jax.tree.map(close, quick_jit(run)(*arguments), quick_jit(product)(*arguments))


@pytest.mark.parametrize("run", [over_a_mapped_axis, over_explicit_axes])
def test_class_weights_that_are_split_like_the_classes(run):
    arguments = PARAMS["kernel"], CLASS_WEIGHTS, TANGENTS["kernel"]
    jax.tree.map(close, run(*arguments), of_kernel(*arguments))

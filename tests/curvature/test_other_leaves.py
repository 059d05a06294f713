"""Parameters with leaves that have no derivative: integers, keys, None, functions, modules."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import WIDE, close, quick_jit

import jaxsoftjac as jsj
from jaxsoftjac.curvature import (
    fisher_product,
    gauss_newton_diagonal,
    gauss_newton_product,
    sampled_fisher_product,
)
from jaxsoftjac.optimizers import diagonal_gauss_newton, gauss_newton_cg
from jaxsoftjac.transforms import hessian, hvp, jacobian

pytestmark = pytest.mark.once

random = np.random.default_rng(0)
INPUTS = jnp.asarray(random.normal(size=(6, 4)), WIDE)
LABELS = random.integers(0, 3, size=6)
PLAIN = {"kernel": jnp.asarray(random.normal(size=(4, 3)), WIDE)}
OTHERS = {
    "columns": jnp.array([2, 0, 1]),
    "mask": np.array([True, False, True]),
    "key": jax.random.key(0),
    "power": 2,
    "nothing": None,
    "activation": jnp.tanh,
    "name": "a model",
}
PARAMS = PLAIN | OTHERS
TANGENTS = PARAMS | {"kernel": jnp.cos(PLAIN["kernel"])}
KEY = jax.random.key(1)


def model(params, inputs):
    """Reads all leaves that are there."""
    z = inputs @ params["kernel"]
    if "activation" in params:
        assert isinstance(params["power"], int)
        z = params["activation"](z)[..., params["columns"]] ** params["power"]
    else:
        z = jnp.tanh(z)[..., jnp.array([2, 0, 1])] ** 2
    return z


def loss(params):
    return jnp.mean(jsj.cross_entropy(model(params, INPUTS), LABELS))


def check(tree, expected, lead=()):
    """The derivative by the kernel, and nothing or float0 in the other places."""
    close(tree["kernel"], expected)
    for name, leaf in OTHERS.items():
        if name in ("nothing", "activation", "name"):
            assert tree[name] is None
        else:
            assert tree[name].dtype == jax.dtypes.float0
            assert tree[name].shape == lead + jnp.shape(leaf)


FUNCTIONS = {
    "gauss_newton_product": lambda p, v: gauss_newton_product(model)(p, INPUTS, LABELS, v),
    "fisher_product": lambda p, v: fisher_product(model)(p, INPUTS, None, v),
    "sampled_fisher_product": lambda p, v: sampled_fisher_product(model)(p, INPUTS, KEY, v),
    "gauss_newton_diagonal": lambda p, v: gauss_newton_diagonal(model)(p, INPUTS),
    "sampled diagonal": lambda p, v: gauss_newton_diagonal(model, samples=2)(p, INPUTS, KEY),
    "hvp": lambda p, v: hvp(loss)(p, v),
    "gradient of hvp": lambda p, v: hvp(loss, has_value=True)(p, v)[1],
    "gradient of the linearised": lambda p, v: gauss_newton_product(model, linearized=True)(
        p, INPUTS, LABELS
    )[1],
    "jacobian": lambda p, v: jacobian(loss)(p),
    "jacobian, forward": lambda p, v: jacobian(loss, mode="forward")(p),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_other_leaves_are_constants(name):
    f = FUNCTIONS[name]
    expected = quick_jit(f)(PLAIN, {"kernel": TANGENTS["kernel"]})["kernel"]

    @quick_jit
    def of_kernel(k, v):
        return f(PARAMS | {"kernel": k}, TANGENTS | {"kernel": v})["kernel"]

    close(of_kernel(PARAMS["kernel"], TANGENTS["kernel"]), expected)
    check(f(PARAMS, TANGENTS), expected)


def test_hessians_and_batches():
    expected = quick_jit(jax.hessian(loss))(PLAIN)["kernel"]["kernel"]
    dense = hessian(loss)(PARAMS)
    check(dense["kernel"], expected, (4, 3))
    assert dense["activation"] is None

    kernels = jnp.stack([PLAIN["kernel"], 2 * PLAIN["kernel"]])
    batch = {"kernel": kernels, "columns": jnp.array([[2, 0, 1], [0, 1, 2]]), "f": jnp.tanh}

    def of_example(params, x):
        return params["f"](jnp.sin(x @ params["kernel"])[params["columns"]][0])

    both = jacobian(of_example, batch_ndim=1)(batch, INPUTS[:2])
    assert both["f"] is None
    assert both["columns"].dtype == jax.dtypes.float0
    for i in range(2):
        rest = {"columns": batch["columns"][i], "f": jnp.tanh}
        alone = jax.grad(lambda k: of_example({"kernel": k} | rest, INPUTS[i]))  # noqa: B023 (called in this round)
        close(both["kernel"][i], alone(kernels[i]))


def test_an_equinox_module():
    """With its activation among the leaves, and without the leaves that are not arrays."""
    module = eqx.nn.MLP(4, 3, 5, 1, key=KEY, dtype=WIDE)

    def of(module, inputs):
        return jax.vmap(module)(inputs)

    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    tangents = jax.tree.map(jnp.cos, arrays)
    whole = gauss_newton_product(of)(module, INPUTS, LABELS, eqx.combine(tangents, static))
    assert whole.activation is None or whole.activation == static.activation

    def of_arrays(arrays, inputs):
        return of(eqx.combine(arrays, static), inputs)

    expected = quick_jit(gauss_newton_product(of_arrays))(arrays, INPUTS, LABELS, tangents)
    jax.tree.map(close, eqx.filter(whole, eqx.is_inexact_array), expected)
    filtered = eqx.filter_jit(gauss_newton_product(of))(module, INPUTS, LABELS, tangents)
    jax.tree.map(close, eqx.filter(filtered, eqx.is_inexact_array), expected)
    moved = eqx.apply_updates(module, eqx.filter(whole, eqx.is_inexact_array))
    assert moved.activation is module.activation


@pytest.mark.parametrize("make", [gauss_newton_cg, lambda model: diagonal_gauss_newton(model, 0.1)])
def test_optimizers_leave_integers_alone(make):
    params = {"kernel": PLAIN["kernel"], "columns": PARAMS["columns"], "nothing": None}

    def of(params, inputs):
        return (inputs @ params["kernel"])[..., params["columns"]]

    def loss(params):
        return jnp.mean(jsj.cross_entropy(of(params, INPUTS), LABELS))

    optimizer = make(of)

    @quick_jit
    def step(params):
        gradient = jax.grad(loss, allow_int=True)(params)
        updates, state = optimizer.update(
            gradient, optimizer.init(params), params, inputs=INPUTS, labels=LABELS
        )
        new = optax.apply_updates(params, updates)
        return new, loss(new) - loss(params), state

    new, change, state = step(params)
    assert change < 0
    assert np.array_equal(new["columns"], params["columns"])
    assert new["columns"].dtype == params["columns"].dtype
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(state))


def test_what_cannot_be_optimized_is_named():
    optimizer = gauss_newton_cg(model)
    with pytest.raises(TypeError, match=r"`params` must hold arrays, got .* at \['activation'\]"):
        optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"shape \(4, 3\) at \['kernel'\], got \(3, 4\)"):
        hvp(loss)(PLAIN, {"kernel": PLAIN["kernel"].T})

"""Second-order optimizers: one exact step, training, composition, and state that survives."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import WIDE, close, quick_jit
from jax.flatten_util import ravel_pytree

import jaxsoftjac as jsj
from jaxsoftjac.curvature import gauss_newton_diagonal, gauss_newton_product
from jaxsoftjac.optimizers import diagonal_gauss_newton, gauss_newton_cg, natural_gradient

pytestmark = pytest.mark.once

random = np.random.default_rng(0)
INPUTS = jnp.asarray(random.normal(size=(64, 4)), WIDE)
PARAMS = {
    "first": jnp.asarray(random.normal(size=(4, 6)), WIDE),
    "kernel": jnp.asarray(random.normal(size=(6, 3)), WIDE),
}


def model(params, inputs):
    return jnp.tanh(inputs @ params["first"]) @ params["kernel"]


LABELS = np.argmax(model(jax.tree.map(jnp.sin, PARAMS), INPUTS), axis=-1)
BATCH = {"inputs": INPUTS, "labels": LABELS}


def loss(params):
    return jnp.mean(jsj.cross_entropy(model(params, INPUTS), LABELS))


def train(optimizer, steps, params=PARAMS, **extra):
    """Parameters, state and losses after some full-batch steps in a scan."""

    @quick_jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            arguments = BATCH | {"value": value, "grad": gradient} | extra
            updates, state = optimizer.update(gradient, state, params, **arguments)
            return (optax.apply_updates(params, updates), state), value

        carry, values = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return *carry, values

    return run(params)


def test_a_step_solves_with_the_damped_matrix():
    damping = 0.3
    optimizer = gauss_newton_cg(
        model, 0.5, damping=damping, adapt_damping=False, cg_iterations=100, cg_tolerance=1e-12
    )

    @quick_jit
    def step_and_matrix(params):
        vector, unravel = ravel_pytree(params)
        product = gauss_newton_product(model, damping=damping)

        def column(v):
            return ravel_pytree(product(params, INPUTS, LABELS, unravel(v)))[0]

        gradient = jax.grad(loss)(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params, **BATCH)
        return updates, gradient, jax.vmap(column)(jnp.eye(vector.size, dtype=WIDE))

    updates, gradient, matrix = step_and_matrix(PARAMS)
    expected = -0.5 * np.linalg.solve(matrix, ravel_pytree(gradient)[0])
    close(ravel_pytree(updates)[0], expected)


@pytest.mark.parametrize("make", [gauss_newton_cg, partial(natural_gradient, samples=4)])
def test_second_order_steps_need_few(make):
    _, state, values = train(make(model), 30)
    assert values[-1] < 0.1 * values[0]
    assert jnp.all(jnp.diff(values) <= 1e-6)  # a step that raises the loss is not taken
    assert state[0].damping < 1e-2
    assert 0.5 < state[0].ratio < 1.5


def test_a_bad_step_is_not_taken_and_raises_the_damping():
    optimizer = gauss_newton_cg(model, damping=0.1)

    @quick_jit
    def uphill(params):
        gradient = jax.tree.map(jnp.negative, jax.grad(loss)(params))
        return optimizer.update(gradient, optimizer.init(params), params, **BATCH)

    updates, state = uphill(PARAMS)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert not any(np.any(d) for d in jax.tree.leaves(state[0].direction))
    assert state[0].ratio < 0
    np.testing.assert_allclose(state[0].damping, 0.4, rtol=1e-6)


def test_the_diagonal_method_steps_by_the_sampled_diagonal():
    optimizer = diagonal_gauss_newton(model, 0.1, b1=0.0, samples=500, threshold=10.0)

    @quick_jit
    def step_and_diagonal(params):
        gradient, diagonal = jax.grad(loss)(params), gauss_newton_diagonal(model)(params, INPUTS)
        update = optimizer.update(gradient, optimizer.init(params), params, inputs=INPUTS)
        return *update, gradient, diagonal

    updates, state, gradient, diagonal = step_and_diagonal(PARAMS)
    expected = jax.tree.map(lambda g, d: -0.1 * jnp.clip(g / d, -10, 10), gradient, diagonal)
    for actual, e in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(actual, e, rtol=0.4)
    assert state[0].count == 1


def test_the_diagonal_method_trains_and_keeps_its_diagonal_between():
    optimizer = diagonal_gauss_newton(model, 0.1, every=5)

    @quick_jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params, inputs=INPUTS)
            return (optax.apply_updates(params, updates), state), state[0].diagonal["kernel"]

        (params, _), diagonals = jax.lax.scan(step, (params, optimizer.init(params)), length=80)
        return loss(params) / loss(PARAMS), diagonals

    fall, diagonals = run(PARAMS)
    assert fall < 0.3
    changed = np.any(np.diff(diagonals, axis=0), axis=(1, 2))
    assert np.flatnonzero(changed).tolist() == list(range(4, 79, 5))


def test_composes_with_schedules_decay_and_a_line_search():
    schedule = optax.linear_schedule(1.0, 0.5, 10)
    optimizer = optax.chain(
        gauss_newton_cg(model, schedule),
        optax.add_decayed_weights(-1e-4, mask={"first": True, "kernel": False}),
        optax.scale_by_backtracking_linesearch(15),
    )
    with jax.numpy_dtype_promotion("standard"):
        _, _, values = train(optimizer, 10, value_fn=lambda params, inputs, labels: loss(params))
    assert values[-1] < 0.5 * values[0]


def test_masked_parameters_stay():
    mask = {"first": False, "kernel": True}
    optimizer = optax.chain(
        optax.masked(gauss_newton_cg(model), mask),
        optax.masked(optax.set_to_zero(), {"first": True, "kernel": False}),
    )
    last = gauss_newton_cg(lambda kernel, inputs: model(PARAMS | {"kernel": kernel}, inputs))

    @quick_jit
    def updates_and_of_last(params):
        gradient, kernel = jax.grad(loss)(params), params["kernel"]
        state = optimizer.init(params)
        updates, _ = optimizer.update(gradient, state, params, all_params=params, **BATCH)
        alone, _ = last.update(gradient["kernel"], last.init(kernel), kernel, **BATCH)
        return updates, alone

    updates, alone = updates_and_of_last(PARAMS)
    assert not np.any(updates["first"])
    close(updates["kernel"], alone)
    with pytest.raises(ValueError, match="`all_params` must be given to the update"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, **BATCH)


@pytest.mark.parametrize(
    "optimizer", [gauss_newton_cg(model), diagonal_gauss_newton(model, 0.1, every=2)]
)
def test_training_goes_on_from_a_stored_state(optimizer):
    state = optimizer.init(PARAMS)
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(state))
    params, state, _ = train(optimizer, 2)
    stored = jax.tree.map(np.asarray, (params, state))

    @quick_jit
    def step(params, state):
        updates, _ = optimizer.update(jax.grad(loss)(params), state, params, **BATCH)
        return optax.apply_updates(params, updates)

    chex.assert_trees_all_equal(step(params, state), step(*stored))
    chex.assert_trees_all_close(step(*stored), train(optimizer, 3)[0], rtol=1e-4)


@pytest.mark.parametrize("make", [gauss_newton_cg, natural_gradient, diagonal_gauss_newton])
def test_a_new_state_may_be_donated(make):
    optimizer = make(model, 0.1)
    gradient, state = jax.grad(loss)(PARAMS), optimizer.init(PARAMS)
    step = quick_jit(lambda g, s, p: optimizer.update(g, s, p, **BATCH), donate_argnums=1)
    updates, _ = step(gradient, state, PARAMS)
    chex.assert_tree_all_finite(updates)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagonal_gauss_newton(model, 0.1, b1=1.0), r"`b1` must lie in \[0, 1\), got 1.0"),
        (lambda: gauss_newton_cg(model, -1.0), "`learning_rate` must be ≥ 0, got -1.0"),
        (
            lambda: gauss_newton_cg(model, min_damping=1.0, max_damping=0.1),
            "`max_damping` must be ≥ `min_damping`, 1.0, got 0.1",
        ),
        (lambda: gauss_newton_cg(model, loss="hinge"), '`loss` must be "cross_entropy" or a'),
        (lambda: gauss_newton_cg(model, damping=-1.0), "`damping` must be ≥ 0, got -1.0"),
        (lambda: gauss_newton_cg(model, cg_iterations=0), "`cg_iterations` must be ≥ 1, got 0"),
        (lambda: natural_gradient(model, samples=0), "`samples` must be ≥ 1, got 0"),
        (lambda: diagonal_gauss_newton(model, 0.1, every=0), "`every` must be ≥ 1, got 0"),
        (
            lambda: gauss_newton_cg(model, damping=0, min_damping=0.0),
            "`damping` or `min_damping` must be > 0 where `adapt_damping` is, got 0",
        ),
        (
            lambda: gauss_newton_cg(model, options={"axis_name": "k"}),
            "`options` must not have `axis_name`: call the update under `jit`",
        ),
        (
            lambda: gauss_newton_cg(model, loss=jsj.cross_entropy, samples=2),
            "`samples` must be None where `loss` is a function, got 2",
        ),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("missing", ["params", "inputs", "labels"])
def test_missing_arguments_of_the_update(missing):
    optimizer = gauss_newton_cg(model)
    arguments = {"params": PARAMS} | BATCH
    del arguments[missing]
    with pytest.raises(ValueError, match=f"`{missing}` must be given to the update"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), **arguments)

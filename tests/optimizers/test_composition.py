"""Inside optax: chains, line searches, schedules, injected hyperparameters, masks, partitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import close, quick_jit

import jaxsoftjac as jsj
from jaxsoftjac.optimizers import diagonal_gauss_newton, gauss_newton_cg, natural_gradient

pytestmark = pytest.mark.once

random = np.random.default_rng(0)
INPUTS = jnp.asarray(random.normal(size=(32, 4)), jnp.float32)
LABELS = random.integers(0, 3, size=32)
PARAMS = {
    "first": jnp.asarray(random.normal(size=(4, 5)), jnp.float32),
    "kernel": jnp.asarray(random.normal(size=(5, 3)), jnp.float32),
}
STATIC = ("model", "loss", "head", "samples", "ignore_index")


def hidden(params, inputs):
    return jnp.tanh(inputs @ params["first"])


def model(params, inputs):
    return hidden(params, inputs) @ params["kernel"]


def loss(params, inputs, labels):
    return jnp.mean(jsj.cross_entropy(model(params, inputs), labels))


BATCH = {"inputs": INPUTS, "labels": LABELS}


def train(optimizer, steps, params=PARAMS, **extra):
    """Parameters, the last state and the losses."""

    @quick_jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, **BATCH)
            given = BATCH | {"value": value, "grad": gradient} | extra
            updates, state = optimizer.update(gradient, state, params, **given)
            return (optax.apply_updates(params, updates), state), value

        carry, values = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return *carry, values

    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        return run(params)


@pytest.mark.parametrize(
    "search",
    [
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=15),
        optax.scale_by_zoom_linesearch(max_linesearch_steps=15),
    ],
)
def test_a_line_search_follows(search):
    """`value_fn` is one function of parameters and batch for the trust region and the search."""
    optimizer = optax.chain(gauss_newton_cg(model), search)
    _, _, values = train(optimizer, 8, value_fn=loss)
    assert np.all(np.diff(values) <= 1e-6)
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("make", [gauss_newton_cg, natural_gradient])
def test_injected_hyperparameters(make):
    """A schedule, a number that is changed later, and an array."""
    static = [s for s in STATIC if s != "loss" or make is gauss_newton_cg]
    optimizer = optax.inject_hyperparams(make, static)(
        model,
        optax.linear_schedule(1.0, 0.5, 10),
        damping=optax.exponential_decay(1.0, 5, 0.5),
        samples=2,
    )
    _, state, values = train(optimizer, 10)
    assert values[-1] < 0.9 * values[0]
    np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.55, rtol=1e-5)
    np.testing.assert_allclose(state.hyperparams["damping"], 0.5 ** (9 / 5), rtol=1e-5)


def test_a_number_that_is_changed_in_the_state_acts():
    optimizer = optax.inject_hyperparams(gauss_newton_cg, STATIC)(model, damping=jnp.float32(1.0))
    state = optimizer.init(PARAMS)
    gradient = jax.grad(loss)(PARAMS, **BATCH)

    @quick_jit
    def size_at(damping):
        new = state._replace(hyperparams=state.hyperparams | {"damping": damping})
        return optax.tree.norm(optimizer.update(gradient, new, PARAMS, **BATCH)[0])

    with jax.numpy_dtype_promotion("standard"):
        assert size_at(jnp.float32(100.0)) < size_at(jnp.float32(10.0)) < size_at(jnp.float32(1.0))


def test_injected_hyperparameters_of_the_diagonal_method():
    static = "model", "head", "samples", "ignore_index"
    optimizer = optax.inject_hyperparams(diagonal_gauss_newton, static)(
        model, optax.constant_schedule(0.1), every=2
    )
    _, _, values = train(optimizer, 15)
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("adapt_damping", [True, False])
def test_schedules_of_damping_and_learning_rate(adapt_damping):
    """Without adaptation the damping is the schedule's; with it, a factor of it adapts."""
    schedule = optax.exponential_decay(1.0, 1, 0.5)
    optimizer = gauss_newton_cg(
        model, optax.constant_schedule(1.0), damping=schedule, adapt_damping=adapt_damping
    )
    _, state, values = train(optimizer, 6)
    assert values[-1] < values[0]
    one = gauss_newton_cg(model, damping=schedule(3), adapt_damping=adapt_damping)
    gradient = jax.grad(loss)(PARAMS, **BATCH)
    if not adapt_damping:
        _, state, _ = train(optimizer, 3)

        @quick_jit
        def both(params):
            at = (state[0]._replace(direction=optax.tree.zeros_like(PARAMS)),)
            fresh = (one.init(params)[0]._replace(count=at[0].count),)
            updates = optimizer.update(gradient, at, params, **BATCH)[0]
            return updates, one.update(gradient, fresh, params, **BATCH)[0]

        jax.tree.map(close, *both(PARAMS))


def test_multi_steps_and_apply_if_finite():
    inner = optax.apply_if_finite(gauss_newton_cg(model), max_consecutive_errors=3)
    optimizer = optax.MultiSteps(inner, every_k_schedule=2)
    _, state, values = train(optimizer, 10)
    assert values[-1] < 0.9 * values[0]
    assert state.gradient_step == 5
    assert np.all(values[::2] == values[1::2])


def test_partition_between_optimizers():
    """The kernel by Gauss–Newton, the rest by gradient descent, in one transformation."""
    optimizer = optax.partition(
        {"newton": gauss_newton_cg(model), "sgd": optax.sgd(0.1)},
        {"first": "sgd", "kernel": "newton"},
    )
    last = gauss_newton_cg(lambda kernel, inputs: model(PARAMS | {"kernel": kernel}, inputs))

    @quick_jit
    def updates_of(params):
        gradient, kernel = jax.grad(loss)(params, **BATCH), params["kernel"]
        state = optimizer.init(params)
        updates, _ = optimizer.update(gradient, state, params, all_params=params, **BATCH)
        alone, _ = last.update(gradient["kernel"], last.init(kernel), kernel, **BATCH)
        return updates, alone, gradient

    updates, alone, gradient = updates_of(PARAMS)
    close(updates["kernel"], alone)
    close(updates["first"], -0.1 * gradient["first"])


@pytest.mark.parametrize("make", [gauss_newton_cg, natural_gradient, diagonal_gauss_newton])
def test_a_head_takes_the_same_steps(make):
    """Without the logits: the same matrix, whose samples only differ in their signs."""
    rate = {"learning_rate": 0.1} if make is diagonal_gauss_newton else {}
    exact = {"precondition": False} if make is gauss_newton_cg else {"samples": 400}
    whole, split = make(model, **rate, **exact), make(hidden, head="kernel", **rate, **exact)

    @quick_jit
    def both(params):
        gradient = jax.grad(loss)(params, **BATCH)
        return [o.update(gradient, o.init(params), params, **BATCH)[0] for o in (whole, split)]

    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(u)]) for u in both(PARAMS))
    tolerance = 1e-4 if make is gauss_newton_cg else 0.2
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a)


def test_a_head_of_many_classes_never_holds_the_logits():
    """What a step at N = 1024 and V = 8192 holds with its state, next to Adam's."""
    N, D, V = 1024, 64, 8192
    params = {"first": jnp.ones((D, D), jnp.float32), "kernel": jnp.ones((D, V), jnp.float32)}
    inputs, labels = jnp.ones((N, D), jnp.float32), jnp.zeros(N, jnp.int32)

    def bytes_of(optimizer):
        def step(params, state, inputs, labels):
            def loss(p):
                z = hidden(p, inputs)
                return jsj.linear_cross_entropy(z, p["kernel"], labels, reduction="mean")

            gradient = jax.grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params, inputs=inputs, labels=labels)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(optimizer.init, params)
        program = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, inputs, labels)
        memory = program.compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    with jax.numpy_dtype_promotion("standard"):
        adam = bytes_of(optax.with_extra_args_support(optax.adam(1e-3)))
        newton = bytes_of(gauss_newton_cg(hidden, head="kernel"))
        natural = bytes_of(natural_gradient(hidden, head="kernel"))
        diagonal = bytes_of(diagonal_gauss_newton(hidden, 0.1, head="kernel"))
    assert max(newton, natural, diagonal) <= 2 * adam
    assert max(newton, natural, diagonal) < 4 * N * V

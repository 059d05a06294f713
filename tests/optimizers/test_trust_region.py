"""The trust region: it stays bounded, recovers, takes no step uphill, never fails in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import quick_jit

import jaxsoftjac as jsj
from jaxsoftjac.optimizers import diagonal_gauss_newton, gauss_newton_cg, natural_gradient
from jaxsoftjac.optimizers._conjugate_gradients import inner

pytestmark = pytest.mark.once

random = np.random.default_rng(0)
INPUTS = jnp.asarray(random.normal(size=(32, 4)), jnp.float32)
LABELS = random.integers(0, 3, size=32)
OTHER = (LABELS + 1) % 3
KERNEL = jnp.asarray(random.normal(size=(4, 3)), jnp.float32)


def model(params, inputs):
    return inputs @ (params["kernel"] if isinstance(params, dict) else params)


def loss(params, inputs, labels):
    return jnp.mean(jsj.cross_entropy(model(params, inputs), labels))


def run(optimizer, params, state, inputs, labels, steps):
    """Parameters and state after some steps on one batch, and losses and dampings on the way."""

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, inputs, labels)
        updates, state = optimizer.update(gradient, state, params, inputs=inputs, labels=labels)
        new = optax.apply_updates(params, updates)
        return (new, state), (value, state[0].damping)

    return jax.lax.scan(step, (params, state), length=steps)


@pytest.mark.parametrize("make", [gauss_newton_cg, natural_gradient])
def test_the_damping_stays_and_new_data_move_the_parameters(make):
    """200 steps at an optimum, then other labels."""
    optimizer = make(model)

    @quick_jit
    def train(params, labels, others):
        start = params, optimizer.init(params)
        (at_optimum, state), (values, dampings) = run(optimizer, *start, INPUTS, labels, 200)
        (_, _), (later, _) = run(optimizer, at_optimum, state, INPUTS, others, 30)
        return at_optimum, values, dampings, later

    at_optimum, values, dampings, later = train(KERNEL, LABELS, OTHER)
    gradient = jax.grad(loss)(at_optimum, INPUTS, LABELS)
    assert np.linalg.norm(gradient) < 1e-3
    assert np.all(np.isfinite(dampings))
    assert np.all((dampings >= 1e-6) & (dampings <= 1e4))
    assert np.max(dampings[100:]) <= 1.0
    assert np.all(np.diff(values) <= 1e-6)
    optimum = np.min(values)  # the problem with permuted labels has the same one
    assert later[0] > optimum + 0.3
    assert later[-1] < optimum + 1e-3


def test_batches_without_a_gradient_leave_the_state_alone():
    """Empty batches, and batches of which every example is ignored."""
    optimizer = gauss_newton_cg(model, ignore_index=-1)

    @quick_jit
    def train(params, inputs, labels):
        state = optimizer.init(params)
        zero = jnp.zeros_like(params)
        for batch in ((inputs[:0], labels[:0]), (inputs, jnp.full_like(labels, -1))):

            def step(state, _, batch=batch):
                updates, state = optimizer.update(
                    zero, state, params, inputs=batch[0], labels=batch[1]
                )
                return state, updates

            state, updates = jax.lax.scan(step, state, length=90)
        return state[0].damping, updates

    damping, updates = train(KERNEL, INPUTS, LABELS)
    assert damping == 1.0
    assert not np.any(updates)


@pytest.mark.parametrize("bound", [0.5, 1e3])
def test_the_damping_is_bounded_both_ways_and_comes_back(bound):
    """Gradients that point uphill, or steps that are better and better; then honest ones."""
    sign = 1 if bound < 1 else -1
    optimizer = gauss_newton_cg(model, min_damping=0.5, max_damping=1e3)

    @quick_jit
    def train(params):
        def step(state, _):
            gradient = sign * jax.grad(loss)(params, INPUTS, LABELS)
            _, state = optimizer.update(gradient, state, params, inputs=INPUTS, labels=LABELS)
            return state, None

        state, _ = jax.lax.scan(step, optimizer.init(params), length=60)
        (_, last), (values, _) = run(optimizer, params, state, INPUTS, LABELS, 60)
        return state[0].damping, values, last[0].damping

    damping, values, last = train(KERNEL)
    np.testing.assert_allclose(damping, bound, rtol=1e-5)
    assert values[-1] < values[0] - 0.1
    assert 0.5 <= last < 1e2


@pytest.mark.parametrize("make", [gauss_newton_cg, natural_gradient])
def test_no_step_raises_the_loss(make):
    """Whatever the learning rate and the damping, on a model that is far from quadratic."""

    def deep(params, inputs):
        return 3 * jnp.sin(3 * jnp.tanh(inputs @ params["first"]) @ params["kernel"])

    def of(params):
        return jnp.mean(jsj.cross_entropy(deep(params, INPUTS), LABELS))

    params = {"first": 2 * jnp.ones((4, 6)), "kernel": jnp.asarray(random.normal(size=(6, 3)))}
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params)

    @quick_jit
    def values_of(params, rate, damping):
        optimizer = make(deep, rate, damping=damping, min_damping=1e-8)

        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(of)(params)
            updates, state = optimizer.update(gradient, state, params, inputs=INPUTS, labels=LABELS)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=40)[1]

    for rate, damping in ((1.0, 1e-6), (0.5, 1.0), (3.0, 1e-3)):
        values = values_of(params, jnp.float32(rate), jnp.float32(damping))
        assert np.max(np.diff(values)) <= 2e-6
        assert values[-1] < values[0]


def test_the_loss_given_decides():
    """`value_fn` has a penalty that the model's loss lacks: its rise refuses the step."""
    optimizer = gauss_newton_cg(model)
    seen = []

    def penalised(params, inputs, labels, *, factor):
        seen.append(factor)
        return loss(params, inputs, labels) + factor * jnp.sum((params - KERNEL) ** 2)

    def update(value_fn, **extra):
        gradient = jax.grad(loss)(KERNEL, INPUTS, LABELS)
        return optimizer.update(
            gradient,
            optimizer.init(KERNEL),
            KERNEL,
            inputs=INPUTS,
            labels=LABELS,
            value_fn=value_fn,
            **extra,
        )

    taken, state = update(penalised, factor=0.0, unused=1)
    assert np.any(taken)
    assert state[0].damping < 1
    value = loss(KERNEL, INPUTS, LABELS)
    refused, state = update(penalised, factor=1e4, value=value, grad=None)
    assert not np.any(refused)
    assert state[0].damping == 4
    assert len(seen) == 3  # once less where the value is given


@pytest.mark.parametrize("make", [gauss_newton_cg, natural_gradient])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_is_passed_on_and_leaves_no_trace(make, where):
    """Labels out of range, or a gradient that is NaN: no silent standstill, no poisoned state."""
    optimizer = make(model)

    @quick_jit
    def everything(params):
        gradient = jax.grad(loss)(params, INPUTS, LABELS)
        state = optimizer.init(params)
        _, state = optimizer.update(gradient, state, params, inputs=INPUTS, labels=LABELS)
        bad = gradient.at[0, 0].set(jnp.nan) if where == "gradient" else gradient
        labels = jnp.full_like(LABELS, -100) if where == "loss" else LABELS
        lost, later = optimizer.update(bad, state, params, inputs=INPUTS, labels=labels)
        good, _ = optimizer.update(gradient, later, params, inputs=INPUTS, labels=LABELS)
        return lost, state, later, good

    lost, state, later, good = everything(KERNEL)
    assert np.all(np.isnan(lost))
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(later))
    assert later[0].damping == state[0].damping
    assert np.all(np.isfinite(good))
    assert np.any(good)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_gradients_of_any_size(size):
    """Their squares leave float32's range."""
    optimizer = gauss_newton_cg(model, adapt_damping=False, precondition=False, cg_tolerance=1e-6)

    @quick_jit
    def update(scale):
        gradient = scale * jax.grad(loss)(KERNEL, INPUTS, LABELS)
        state = optimizer.init(KERNEL)
        return optimizer.update(gradient, state, KERNEL, inputs=INPUTS, labels=LABELS)[0] / scale

    np.testing.assert_allclose(update(size), update(1.0), rtol=1e-3, atol=1e-6)


MIXED = {"kernel": KERNEL.astype(jnp.bfloat16), "bias": jnp.zeros(3, jnp.float32)}


def mixed(params, inputs):
    z = inputs @ params["kernel"].astype(jnp.float32)
    return z + params["bias"][None]


@pytest.mark.parametrize("make", [gauss_newton_cg, natural_gradient, diagonal_gauss_newton])
def test_parameters_of_mixed_precision(make):
    optimizer = make(mixed, 0.1) if make is diagonal_gauss_newton else make(mixed)

    @quick_jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(
                lambda p: jnp.mean(jsj.cross_entropy(mixed(p, INPUTS), LABELS))
            )(params)
            updates, state = optimizer.update(gradient, state, params, inputs=INPUTS, labels=LABELS)
            return (optax.apply_updates(params, updates), state), (value, updates)

        return jax.lax.scan(step, (params, optimizer.init(params)), length=15)

    (params, state), (values, updates) = train(MIXED)
    assert values[-1] < values[0] - 0.1
    assert jax.tree.map(lambda a: a.dtype, params) == jax.tree.map(lambda a: a.dtype, MIXED)
    assert jax.tree.map(lambda a: a.dtype, updates) == jax.tree.map(lambda a: a.dtype, MIXED)
    memory = state[0].mean if make is diagonal_gauss_newton else state[0].direction
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(memory))


def test_inner_products_of_millions_keep_their_digits():
    a = np.random.default_rng(1).normal(size=2**22).astype(np.float32)
    exact = np.vdot(a.astype(np.float64), a)
    np.testing.assert_allclose(inner([jnp.asarray(a)], [jnp.asarray(a)]), exact, rtol=1e-5)

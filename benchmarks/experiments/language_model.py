r"""Trains a small language model with batch and vocabulary split over devices and processes.

On one machine it runs as it is, and on several processes of one machine like this:

    python -m benchmarks.experiments.language_model --quick
    for i in 0 1; do
      python -m benchmarks.experiments.language_model --quick --vocabulary-slices 2 \
        --coordinator localhost:9876 --processes 2 --process $i &
    done; wait

On a cluster start it once per host. Under Slurm, Open MPI or on a TPU pod `--cluster` is all
it needs; elsewhere name one host as the coordinator, by the flags above or by the variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. `--checkpoints` is a folder that all
hosts see: started again with it, on any number of processes, training goes on where it was, and a
host that dies ends the others within about 20 s, for the scheduler to start all of them anew.

Devices stand in a mesh of data × vocabulary. Each holds a slice of the embedding [V, D], which is
also the kernel of `linear_cross_entropy(…, axis_name="vocabulary")`: its logits are never held, and
besides hidden states only numbers per token are sent along the vocabulary. To make it your own,
replace `read_tokens` (here the bytes of Python's reference manual, which comes with Python) and the
layers of `_transformer`; keep `train`, where all that concerns several hosts is. Needs the extra
`cluster`. Exit status: 2 for options that do not fit.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from benchmarks.experiments._transformer import initial_params, mean_loss, spec_of

VOCABULARY = 256  # bytes
SIZES = {"steps": 1000, "batch": 64, "context": 128, "width": 128, "layers": 4, "heads": 4}
QUICK_SIZES = {"steps": 20, "batch": 8, "context": 16, "width": 16, "layers": 1, "heads": 2}
TIMEOUT = 10  # seconds without a sign of life after which a process counts as dead

Step = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


class State(NamedTuple):
    """All that training changes."""

    params: Any
    optimizer: optax.OptState


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    for name, size in (QUICK_SIZES if args.quick else SIZES).items():
        if getattr(args, name) is None:
            setattr(args, name, size)
    if problem := _problem(args):
        return _refused(problem)
    tokens = read_tokens(args.text)
    if len(tokens) <= args.context:
        return _refused(f"--text must have more than --context {args.context} bytes")
    connect(args)
    devices, slices = jax.device_count(), args.vocabulary_slices
    if devices % slices or args.batch % (devices // slices):
        return _refused(
            f"{devices} devices in all must be a multiple of --vocabulary-slices {slices}, and "
            f"--batch {args.batch} a multiple of devices / slices"
        )
    axes = ("data", "vocabulary")
    mesh = jax.make_mesh((devices // slices, slices), axes, axis_types=(AxisType.Auto,) * 2)
    train(args, mesh, tokens)
    return 0


def connect(args: argparse.Namespace) -> None:
    """Join the other processes; must come before anything asks JAX for its devices."""
    jax.config.update("jax_enable_x64", args.float64)
    if args.cpu_devices:
        jax.config.update("jax_num_cpu_devices", args.cpu_devices)
    if not args.cluster and args.coordinator is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        args.coordinator,
        args.processes,
        args.process,
        initialization_timeout=6 * TIMEOUT,
        heartbeat_timeout_seconds=TIMEOUT,
        shutdown_timeout_seconds=TIMEOUT,
    )


def train(args: argparse.Namespace, mesh: Mesh, tokens: np.ndarray) -> None:
    """Steps from the last checkpoint, or from the start, to `args.steps`."""
    initial, step = training(args, mesh)
    manager = None if args.checkpoints is None else _checkpoints(args.checkpoints)
    state, done = _restored(manager, initial)
    hidden_bar = None if jax.process_index() == 0 else True  # None: where there is a terminal
    layout = " × ".join(f"{size} {name}" for name, size in mesh.shape.items())
    _say(f"{layout} slices on {jax.process_count()} processes, {done} steps done")
    rows, start = NamedSharding(mesh, P("data")), time.perf_counter()
    for i in tqdm(range(done + 1, args.steps + 1), disable=hidden_bar):
        batch = batch_of(tokens, i, args.batch, args.context)
        placed = jax.make_array_from_callback(batch.shape, rows, batch.__getitem__)
        state, loss = step(state, placed)
        if i % args.report_every == 0 or i == args.steps:
            _say(f"step {i} loss {float(loss):.12g}")
        if manager and (i % args.checkpoint_every == 0 or i == args.steps):
            manager.save(i, args=ocp.args.StandardSave(state), force=True)
    jax.block_until_ready(state)
    count = max(0, args.steps - done) * args.batch * args.context
    _say(f"{count / (time.perf_counter() - start):.0f} tokens per second, compilation included")
    if manager:
        manager.close()  # waits for what is being written


def _say(line: str) -> None:
    """From the first process only, at once and beside the progress bar."""
    if jax.process_index() == 0:
        tqdm.write(line)
        sys.stdout.flush()


def training(args: argparse.Namespace, mesh: Mesh) -> tuple[Callable[[], State], Step]:
    """The initial state, made where it belongs when it is called, and the compiled step."""
    optimizer = optax.adamw(args.rate)

    def initial() -> State:
        key = jax.random.key(args.seed)
        params = initial_params(key, VOCABULARY, args.width, args.layers)
        return State(params, optimizer.init(params))

    specs = jax.tree_util.tree_map_with_path(spec_of, jax.eval_shape(initial))
    placed = jax.tree.map(partial(NamedSharding, mesh), specs)
    loss_of = jax.shard_map(
        partial(mean_loss, heads=args.heads),
        mesh=mesh,
        in_specs=(specs.params, P("data")),
        out_specs=P(),
    )

    @partial(jax.jit, donate_argnums=0, out_shardings=(placed, None))
    def step(state: State, tokens: jax.Array) -> tuple[State, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(state.params, tokens)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), optimizer_state), loss

    return jax.jit(initial, out_shardings=placed), step


def read_tokens(text: Path | None) -> np.ndarray:
    """The bytes of a file, or of Python's reference manual."""
    if text is not None:
        return np.frombuffer(text.read_bytes(), np.uint8)
    from pydoc_data.topics import topics

    return np.frombuffer("\n".join(topics.values()).encode(), np.uint8)


def batch_of(tokens: np.ndarray, step: int, batch: int, context: int) -> np.ndarray:
    """The examples [batch, context + 1] of a step: the same in every process and on every run."""
    starts = np.random.default_rng((0, step)).integers(0, len(tokens) - context, batch)
    return tokens[starts[:, None] + np.arange(context + 1)[None]].astype(np.int32)


def _checkpoints(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _restored(
    manager: ocp.CheckpointManager | None, initial: Callable[[], State]
) -> tuple[State, int]:
    """The latest checkpoint, laid out for this mesh, and its step; the initial state without."""
    done = None if manager is None else manager.latest_step()
    if manager is None or done is None:
        return initial(), 0
    wanted = ocp.args.StandardRestore(jax.eval_shape(initial))
    try:
        restored: Any = manager.restore(done, args=wanted)
    except ValueError as error:
        where = f"{manager.directory}: the checkpoint of step {done}"
        raise ValueError(f"{where} has other sizes than these options") from error
    return restored, done


def _parser() -> argparse.ArgumentParser:
    summary, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="language_model",
        description=summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="smallest sizes")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"default: {size}")
    parser.add_argument("--rate", type=float, default=3e-3, help="of AdamW")
    parser.add_argument("--seed", type=int, default=0, help="of the initial parameters")
    parser.add_argument("--text", type=Path, help="file to learn from (default: Python's manual)")
    parser.add_argument("--float64", action="store_true", help="instead of float32")
    parser.add_argument("--report-every", type=int, default=1, metavar="STEPS")
    parser.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="seen by all hosts")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    _add_layout(parser)
    return parser


def _add_layout(parser: argparse.ArgumentParser) -> None:
    environment = os.environ.get
    parser.add_argument("--vocabulary-slices", type=int, default=1, metavar="N")
    parser.add_argument("--cpu-devices", type=int, metavar="N", help="of each process, on CPU")
    parser.add_argument("--cluster", action="store_true", help="let JAX find the other processes")
    coordinator = environment("JAX_COORDINATOR_ADDRESS")
    parser.add_argument("--coordinator", metavar="HOST:PORT", default=coordinator)
    processes, process = environment("JAX_NUM_PROCESSES"), environment("JAX_PROCESS_ID")
    parser.add_argument("--processes", type=int, default=processes, metavar="N", help="in all")
    parser.add_argument("--process", type=int, default=process, metavar="I", help="0 … N − 1")


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the options, as far as they tell."""
    for name in (*SIZES, "vocabulary_slices", "report_every", "checkpoint_every"):
        if getattr(args, name) < 1:
            return f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}"
    if args.width % (2 * args.heads):
        return f"--width {args.width} must be a multiple of twice --heads {args.heads}"
    if VOCABULARY % args.vocabulary_slices:
        return f"--vocabulary-slices must divide {VOCABULARY}, got {args.vocabulary_slices}"
    if args.text is not None and not args.text.is_file():
        return f"--text {args.text}: not a file"
    given = [args.coordinator, args.processes, args.process]
    if not args.cluster and None in given and given != [None] * 3:
        return "--coordinator, --processes and --process must be given together, or --cluster"
    if None not in given and not 0 <= args.process < args.processes:
        return f"--process must be in 0 … {args.processes - 1}, got {args.process}"
    return None


def _refused(problem: str) -> int:
    print("language_model: error:", problem, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

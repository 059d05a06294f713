"""Training on several processes: the losses of one, an end when one dies, and no step lost."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmarks are not part of the installed package

pytestmark = [pytest.mark.slow, pytest.mark.once]

PATIENCE = 60  # seconds that any wait may take on a busy machine; most take less than five
COMMAND = [sys.executable, "-m", "benchmarks.experiments.language_model", "--quick", "--float64"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Little optimisation, and each program compiled once."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


@pytest.fixture
def launch(environment, tmp_path):
    """Starts processes of one training, and ends in the end those that are left."""
    with contextlib.ExitStack() as stack:

        def start(name, count, *options):
            layout, port = [], free_port()
            if count > 1:
                layout = [f"--vocabulary-slices={count}", f"--processes={count}"]
                layout.append(f"--coordinator=localhost:{port}")
            processes = []
            for i in range(count):
                log = stack.enter_context(open(tmp_path / f"{name}{i}.log", "w"))
                own = [f"--process={i}"] if count > 1 else []
                command = [*COMMAND, *layout, *own, *options]
                output = {"stdout": log, "stderr": subprocess.STDOUT}
                process = subprocess.Popen(command, cwd=ROOT, env=environment, **output)
                stack.callback(process.wait, PATIENCE)
                stack.callback(process.kill)
                processes.append(process)
            return processes

        yield start


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def losses(path):
    lines = re.findall(r"^step (\d+) loss (\S+)$", path.read_text(), re.MULTILINE)
    return {int(step): float(loss) for step, loss in lines}


def steps_kept(folder):
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def wait_for_checkpoint(folder, processes, after):
    end = time.monotonic() + PATIENCE
    while max(steps_kept(folder), default=0) <= after:
        assert time.monotonic() < end
        assert all(p.poll() is None for p in processes)
        time.sleep(0.05)


def test_a_dead_process_ends_the_other_and_nothing_is_lost(launch, tmp_path):
    """Two processes, of which first one dies and then the coordinator; one process ends it."""
    folder, begins = tmp_path / "kept", [0]
    kept = f"--checkpoints={folder}"
    for victim, name in ((1, "first"), (0, "second")):
        two = launch(name, 2, "--steps=1000000", "--checkpoint-every=5", kept)
        wait_for_checkpoint(folder, two, begins[-1])
        two[victim].kill()
        assert two[1 - victim].wait(PATIENCE) != 0  # an exit, not a hang
        begins.append(steps_kept(folder)[-1])
    last = f"--steps={begins[-1] + 3}"
    ends = [*launch("third", 1, last, kept), *launch("whole", 1, last)]
    assert [p.wait(PATIENCE) for p in ends] == [0, 0]

    whole = losses(tmp_path / "whole0.log")
    assert list(whole) == list(range(1, begins[-1] + 4))
    for begin, name in zip(begins, ("first", "second", "third"), strict=True):
        run = losses(tmp_path / f"{name}0.log")
        common = [i for i in run if i in whole]
        assert min(run) == begin + 1
        assert len(common) >= 3
        np.testing.assert_allclose([run[i] for i in common], [whole[i] for i in common], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--process", "1"], "must be given together"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "2"], "must be in 0 … 1"),
        (["--vocabulary-slices", "3"], "must divide 256, got 3"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--width", "6"], "--width 6 must be a multiple"),
        (["--text", "none.txt"], "none.txt: not a file"),
        (["--context", "1000000"], "more than --context 1000000 bytes"),
        (["--batch", "3"], "--batch 3 a multiple of devices"),
    ],
)
def test_options_that_do_not_fit_exit_with_2_and_one_line(options, message, monkeypatch, capsys):
    from benchmarks.experiments import language_model

    monkeypatch.setattr(language_model, "connect", lambda args: None)
    assert language_model.main(options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

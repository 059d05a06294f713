"""A file that does not fit is read in blocks: memory does not grow with it."""

import os

import numpy as np
import pytest
from command_runs import run

pytestmark = [
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak from /proc"),
]

# Not getrusage: a child's ru_maxrss begins at what this process held when it was forked.
PEAK = """
import re, sys
from jaxsoftjac.cli import _chunks, _files, _logits, main
_chunks._CHUNK_ELEMENTS, _logits._STRIP_BYTES = 2**20, 2**22
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
READ = """
logits, before = _files.read_logits(sys.argv[1]), peak()
for start in range(0, 480, 20):
    assert logits.rows(start, start + 20)[0, 9] == (start % 40 == 0)
print("grown by kB", peak() - before)
"""
INSPECT = """
assert main(["inspect", sys.argv[1]]) == 0
before = peak()  # with what the program, the arrays of a block and the threads' arenas take
assert main(["inspect", sys.argv[2]]) == 0
print("grown by kB", peak() - before)
"""


def save(path, rows, order="C"):
    stored = np.lib.format.open_memmap(
        path, "w+", np.float64, (rows, 50257), fortran_order=order == "F"
    )
    stored[::40] = 1.0
    return path


def growth(program, *paths):
    done = run(*paths, program=("-c", PEAK + program))
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout.split()[-1]) * 1024, done.stdout


@pytest.mark.parametrize("order", ["C", "F"])
def test_reading_a_wide_file_takes_no_more_than_a_block(tmp_path, order):
    grown, _ = growth(READ, save(tmp_path / "wide.npy", 480, order))  # of 193 MB
    assert grown < 2**25


def test_inspecting_a_wide_file_takes_little_more_than_a_few_blocks(tmp_path):
    few, wide = save(tmp_path / "few.npy", 100), save(tmp_path / "wide.npy", 480)
    grown, text = growth(INSPECT, few, wide)
    assert "480 rows, K = 50257" in text
    assert grown < 2**27

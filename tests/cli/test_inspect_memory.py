"""A file that does not fit is read in blocks: memory does not grow with it."""

import os

import numpy as np
import pytest
from command_runs import run

pytestmark = [pytest.mark.once, pytest.mark.slow]

# Not getrusage: a child's ru_maxrss begins at what this process held when it was forked. The file
# of one block comes first: what the program and its arrays take is in the peak from then on.
PEAKS = """
import re, sys
from jaxsoftjac import cli
from jaxsoftjac.cli import _chunks, _logits
_chunks._CHUNK_ELEMENTS, _logits._STRIP_BYTES = 2**20, 2**22
for path in sys.argv[1:]:
    assert cli.main(["inspect", path]) == 0
    print("peak kB", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak from /proc")
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_stays_bounded_over_a_wide_file(tmp_path, order):
    for name, rows in (("block.npy", 20), ("wide.npy", 480)):  # the second of 193 MB
        stored = np.lib.format.open_memmap(
            tmp_path / name, "w+", np.float64, (rows, 50257), fortran_order=order == "F"
        )
        stored[5] = 1.0
        del stored
    done = run(tmp_path / "block.npy", tmp_path / "wide.npy", program=("-c", PEAKS))
    assert (done.returncode, done.stderr) == (0, "")
    assert "480 rows, K = 50257" in done.stdout
    peaks = [line for line in done.stdout.splitlines() if line.startswith("peak kB")]
    block, wide = (int(line.split()[-1]) * 1024 for line in peaks)
    assert wide - block < 2**27

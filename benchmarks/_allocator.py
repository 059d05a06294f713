"""Memory of large arrays kept by the process, so that page faults do not dominate CPU timings.

By default glibc maps every large output afresh and returns it when it is freed: each call then pays
a page fault per 4 KiB. Its two thresholds are read when a process starts, hence the restart.
"""

import os
import sys

SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


def is_set() -> bool:
    return all(name in os.environ for name in SETTINGS)


def restart_with_settings() -> None:
    """Replace this process by the same command with the settings; return if they are there."""
    if sys.platform == "linux" and not is_set():
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, SETTINGS | os.environ)


def description() -> str:
    if is_set():
        return "malloc keeps freed memory, so that page faults are not timed"
    return "malloc thresholds are not set: timings on CPU include page faults"

"""Subjects that need eight devices, which a process has from its start or not at all.

They measure in a process of their own, `python -m benchmarks.SUBJECT`, on eight of the CPU's; it
prints its report as JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable

from benchmarks._harness import Claim, Disagreement, Report, Table

SETTINGS = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}


def report_of(subject: str, quick: bool) -> Report:
    """The report that the subject's own process prints."""
    command = [sys.executable, "-m", f"benchmarks.{subject}", *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=os.environ | SETTINGS, capture_output=True, text=True)
    if done.returncode:
        raise Disagreement(done.stderr.strip().rpartition("\n")[2])
    fields = json.loads(done.stdout)
    claims = [{k: v for k, v in claim.items() if k != "met"} for claim in fields["claims"]]
    tables = [Table(**table) for table in fields["tables"]]
    return Report(subject, tables, [Claim(**claim) for claim in claims], fields["absent"])


def print_report(measure: Callable[[bool], Report]) -> None:
    """What the process of a subject does."""
    print(json.dumps(dataclasses.asdict(measure("--quick" in sys.argv))))

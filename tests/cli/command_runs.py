"""The command line run by tests: in this process, or as a process of its own."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxsoftjac.cli import _main

GOOD_ROW = ["2.0", "1.0", "0.5", "-1e0"]


def run(*argv, program=("-m", "jaxsoftjac"), **options):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    environment |= {"PYTHONIOENCODING": "utf-8", **options.pop("env", {})}
    command = [sys.executable, *program, *map(str, argv)]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, timeout=120, **options
    )


def report(capsys, *argv):
    """The JSON report of a run in this process that must succeed."""
    assert _main.main([*map(str, argv), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out, parse_constant=pytest.fail)


def error(capsys, *argv):
    """The one line on standard error of a run in this process that must end with status 2."""
    assert _main.main([*map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"jaxsoftjac: error: [^\n]+\n", err)
    return err


def numpy_jacobian(x):
    sigma = np.exp(x - np.max(x)) / np.exp(x - np.max(x)).sum()
    return sigma, np.diag(sigma) - np.outer(sigma, sigma)


def minus(text):
    """The text with the minus sign that Python reads."""
    return text.replace("−", "-")


def numbers(line):
    return [float(word) for word in re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", minus(line))]


def table(text, head):
    """The cells below the line that begins with `head`, as numbers."""
    lines = text.split(head, 1)[1].splitlines()[1:]
    lines = lines[: next(i for i, line in enumerate([*lines, ""]) if not line.strip("\n"))]
    return np.array([numbers(line) for line in lines if "---" not in line])

"""What all commands share: help, arguments, exit status, the terminal."""

import io
import json
import os
import re
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from command_runs import GOOD_ROW, error, numpy_jacobian, run

from jaxsoftjac.cli import _inspect, _main

pytestmark = pytest.mark.once


def in_ascii(monkeypatch, *argv):
    """What a run in this process writes to a terminal that has ASCII only."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert _main.main([*argv]) == 0
    stream.flush()
    text = stream.buffer.getvalue().decode()
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_words_stand_for_symbols_that_the_terminal_lacks(monkeypatch):
    argv = ["inspect", *GOOD_ROW, "--flow", "--spectrum", "--sweep", "--temperatures", "2"]
    text = in_ascii(monkeypatch, *argv)
    assert re.search(r"J = J\^T +yes +symmetry_error", text)
    assert re.search(r"spectral_norm +\|\|J\|\|_2 = lambda_max +0\.\d+", text)
    assert "sigma_(k) <= lambda_(k+1)" in text


@pytest.mark.parametrize("command", ["inspect", "explain", "accuracy"])
def test_help_is_spelled_for_the_terminal_and_has_examples(monkeypatch, command):
    text = in_ascii(monkeypatch, command, "--help")
    assert f"python -m jaxsoftjac {command} " in text


def test_float64_and_standard_input_as_a_process():
    done = run("inspect", "-", "--dtype", "float64", "--json", input="1;2;3 # one\n\n# two\n")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["x64"]
    np.testing.assert_allclose(found["sigma"], numpy_jacobian(np.array([1.0, 2, 3]))[0], rtol=1e-15)


def test_a_closed_standard_output_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert _main.main(["inspect", *GOOD_ROW]) == 2
    assert capsys.readouterr().err == "jaxsoftjac: error: standard output is closed\n"


def test_a_reader_that_leaves_ends_the_run_quietly():
    command = [sys.executable, "-m", "jaxsoftjac", "inspect", *GOOD_ROW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["1", "two"], ["number 2", "'two' is not a number"]),
        (["1", "nan"], ["number 2", "nan is not finite"]),
        (["inf"], ["inf is not finite"]),
        (["-inf"], ["every logit is -inf"]),
        (["1", "x" * 10**7], ["number 2", "…' is not a number"]),
        (["1,two"], ["1,two", "unknown suffix"]),
        (["x.npy", "x.npz"], ["one file at a time, got 2"]),
        (["no.npy"], ["no.npy", "No such file"]),
        (["no.csv"], ["no.csv", "No such file"]),
        (["nothing"], ["nothing", "unknown suffix"]),
        (["x.npy", "--row", "2"], ["x.npy", "--row 2", "2 rows"]),
        (["x.npy", "--row", "-1"], ["x.npy", "--row -1"]),
        (["x.npy", "--axis", "2"], ["x.npy", "--axis 2", "(2, 3)"]),
        (["x.npy", "--key", "a"], ["x.npy", "--key"]),
        (["x.npz", "--key", "b"], ["x.npz", "'b'", "holds a"]),
        (["x.npy", "--vjp", "1", "2", "3"], ["x.npy", "--vjp", "--row"]),
        (["1", "2", "--vjp", "1"], ["--vjp", "K = 2", "got 1"]),
        (["1", "2", "--vjp", "1", "nan"], ["--vjp", "nan"]),
        (["1", "2", "--axis", "1"], ["--axis 1"]),
        (["1", "2", "--key", "a"], ["--key"]),
        (["1", "2", "--temperature", "0"], ["--temperature", "positive"]),
        (["1", "2", "--temperature", "-1e3"], ["--temperature", "positive"]),
        (["1", "2", "--temperature", "nan"], ["--temperature", "finite"]),
        (["1", "2", "--temperature", "1e-300"], ["does not fit float32"]),
        (["1", "7e4", "--dtype", "float16"], ["70000", "does not fit float16"]),
        (["1", "2", "--dtype", "int8"], ["--dtype", "int8"]),
        (["1", "2", "--plot", ""], ["--plot ''", "unknown picture format"]),
        (["1", "2", "--plot", "x.pgf"], ["--plot", "unknown picture format"]),
        (["1", "2", "--plot", "nowhere/x.png"], ["--plot", "nowhere"]),
        (["1", "2", "--plot", "x.xyz"], ["--plot", "unknown picture format"]),
        (["1", "2", "--plot", "folder.png"], ["--plot", "cannot be written"]),
        (["1", "2", "--bogus"], ["--bogus"]),
        (["1", "2", "--sweep", "--temperatures", "1", "0"], ["--temperatures", "positive", "0"]),
        (["1", "2", "--sweep", "--temperatures", "inf"], ["--temperatures", "finite"]),
        (["1", "2", "--sweep", "--temperatures", "1e-300"], ["1e-300", "does not fit float32"]),
        (["1", "2", "--temperatures", "1"], ["--temperatures is for --sweep"]),
        (["x" * 10**5 + ".json"], ["…", "unknown suffix"]),
        (["x" * 10**5 + ".npy"], ["…", "File name too long"]),
        (["a\0b.npy"], ["null byte"]),
        (["1", "--flow"], ["--flow", "at least two classes", "K = 1"]),
        (["1", "--spectrum"], ["--spectrum", "K = 1"]),
        (["1", "--sweep"], ["--sweep", "K = 1"]),
        ([], ["logits"]),
    ],
)
def test_bad_arguments(capsys, tmp_path, monkeypatch, argv, parts):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 3)))
    np.savez("x.npz", a=np.zeros(3))
    (tmp_path / "folder.png").mkdir()
    line = error(capsys, "inspect", *argv)
    assert len(line) < 700
    for part in parts:
        assert part in line


def test_an_interrupt_ends_quietly(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_inspect, "inspect_logits", interrupt)
    assert _main.main(["inspect", "1", "2"]) == 130
    assert capsys.readouterr() == ("", "")


def test_the_version_is_that_of_the_package(capsys):
    assert _main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxsoftjac {metadata.version('jaxsoftjac')}\n"


def test_help_documents_every_exit_status(monkeypatch):
    for argv in (["--help"], ["inspect", "--help"], ["explain", "--help"], ["accuracy", "--help"]):
        found = re.findall(r"^  (\d+) +\w", in_ascii(monkeypatch, *argv), flags=re.M)
        assert found == ["0", "1", "2", "130", "141"]


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from jaxsoftjac.cli import _main
_main.read_logits = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
sys.exit(_main.main(["inspect", "-"]))
"""


def test_an_interrupt_of_the_process_is_130():
    done = run(program=("-c", INTERRUPTED))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no full device")
def test_a_full_disk_is_status_2():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "jaxsoftjac", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8")
    assert done.returncode == 2
    assert done.stderr == "jaxsoftjac: error: standard output: No space left on device\n"

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxsoftjac.cli import _chunks, _inspect, _main
from jaxsoftjac.diagnostics import gradient_flow

pytestmark = pytest.mark.once

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


def numpy_jacobian(x):
    sigma = np.exp(x - np.max(x)) / np.exp(x - np.max(x)).sum()
    return sigma, np.diag(sigma) - np.outer(sigma, sigma)


def test_a_row_of_numbers(capsys):
    assert _main.main(["inspect", *GOOD_ROW]) == 0
    text = capsys.readouterr().out
    assert "All properties hold." in text
    assert re.search(r"J = Jᵀ +✓ +symmetry_error", text)
    assert max(map(len, text.splitlines())) <= 80


def in_ascii(monkeypatch, *argv):
    """What a run in this process writes to a terminal that has ASCII only."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with contextlib.suppress(SystemExit):  # argparse leaves so after --help
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


def test_a_reader_that_leaves_ends_the_run_quietly():
    command = [sys.executable, "-m", "jaxsoftjac", "inspect", *GOOD_ROW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_json_of_one_row_is_what_numpy_computes(capsys):
    found = report(capsys, "inspect", *GOOD_ROW, "--temperature", 2, "--vjp", "-1", 2, "-3e-1", 4)
    x, v = np.array([2, 1, 0.5, -1]) / 2, np.array([-1, 2, -0.3, 4])
    sigma, jacobian = numpy_jacobian(x)
    np.testing.assert_allclose(found["logits"], x)
    np.testing.assert_allclose(found["sigma"], sigma, rtol=1e-6)
    np.testing.assert_allclose(found["jacobian"]["entries"], jacobian, atol=1e-7)
    for way in ("formula", "full_jacobian", "autodiff"):
        np.testing.assert_allclose(found["vjp"][way], jacobian @ v, atol=1e-6)
    assert found["properties"]["largest_eigenvalue_is_bounded"]["formula"] == "λ_max ≤ 1/2"
    assert found["measurements"]["rank"] == 3


def test_text_shows_every_measurement_and_property_of_the_json(capsys):
    found = report(capsys, "inspect", *GOOD_ROW)
    assert _main.main(["inspect", *GOOD_ROW]) == 0
    text = capsys.readouterr().out
    for name in found["measurements"]:
        assert name in text
    for judged in found["properties"].values():
        assert judged["formula"] in text


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_dtype_is_served(capsys, dtype):
    found = report(capsys, "inspect", *GOOD_ROW, "--dtype", dtype)
    assert found["all_hold"]
    assert found["dtype"] == dtype


def test_a_run_leaves_the_precision_of_this_process_alone(capsys):
    before = jax.numpy.zeros(()).dtype
    report(capsys, "inspect", "1", "2", "--dtype", "float64")
    report(capsys, "inspect", "1", "2", "--dtype", "float32")
    assert jax.numpy.zeros(()).dtype == before


def save(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, logits=array)
    else:
        np.savetxt(path, array, delimiter="," if path.suffix == ".csv" else "\t")
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".txt"])
def test_every_form_of_file_gives_the_same_rows(capsys, tmp_path, suffix):
    array = np.linspace(-3, 3, 12).reshape(3, 4)
    path = save(tmp_path / f"logits{suffix}", array)
    row = report(capsys, "inspect", path, "--row", 1)
    np.testing.assert_allclose(row["logits"], array[1], rtol=1e-6)
    column = report(capsys, "inspect", path, "--axis", 0, "--row", 3)
    np.testing.assert_allclose(column["logits"], array[:, 3], rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["1,2,3\n4,5,6", "1; 2;3\n4;5 ;6\n", "1\t2\t3\r\n\r\n4\t5\t6\r\n", "# a\n1  2 3\n4 5 6 #b"],
)
def test_separators_comments_and_blank_lines(capsys, tmp_path, text):
    (tmp_path / "x.csv").write_text(text, newline="")
    assert report(capsys, "inspect", tmp_path / "x.csv", "--row", 1)["logits"] == [4, 5, 6]


def test_one_dimension_is_one_row(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.array([3, 1, 2]))
    assert report(capsys, "inspect", tmp_path / "x.npy")["logits"] == [3, 1, 2]


def test_a_key_chooses_among_arrays(capsys, tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.ones(2))
    assert report(capsys, "inspect", tmp_path / "x.npz", "--key", "b")["logits"] == [1, 1]


@pytest.mark.parametrize(("width", "order"), [(5, "C"), (70, "F")])
def test_many_rows_are_summarised_over_chunks(capsys, tmp_path, monkeypatch, width, order):
    array = np.random.default_rng(0).normal(size=(23, width)).astype(np.float32)
    array[17] = 0
    array[17, :2] = 9  # σ ≈ (½, ½): λ_max ≈ ½
    np.save(tmp_path / "x.npy", np.asarray(array, order=order))
    whole = report(capsys, "inspect", tmp_path / "x.npy")
    monkeypatch.setattr(_chunks, "_CHUNK_ELEMENTS", 5 * width * (width if width < 65 else 1))
    monkeypatch.setattr("jaxsoftjac.cli._files._STRIP_BYTES", 500)
    chunked = report(capsys, "inspect", tmp_path / "x.npy")
    assert (whole["rows"], whole["row"]) == (23, None)
    bound = "largest_eigenvalue" if width < 65 else "largest_eigenvalue_upper_bound"
    assert whole["properties"]["largest_eigenvalue_is_bounded"]["worst_row"] == 17
    np.testing.assert_allclose(whole["measurements"][bound]["max"], 0.5, atol=0.01)
    for name, statistics in whole["measurements"].items():
        assert list(statistics) == ["min", "median", "max"]
        np.testing.assert_allclose(
            list(chunked["measurements"][name].values()), list(statistics.values()), atol=1e-6
        )


def test_many_rows_in_text(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(3, 4))
    assert _main.main(["inspect", str(tmp_path / "x.npy")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"measurement +min +median +max\n", text)
    assert re.search(r"λ_max ≤ 1/2 +✓ +3 +\d +largest_eigenvalue 0\.\d+\n", text)


def test_the_picture_is_of_the_steepest_row_or_of_the_chosen_one(capsys, tmp_path):
    np.save(tmp_path / "x.npy", [[9.0, 0, 0], [5, 5, 0], [0, 0, 0]])
    picture = tmp_path / "x.png"
    found = report(capsys, "inspect", tmp_path / "x.npy", "--plot", picture)
    assert found["picture"] == {"file": str(picture), "row": 1, "reason": "the largest λ_max"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = report(capsys, "inspect", tmp_path / "x.npy", "--plot", picture, "--row", "2")
    assert found["picture"]["row"] == 2


def test_a_wide_row_forms_no_matrix(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(0, 9, 5000))
    found = report(capsys, "inspect", tmp_path / "x.npy")
    assert found["method"] == "matrix-free"
    assert found["jacobian"]["indices"] == [0, 1, 2, 4997, 4998, 4999]
    assert "full_jacobian" not in found["vjp"]


def test_a_property_that_fails_is_status_1_and_named_with_its_row(capsys, tmp_path, monkeypatch):
    verify = _inspect.verify_jacobian_properties

    def broken(x):
        found = verify(x)
        good = x[:, 0] != 7
        return found._replace(is_symmetric=good, all_hold=good)

    monkeypatch.setattr(_inspect, "verify_jacobian_properties", broken)
    np.save(tmp_path / "x.npy", [[1.0, 2], [7, 2], [3, 4]])
    assert _main.main(["inspect", str(tmp_path / "x.npy")]) == 1
    text = capsys.readouterr().out
    assert re.search(r"J = Jᵀ +✗ +2 +1 ", text)
    assert "Failed: J = Jᵀ" in text


FLOW = jax.jit(gradient_flow)


def test_flow_spectrum_and_sweep_of_one_row(capsys):
    argv = ["--flow", "--spectrum", "--sweep", "--temperatures", 2]
    found = report(capsys, "inspect", *GOOD_ROW, *argv)
    x = np.array(GOOD_ROW, np.float32)
    expected = FLOW(x)._asdict()
    assert list(found["flow"]) == list(expected)
    np.testing.assert_allclose(list(found["flow"].values()), list(expected.values()), rtol=1e-5)
    sigma, jacobian = numpy_jacobian(x.astype(float))
    spectrum = found["spectrum"]
    assert (spectrum["row"], spectrum["reason"]) == (0, "the row inspected")
    np.testing.assert_allclose(spectrum["eigenvalues"], np.linalg.eigvalsh(jacobian), atol=1e-7)
    np.testing.assert_allclose(spectrum["probabilities"], np.sort(sigma), rtol=1e-5)
    (sweep,) = found["sweep"]
    assert sweep["temperature"] == 2
    np.testing.assert_allclose(sweep["entropy"], FLOW(x / 2).entropy, rtol=1e-5)


def test_flow_spectrum_and_sweep_of_many_rows(capsys, tmp_path):
    array = np.array([[9, 0, 0, 0], [2, 1, 0, 0], [60, 0, 1, 2]], np.float32)
    np.save(tmp_path / "x.npy", array)
    argv = [tmp_path / "x.npy", "--flow", "--spectrum", "--sweep", "--temperatures", 1, 20]
    found = report(capsys, "inspect", *argv)
    assert found["flow"]["collapsed_rows"] == 1
    entropy = np.sort(FLOW(array).entropy)
    np.testing.assert_allclose(list(found["flow"]["entropy"].values()), entropy, rtol=1e-5)
    assert (found["spectrum"]["row"], found["spectrum"]["reason"]) == (1, "the largest λ_max")
    assert [sweep["temperature"] for sweep in found["sweep"]] == [1, 20]
    assert found["sweep"][1]["collapsed_rows"] == 0
    assert _main.main(["inspect", *map(str, argv)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"gradient flow +formula +min +median +max\n", text)
    assert re.search(r"collapsed_rows +max σ = 1 in float32 +1\n", text)
    assert "Spectrum at row 1, the largest λ_max" in text
    assert re.search(r"\n20 +0\.\d{4} ", text)


def test_a_wide_spectrum_is_shortened(capsys):
    row = [str(i / 9) for i in range(30)]
    assert _main.main(["inspect", *row, "--spectrum"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("k  "))
    assert [line.split()[0] for line in lines[start + 6 : start + 9]] == ["6", "…", "24"]
    assert max(map(len, lines)) <= 80


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


BAD_FILES = {
    "header.csv": (b"a,b\n1,2\n", ["line 1", "'a' is not a number"]),
    "ragged.csv": (b"1,2\n\n3,4,5\n", ["line 3", "ragged", "3 values", "line 1 has 2"]),
    "nan.txt": (b"1 2\n3 nan\n", ["line 2, column 2", "nan is not finite"]),
    "hole.csv": (b"1,,2\n", ["line 1, column 2", "'' is not a number"]),
    "comma.csv": (b"1,5;2,5\n", ["line 1", "both"]),
    "latin.csv": (b"1,2\n\xe9,3\n", ["line 2", "not UTF-8"]),
    "empty.csv": (b"# nothing\n", ["empty"]),
    "nan.npy": (npy([[1.0, 2], [3, np.nan]]), ["row 1, column 1", "nan is not finite"]),
    "inf.npy": (npy([1.0, -np.inf]), ["row 0, column 1", "-inf is not finite"]),
    "big.npy": (npy([1.0, 1e39]), ["row 0, column 1", "1e+39", "does not fit float32"]),
    "scalar.npy": (npy(np.array(1.0)), ["wrong number of dimensions", "got 0"]),
    "cube.npy": (npy(np.zeros((2, 2, 2))), ["wrong number of dimensions", "got 3"]),
    "none.npy": (npy(np.zeros((0, 3))), ["empty"]),
    "thin.npy": (npy(np.zeros((3, 0))), ["empty"]),
    "words.npy": (npy(["a", "b"]), ["not numeric", "<U1"]),
    "bool.npy": (npy([True, False]), ["not numeric", "bool"]),
    "complex.npy": (npy([1j]), ["not numeric", "complex128"]),
    "pickled.npy": (npy(np.array([{}, 1], dtype=object)), ["pickled"]),
    "short.npy": (npy(np.zeros(100))[:-8], ["truncated"]),
    "shorter.npy": (npy(np.zeros(100))[:20], ["truncated"]),
    "nothing.npy": (b"", ["truncated"]),
    "two.npz": (npz(a=np.zeros(2), b=np.zeros(2)), ["--key", "a, b"]),
    "no.npz": (npz(), ["--key", "no arrays"]),
    "pickled.npz": (npz(a=np.array([{}], dtype=object)), ["pickled"]),
    "short.npz": (npz(a=np.zeros(100))[:-50], ["truncated"]),
    "nothing.npz": (b"", ["truncated"]),
    "array.npz": (npy(np.zeros(2)), ["not an .npz file"]),
    "x.json": (b"[1, 2]", ["unknown suffix '.json'"]),
}


def error(capsys, *argv):
    """The one line on standard error of a run in this process that must end with status 2."""
    assert _main.main([*map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"jaxsoftjac: error: [^\n]+\n", err)
    return err


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_what_is_wrong_and_where(capsys, tmp_path, name):
    content, parts = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    line = error(capsys, "inspect", tmp_path / name)
    for part in [str(tmp_path / name), *parts]:
        assert part in line


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["1", "two"], ["number 2", "'two' is not a number"]),
        (["1", "nan"], ["number 2", "nan is not finite"]),
        (["-inf"], ["-inf is not finite"]),
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
        (["1", "2", "--plot", "nowhere/x.png"], ["--plot", "nowhere"]),
        (["1", "2", "--plot", "x.xyz"], ["--plot", "unknown picture format"]),
        (["1", "2", "--plot", "folder.png"], ["--plot", "cannot be written"]),
        (["1", "2", "--bogus"], ["--bogus"]),
        (["1", "2", "--sweep", "--temperatures", "1", "0"], ["--temperatures", "positive", "0"]),
        (["1", "2", "--sweep", "--temperatures", "inf"], ["--temperatures", "finite"]),
        (["1", "2", "--sweep", "--temperatures", "1e-300"], ["1e-300", "does not fit float32"]),
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
    for part in parts:
        assert part in line


def test_bad_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1 2\n3 x\n")))
    line = error(capsys, "inspect", "-")
    assert "standard input: line 2, column 2: 'x' is not a number" in line


def test_an_unreadable_value_in_a_late_chunk_is_found(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(_chunks, "_CHUNK_ELEMENTS", 2 * 9)
    array = np.zeros((7, 3))
    array[5, 2] = np.nan
    np.save(tmp_path / "x.npy", array)
    assert "row 5, column 2: nan" in error(capsys, "inspect", tmp_path / "x.npy")


def test_without_matplotlib_the_error_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert "jaxsoftjac[plots]" in error(capsys, "inspect", "1", "2", "--plot", "x.png")


def test_an_interrupt_ends_quietly(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_inspect, "inspect_logits", interrupt)
    assert _main.main(["inspect", "1", "2"]) == 130
    assert capsys.readouterr() == ("", "")


# Not getrusage: a child's ru_maxrss begins at what this process held when it was forked.
PEAK = """
import re, sys
from jaxsoftjac import cli
status = cli.main(sys.argv[1:])
print("peak kB", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak from /proc")
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_stays_bounded_over_a_wide_file(tmp_path, order):
    shape = (2048, 50257)  # 0.4 GB, which mapped at once would break the bound
    stored = np.lib.format.open_memmap(
        tmp_path / "wide.npy", "w+", np.float32, shape, fortran_order=order == "F"
    )
    stored[5] = 1.0
    del stored
    done = run("inspect", tmp_path / "wide.npy", program=("-c", PEAK))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2048 rows, K = 50257" in done.stdout
    peak = int(done.stdout.rsplit(maxsplit=1)[1]) * 1024
    assert peak < 2**30

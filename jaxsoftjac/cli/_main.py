"""The commands and their options; one module each does the work.

A command turns its input into one report, a dictionary that `--json` prints as it is and the text
lays out. Exit status: 0 when every property holds, 1 when one does not, 2 for input it cannot use.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxsoftjac.cli._files import InputError, Logits, numbers, read_logits
from jaxsoftjac.cli._text import report_text, spell

_DTYPES = ("float32", "float64", "bfloat16", "float16")
_TEMPERATURES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 or 2 as above, 130 when interrupted."""
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except InputError as error:
        print("jaxsoftjac: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough; let the interpreter's last flush pass
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(message)

    def format_help(self) -> str:
        return spell(super().format_help(), _encoding())


def _run(argv: Sequence[str]) -> int:
    # argparse takes -1e3 for an option; a blank in front makes it a value, and float() skips it.
    args = _parser().parse_args([f" {a}" if a[:1] == "-" and _is_number(a) else a for a in argv])
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jaxsoftjac", description="The derivatives of softmax.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspect(commands)
    _add_explain(commands)
    _add_accuracy(commands)
    return parser


def _add_command(commands, name: str, run: Callable, *, help: str, text: str, examples: list[str]):
    """A command whose help ends with examples."""
    command = commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(spell(text, _encoding()), 79),
        epilog="\n".join(["examples:", *(f"  python -m jaxsoftjac {name} {e}" for e in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_logits(command) -> None:
    add = command.add_argument
    add(
        "logits",
        nargs="+",
        help="numbers (one row), or a .npy, .npz, .csv or .txt file, or - for standard input",
    )
    add("--row", type=int, metavar="N", help="only this row, counted from 0")
    add("--axis", type=int, default=-1, help="axis along which one row lies (default: last)")
    add("--key", help="name of the array in an .npz file")
    add("--temperature", type=float, default=1.0, metavar="T", help="divide the logits by T > 0")
    add("--vjp", type=float, nargs="+", metavar="V", help="vector to multiply J with (one row)")


def _add_inspect(commands) -> None:
    command = _add_command(
        commands,
        "inspect",
        _inspect,
        help="check the properties of the softmax Jacobian at given logits",
        text="Check the properties of the softmax Jacobian J = diag(σ) − σσᵀ at each row of "
        "logits, and report what it does to gradients. Rows and columns of arrays count from 0, "
        "lines and columns of text from 1. Exit status: 0 if all properties hold, 1 if one does "
        "not, 2 for unusable input.",
        examples=[
            "2.0 1.0 0.5",
            "logits.npy --flow --plot worst.png",
            "logits.csv --row 7 --sweep --temperatures 0.5 1 2",
        ],
    )
    _add_logits(command)
    add = command.add_argument
    add("--dtype", choices=_DTYPES, default="float32", help="float64 turns x64 on (%(default)s)")
    add("--flow", action="store_true", help="entropy, norms, rank and gain of the gradient's path")
    add("--spectrum", action="store_true", help="eigenvalues of J at the row that --plot shows")
    add("--sweep", action="store_true", help="the gradient flow against temperature")
    add(
        "--temperatures",
        type=float,
        nargs="+",
        default=_TEMPERATURES,
        metavar="T",
        help="those of --sweep, in place of --temperature (default: 1/8 to 8)",
    )
    add("--plot", metavar="FILE", help="picture of J at the row, or at the one of largest λ_max")
    add("--json", action="store_true", help="print the report as JSON")


def _add_explain(commands) -> None:
    command = _add_command(
        commands,
        "explain",
        _explain,
        help="derive the softmax Jacobian step by step on given logits",
        text="Derive the softmax Jacobian on one row of logits, in float64: the two cases, the "
        "matrix, the vector-Jacobian product (with --vjp, or −1 to 1 in even steps), the gradient "
        "of cross-entropy (with --label) and the second derivative. Classes count from 0. Exit "
        "status: 0, or 2 for unusable input.",
        examples=[
            "2.0 1.0 0.5",
            "2.0 1.0 0.5 --vjp 0.1 -0.3 0.2 --label 0",
            "logits.npy --row 3 --format markdown > J.md",
        ],
    )
    _add_logits(command)
    command.add_argument("--label", type=int, metavar="C", help="the true class, counted from 0")
    command.add_argument(
        "--format", choices=("text", "markdown"), default="text", help="(default: %(default)s)"
    )


def _add_accuracy(commands) -> None:
    command = _add_command(
        commands,
        "accuracy",
        _accuracy,
        help="measure the float32 errors of jax.nn, torch and jaxsoftjac on this machine",
        text="Measure the float32 errors of softmax and its derivatives in jaxsoftjac, jax.nn and, "
        "where it is installed, torch, on this machine and against long double. Exit status: 0 if "
        "jaxsoftjac keeps its promises, 1 if it does not, 2 for unusable input.",
        examples=["", "--rows 1000 --json", "--plot errors.png"],
    )
    add = command.add_argument
    add("--rows", type=int, default=64, metavar="N", help="random rows per case (%(default)s)")
    add("--plot", metavar="FILE", help="picture of the products' errors against gap and offset")
    add("--json", action="store_true", help="print the report as JSON")


def _inspect(args: argparse.Namespace) -> int:
    for temperature in args.temperatures:
        _require_positive("--temperatures", temperature)
    if args.plot:
        _check_picture(args.plot)
    logits = _read(args)
    for option in ("flow", "spectrum", "sweep"):
        if getattr(args, option):
            _require_classes(logits, f"--{option}")
    import jax  # here, so that --help and most errors do without

    from jaxsoftjac.cli._inspect import inspect_logits

    with jax.enable_x64(args.dtype == "float64"):
        report = inspect_logits(
            logits,
            row=args.row,
            dtype=args.dtype,
            temperature=args.temperature,
            vector=args.vjp,
            picture=args.plot,
            flow=args.flow,
            spectrum=args.spectrum,
            sweep=args.temperatures if args.sweep else (),
        )
    return _print(report, report_text, args.json)


def _explain(args: argparse.Namespace) -> int:
    logits = _read(args)
    count, width = logits.shape
    _require_classes(logits, "explain")
    if count > 1 and args.row is None:
        raise InputError(f"{logits.name}: explain needs one row of {count}: add --row N")
    if args.label is not None and not 0 <= args.label < width:
        raise InputError(f"{logits.name}: --label {args.label} is not among {width} classes")
    import jax
    import numpy as np

    from jaxsoftjac.cli._explain import explanation

    row = args.row or 0
    z = logits.cast(logits.rows(row, row + 1), row, np.dtype(float), args.temperature)[0]
    options = {"vector": args.vjp, "label": args.label, "style": args.format}
    with jax.enable_x64(True):
        print(explanation(z, **options, encoding=_encoding()))
    return 0


def _accuracy(args: argparse.Namespace) -> int:
    if args.rows < 1:
        raise InputError(f"--rows must be positive, got {args.rows}")
    if args.plot:
        _check_picture(args.plot)
    from jaxsoftjac.cli._accuracy import accuracy_report, accuracy_text

    report = accuracy_report(rows=args.rows)
    if args.plot:
        from jaxsoftjac.cli._files import save_picture
        from jaxsoftjac.plots import plot_accuracy

        save_picture(plot_accuracy(), args.plot)
    return _print(report, accuracy_text, args.json)


def _print(report: dict, text: Callable[..., str], as_json: bool) -> int:
    if as_json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        print(text(report, encoding=_encoding()))
    return 0 if report["all_hold"] else 1


def _require_positive(option: str, temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise InputError(f"{option} must be positive and finite, got {temperature:g}")


def _require_classes(logits: Logits, what: str) -> None:
    if logits.shape[1] < 2:
        raise InputError(f"{logits.name}: {what} needs at least two classes, got K = 1 (J = 0)")


def _read(args: argparse.Namespace) -> Logits:
    _require_positive("--temperature", args.temperature)
    words = args.logits
    if len(words) > 1 or _is_number(words[0]):
        if args.key is not None:
            raise InputError("command line: --key is for .npz files")
        logits = numbers(words, name="command line", axis=args.axis)
    else:
        logits = read_logits(words[0], key=args.key, axis=args.axis)
    if args.row is not None and not 0 <= args.row < logits.shape[0]:
        raise InputError(f"{logits.name}: --row {args.row} is not among {logits.shape[0]} rows")
    single = args.row is not None or logits.shape[0] == 1
    if args.vjp and not single:
        raise InputError(f"{logits.name}: --vjp needs one row of {logits.shape[0]}: add --row N")
    if args.vjp and len(args.vjp) != logits.shape[1]:
        raise InputError(
            f"{logits.name}: --vjp must have K = {logits.shape[1]} values, got {len(args.vjp)}"
        )
    return logits


def _check_picture(path: str) -> None:
    """Find out that a picture cannot be written before anything is computed for it."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise InputError('--plot needs matplotlib: pip install "jaxsoftjac[plots]"') from None
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix[1:].lower() not in formats:
        raise InputError(f"--plot {path}: unknown picture format: expected {', '.join(formats)}")
    if not Path(path).parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {Path(path).parent}")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _encoding() -> str:
    """The encoding of standard output, which is made to write anything, such as odd file names."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return getattr(sys.stdout, "encoding", None) or "utf-8"

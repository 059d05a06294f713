"""The command line: `python -m jaxsoftjac inspect 2.0 1.0 0.5`.

A command turns its input into one report, a dictionary that `--json` prints as it is and the text
lays out. Exit status: 0 when every property holds, 1 when one does not, 2 for input it cannot use.

>>> main(["inspect"])
2
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxsoftjac.logits_files import InputError, Logits, numbers, read_logits
from jaxsoftjac.report_text import report_text, spell

_DTYPES = ("float32", "float64", "bfloat16", "float16")


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
    return parser


def _add_inspect(commands) -> None:
    command = commands.add_parser(
        "inspect",
        help="check the properties of the softmax Jacobian at given logits",
        description="Check the properties of the softmax Jacobian J = diag(σ) − σσᵀ at each row of "
        "logits. Rows and columns of arrays count from 0, lines and columns of text from 1. "
        "Exit status: 0 if all properties hold, 1 if one does not, 2 for unusable input.",
    )
    command.set_defaults(run=_inspect)
    command.add_argument(
        "logits",
        nargs="+",
        help="numbers (one row), or a .npy, .npz, .csv or .txt file, or - for standard input",
    )
    add = command.add_argument
    add("--row", type=int, metavar="N", help="inspect only this row, counted from 0")
    add("--axis", type=int, default=-1, help="axis along which one row lies (default: last)")
    add("--key", help="name of the array in an .npz file")
    add("--temperature", type=float, default=1.0, metavar="T", help="divide the logits by T > 0")
    add("--dtype", choices=_DTYPES, default="float32", help="float64 turns x64 on (%(default)s)")
    add("--vjp", type=float, nargs="+", metavar="V", help="vector to multiply J with (one row)")
    add("--plot", metavar="FILE", help="picture of J at the row, or at that of the largest λ_max")
    add("--json", action="store_true", help="print the report as JSON")


def _inspect(args: argparse.Namespace) -> int:
    if not 0 < args.temperature < float("inf"):
        raise InputError(f"--temperature must be positive and finite, got {args.temperature:g}")
    if args.plot:
        _check_picture(args.plot)
    logits = _read(args)
    import jax  # here, so that --help and most errors do without

    from jaxsoftjac.inspection import inspect_logits

    with jax.enable_x64(args.dtype == "float64"):
        report = inspect_logits(
            logits,
            row=args.row,
            dtype=args.dtype,
            temperature=args.temperature,
            vector=args.vjp,
            picture=args.plot,
        )
    if args.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        print(report_text(report, encoding=_encoding()))
    return 0 if report["all_hold"] else 1


def _read(args: argparse.Namespace) -> Logits:
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

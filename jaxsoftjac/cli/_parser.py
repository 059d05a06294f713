"""The commands' options, and help that is spelled for the terminal.

>>> vars(parser({"inspect": print}).parse_args(["inspect", "2.0", "1.0"]))["logits"]
['2.0', '1.0']
"""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NoReturn

from jaxsoftjac.cli._cells import spell
from jaxsoftjac.cli._errors import InputError, shortened

TEMPERATURES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_DTYPES = ("float32", "float64", "bfloat16", "float16")
_FILES = """\
files:
  .npy              arrays, mapped; [B, T, K] counts B·T rows; bfloat16 too
  .csv .tsv .txt    text, with or without names of classes and of rows
  .npy.gz .csv.gz   the same compressed (.tsv.gz, .txt.gz)
  .npz              NAME.npz:KEY or --key KEY where it holds several arrays
  .safetensors      likewise; needs the extra "files"
  .parquet          a column per class, or one of lists; needs the extra "files"
  -                 standard input: text, or a .npy file
A logit of −∞ (-inf) excludes its class from the row."""
_STATUS = """\
exit status:
  0    done, and all that was checked holds
  1    a property or a promise does not hold (inspect, accuracy)
  2    input that cannot be used; one line on standard error says why
  130  interrupted (Ctrl-C)
  141  the reader of standard output has left (a broken pipe)"""


Commands = Any  # what add_subparsers returns has no public name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(shortened(message, 300))

    def format_help(self) -> str:
        return spell(super().format_help(), encoding())


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        print("jaxsoftjac", metadata.version("jaxsoftjac"))
        parser.exit()


def parser(runs: Mapping[str, Callable]) -> argparse.ArgumentParser:
    """The parser of the whole command line.

    Args:
        runs: What each command calls with its options.
    """
    whole = _Parser(
        prog="jaxsoftjac",
        description="The derivatives of softmax: inspected, explained, measured.",
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run in runs.items():
        _COMMANDS[name](commands).set_defaults(run=run)
    return whole


def encoding() -> str:
    """The encoding of standard output, which is made to write anything, such as odd file names."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _command(
    commands: Commands,
    name: str,
    *,
    help: str,
    text: str,
    examples: list[str],
    notes: tuple[str, ...],
) -> argparse.ArgumentParser:
    """A command whose help ends with examples and notes."""
    lines = (f"  python -m jaxsoftjac {name} {e}".rstrip() for e in examples)
    shown = "\n".join(["examples:", *lines])
    return commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(spell(text, encoding()), 79),
        epilog="\n\n".join([shown, *notes]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_logits(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("logits", nargs="+", help="numbers (one row), a file, or - for standard input; see below")
    add("--row", type=int, metavar="N", help="only this row, counted from 0")
    add("--axis", type=int, default=-1, metavar="A", help="axis of the classes (default: last)")
    add("--key", help="name of the array in a file of several")
    add("--temperature", type=float, default=1.0, metavar="T", help="divide the logits by T > 0")
    add("--alpha", type=float, default=1.0, help="1 (softmax) to 4: J of entmax; 2 is sparsemax")
    add("--vjp", type=float, nargs="+", metavar="V", help="vector to multiply J with (one row)")


def _add_inspect(commands: Commands) -> argparse.ArgumentParser:
    command = _command(
        commands,
        "inspect",
        help="check the properties of the softmax Jacobian at given logits",
        text="Check the properties of the softmax Jacobian J = diag(σ) − σσᵀ at each row of "
        "logits, and report what it does to gradients; with --alpha, of the Jacobian of α-entmax, "
        "J = diag(s) − ssᵀ/Σs with s = p^(2 − α). Rows and columns of arrays count from 0, "
        "lines and columns of text from 1.",
        examples=[
            "2.0 1.0 0.5",
            "logits.npy --flow --plot worst.png",
            "layers.npz:attention --axis 1",
            "2.0 1.0 0.5 --alpha 1.5 --spectrum",
            "logits.csv.gz --row 7 --sweep --temperatures 1 2",
        ],
        notes=(_FILES, _STATUS),
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
        metavar="T",
        help="those of --sweep, in place of --temperature (default: 1/8 to 8)",
    )
    add(
        "--plot",
        metavar="FILE",
        help="picture of J at the row, or where its largest eigenvalue is greatest (.png, .svg or "
        ".pdf); the pictures of --flow, --spectrum and --sweep go beside it",
    )
    add("--json", action="store_true", help="print the report as JSON")
    return command


def _add_explain(commands: Commands) -> argparse.ArgumentParser:
    command = _command(
        commands,
        "explain",
        help="derive the softmax Jacobian step by step on given logits",
        text="Derive the softmax Jacobian on one row of logits, in float64: the two cases, the "
        "matrix, the vector-Jacobian product (with --vjp, or −1 to 1 in even steps), the gradient "
        "of cross-entropy (with --label) and the second derivative, each beside its finite "
        "difference. With --alpha it is that of α-entmax: the threshold, the support, the matrix, "
        "and with --label the Fenchel–Young loss. Classes count from 0.",
        examples=[
            "2.0 1.0 0.5",
            "2.0 1.0 0.5 --vjp 0.1 -0.3 0.2 --label 0",
            "2.0 1.0 0.5 --alpha 1.5 --label 0",
            "logits.npy --row 3 --format markdown > J.md",
        ],
        notes=(_FILES, _STATUS),
    )
    _add_logits(command)
    command.add_argument("--label", type=int, metavar="C", help="the true class, counted from 0")
    command.add_argument(
        "--format", choices=("text", "markdown"), default="text", help="(default: %(default)s)"
    )
    return command


def _add_accuracy(commands: Commands) -> argparse.ArgumentParser:
    command = _command(
        commands,
        "accuracy",
        help="measure the float32 errors of jax.nn, torch and jaxsoftjac",
        text="Measure the float32 errors of softmax and its derivatives in jaxsoftjac, jax.nn and, "
        "where it is installed, torch, on this machine and against long double.",
        examples=["", "--rows 1000 --json", "--plot errors.png"],
        notes=(_STATUS,),
    )
    add = command.add_argument
    add("--rows", type=int, default=64, metavar="N", help="random rows per case (%(default)s)")
    add("--plot", metavar="FILE", help="picture of the products' errors against gap and offset")
    add("--json", action="store_true", help="print the report as JSON")
    return command


_COMMANDS = {"inspect": _add_inspect, "explain": _add_explain, "accuracy": _add_accuracy}

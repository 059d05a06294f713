"""What each command does; one module each does the work.

A command turns its input into one report, a dictionary that `--json` prints as it is and the text
lays out. Exit status: 0 when every property holds, 1 when one does not, 2 for input it cannot use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from jaxsoftjac.cli._errors import InputError
from jaxsoftjac.cli._files import read_logits
from jaxsoftjac.cli._logits import Logits, numbers
from jaxsoftjac.cli._parser import TEMPERATURES, encoding, parser
from jaxsoftjac.cli._tables import is_number
from jaxsoftjac.cli._text import report_text
from jaxsoftjac.sparse._functions import HIGHEST, LOWEST

_TYPED = "command line"  # what numbers that are written out are called


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0, 1 or 2 as above, 130 when interrupted, 141 when nobody reads standard output any more.

    >>> main(["--version"])     # doctest: +ELLIPSIS
    jaxsoftjac ...
    0
    """
    if sys.stdout is None:
        return _refuse("standard output is closed")
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except InputError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # the reader has seen enough
        _drop_output()
        return 141
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # a full disk, most likely
        _drop_output()
        name = error.filename or "standard output"
        return _refuse(f"{name}: {error.strerror or error}")


def _refuse(message: str) -> int:
    """One line on standard error, shortened where a path or a word in it is very long."""
    line = " ".join(message.split())
    if len(line) > 600:
        line = f"{line[:280]} … {line[-280:]}"
    print("jaxsoftjac: error:", line, file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Lets the interpreter's last flush pass."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str]) -> int:
    runs = {"inspect": _inspect, "explain": _explain, "accuracy": _accuracy}
    # argparse takes -1e3 for an option; a blank in front makes it a value, and float() skips it.
    words = [f" {a}" if a[:1] == "-" and is_number(a.split(",")[0]) else a for a in argv]
    try:
        args = parser(runs).parse_args(words)
    except SystemExit as done:  # after --help and --version
        return int(done.code or 0)
    return args.run(args)


def _inspect(args: argparse.Namespace) -> int:
    if args.temperatures and not args.sweep:
        raise InputError("--temperatures is for --sweep")
    for temperature in args.temperatures or ():
        _require_positive("--temperatures", temperature)
    if args.plot is not None:
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
            alpha=args.alpha,
            dtype=args.dtype,
            temperature=args.temperature,
            vector=args.vjp,
            picture=args.plot,
            flow=args.flow,
            spectrum=args.spectrum,
            sweep=(args.temperatures or TEMPERATURES) if args.sweep else (),
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
    if args.label is not None and z[args.label] == -np.inf:
        raise InputError(f"{logits.name}: --label {args.label} is excluded: its logit is -inf")
    options = {
        "vector": args.vjp,
        "label": args.label,
        "alpha": args.alpha,
        "temperature": args.temperature,
        "source": "" if logits.name == _TYPED else f"Row {row} of {logits.name}",
        "classes": logits.classes,
    }
    with jax.enable_x64(True):
        print(explanation(z, **options, style=args.format, encoding=encoding()))
    return 0


def _accuracy(args: argparse.Namespace) -> int:
    if args.rows < 1:
        raise InputError(f"--rows must be positive, got {args.rows}")
    if args.plot is not None:
        _check_picture(args.plot)
    from jaxsoftjac.cli._accuracy import accuracy_report, accuracy_text

    report = accuracy_report(rows=args.rows)
    if args.plot is not None:
        from jaxsoftjac.cli._pictures import save_picture
        from jaxsoftjac.plots import plot_accuracy

        save_picture(plot_accuracy(), args.plot)
    return _print(report, accuracy_text, args.json)


def _check_picture(path: str) -> None:
    from jaxsoftjac.cli._pictures import check_picture

    check_picture(path)


def _print(report: dict, text: Callable[..., str], as_json: bool) -> int:
    if as_json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        print(text(report, encoding=encoding()))
    return 0 if report["all_hold"] else 1


def _require_positive(option: str, temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise InputError(f"{option} must be positive and finite, got {temperature:g}")


def _require_classes(logits: Logits, what: str) -> None:
    if logits.shape[1] < 2:
        raise InputError(f"{logits.name}: {what} needs at least two classes, got K = 1 (J = 0)")


def _read(args: argparse.Namespace) -> Logits:
    _require_positive("--temperature", args.temperature)
    if not LOWEST <= args.alpha <= HIGHEST:
        raise InputError(f"--alpha must lie in [{LOWEST}, {HIGHEST}], got {args.alpha:g}")
    words = args.logits
    if len(words) == 1 and not os.path.exists(words[0]):  # "2.0, 1.0" is a row too
        pieces = words[0].replace(",", " ").split()
        words = pieces if pieces and all(map(is_number, pieces)) else words
    if len(words) > 1 and any(map(os.path.exists, words)):
        raise InputError(f"{_TYPED}: one file at a time, got {len(words)}")
    if len(words) > 1 or is_number(words[0]):
        if args.key is not None:
            raise InputError(f"{_TYPED}: --key is for files of several arrays")
        logits = numbers(words, name=_TYPED, axis=args.axis)
    else:
        logits = read_logits(words[0], key=args.key, axis=args.axis)
    if args.row is not None and not 0 <= args.row < logits.shape[0]:
        raise InputError(f"{logits.name}: --row {args.row} is not among {logits.shape[0]} rows")
    single = args.row is not None or logits.shape[0] == 1
    if args.vjp and not single:
        raise InputError(f"{logits.name}: --vjp needs one row of {logits.shape[0]}: add --row N")
    for number in args.vjp or ():
        if not abs(number) < float("inf"):
            raise InputError(f"{_TYPED}: --vjp {number:g} is not finite")
    if args.vjp and len(args.vjp) != logits.shape[1]:
        raise InputError(
            f"{logits.name}: --vjp must have K = {logits.shape[1]} values, got {len(args.vjp)}"
        )
    return logits

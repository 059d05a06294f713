"""`python -m benchmarks [subject …] [--quick] [--profile] [--json FILE]`.

Exit status: 0 whether or not the claims are met, 1 when a result disagrees with its reference, 2
for a command line it cannot use.
"""

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _allocator

SUBJECTS = (
    "functions",
    "modes",
    "compile",
    "dense",
    "losses",
    "operators",
    "sparse",
    "linear_losses",
    "attention",
    "curvature",
    "second_order",
    "regression",
    "planning",
    "communication",
)
PROFILED = ("modes",)  # what `--profile` can be asked of


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if problem := _problem(args):
        print("benchmarks: error:", problem, file=sys.stderr)
        return 2
    import jax  # here, so that --help and errors do without

    from benchmarks import _harness

    where = f"{jax.default_backend()} ({jax.devices()[0].device_kind})"
    print(f"JAX {jax.__version__} on {where}, {_harness.cores()} CPU cores, float32")
    print(_allocator.description())
    reports = []
    for name in args.subjects or (PROFILED if args.profile else SUBJECTS):
        subject = importlib.import_module(f"benchmarks.{name}")
        print(f"\n{name}: {(subject.__doc__ or '').strip()}\n", flush=True)
        try:
            options = {"profiled": True} if args.profile else {}
            reports.append(subject.run(args.quick, **options))
        except _harness.Disagreement as error:
            print(f"benchmarks: error: {name}: {error}", file=sys.stderr)
            return 1
        print(reports[-1])
    print("", _harness.claims_table(reports), sep="\n")
    if args.json:
        contents = [dataclasses.asdict(report) for report in reports]
        args.json.write_text(json.dumps(contents, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks",
        description="Measure jaxsoftjac against its peers and print tables of ratios.",
    )
    names = ", ".join(SUBJECTS)
    parser.add_argument("subjects", nargs="*", metavar="subject", help=f"{names} (default: all)")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, few repeats")
    parser.add_argument(
        "--profile",
        action="store_true",
        help=f"passes over memory, no clock: {', '.join(PROFILED)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures as JSON")
    return parser


def _problem(args: argparse.Namespace) -> str | None:
    for name in args.subjects:
        if name not in SUBJECTS:
            return f"unknown subject {name!r}: expected {', '.join(SUBJECTS)}"
    if args.profile and not set(args.subjects) <= set(PROFILED):
        return f"--profile: of {', '.join(PROFILED)} alone"
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        return f"--json {args.json}: not a file in an existing folder"
    return None


if __name__ == "__main__":
    _allocator.restart_with_settings()
    sys.exit(main())

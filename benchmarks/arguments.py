"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def commas(convert: Callable[[str], Any]) -> Callable[[str], list]:
    """A converter of comma-separated lists, for argparse."""
    return lambda text: [convert(part.strip()) for part in text.split(",")]


def common_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--schemes",
        type=commas(str),
        help="any schemes that Dask knows; the first is the baseline",
    )
    parser.add_argument("--tls", action="store_true", help="schemes tls,fabric+tls instead")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--sleepy", action="store_true", help="let idle CPUs sleep: see awake.py")
    parser.add_argument("--json", metavar="FILE", help="write every round there")
    return parser


def parse(parser: argparse.ArgumentParser, schemes: list[str]) -> argparse.Namespace:
    """The command line with the schemes filled in and checked."""
    options = parser.parse_args()
    options.schemes = options.schemes or (["tls", "fabric+tls"] if options.tls else schemes)
    if len(set(options.schemes)) < len(options.schemes):
        parser.error("every scheme once in --schemes")
    return options


def is_encrypted(scheme: str) -> bool:
    """Whether the scheme needs certificates."""
    return scheme.endswith("tls")

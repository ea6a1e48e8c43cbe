"""Run the corpus of the repository, or single inputs, without libFuzzer; print what is wrong.

    python -m tests.fuzzing.replay [--leaks | --bare] [TARGET [FILE ...]]

This needs neither clang nor atheris. Ends with 1 where something was found.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from dask_fabric.errors import FabricError

from . import corpus, targets  # noqa: F401  # registers the targets
from .oracle import Fault, Oracle
from .registry import TARGETS


def replay(name: str, inputs: Iterable[bytes], with_leaks: bool = False) -> list[Fault]:
    """Run inputs of one target, and give the faults."""
    found: list[Fault] = []
    run = Oracle(TARGETS[name], found.append)
    for data in inputs:
        run(data)
        if with_leaks:
            run.check_leaks(data)
    run.end_batch()
    return found


def replay_bare(name: str, inputs: Iterable[bytes]) -> list[Fault]:
    """The same, but look for wrong exceptions only: a sanitizer finds more, and costs more."""
    for data in inputs:
        with contextlib.suppress(FabricError):
            TARGETS[name].run(data)
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", nargs="?", choices=list(TARGETS), help="by default all of them")
    parser.add_argument("files", nargs="*", type=Path, help="inputs; by default the corpus")
    parser.add_argument("--leaks", action="store_true", help="run each input often: what stays?")
    parser.add_argument("--bare", action="store_true", help="measure neither time nor memory")
    parser.add_argument("--timeout", type=int, default=0, help="seconds without an end: a hang")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    faulthandler.enable()
    if options.timeout:
        faulthandler.dump_traceback_later(options.timeout, exit=True)
    wrong = False
    for name in [options.target] if options.target else TARGETS:
        inputs = [path.read_bytes() for path in options.files]
        inputs = inputs or [*TARGETS[name].seeds, *corpus.kept(name)]
        found = replay_bare(name, inputs) if options.bare else replay(name, inputs, options.leaks)
        wrong |= bool(found)
        print(f"{name}: {len(inputs)} inputs, {len(found)} faults", flush=True)
        for fault in found[:5]:
            print(f"  {fault.kind} by {corpus.name_of(fault.data)}: {fault.text}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())

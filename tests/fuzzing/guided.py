"""One target under libFuzzer, in the environment that `tests.fuzzing` has built; not for users.

    python -m tests.fuzzing.guided TARGET FOLDER [options of libFuzzer] CORPUS

FOLDER gets each fault that is found: the input, and beside it what it has caused.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import shlex
import sys
from pathlib import Path

import atheris

# The compiled modules need libFuzzer's functions, which only this library has.
_LIBFUZZER = importlib.util.find_spec("atheris.core_with_libfuzzer").origin
ctypes.CDLL(_LIBFUZZER, os.RTLD_NOW | os.RTLD_GLOBAL)


def main() -> None:
    name, folder, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["dask_fabric"]):  # the modules in Python
        importlib.import_module("tests.fuzzing.targets")
    from . import oracle
    from .corpus import name_of
    from .registry import TARGETS

    logging.disable(logging.CRITICAL)
    seen = set()

    def report(fault: oracle.Fault) -> None:
        """Write a fault down once, and go on."""
        if oracle.signature(fault) not in seen:
            seen.add(oracle.signature(fault))
            path = Path(folder, f"{name}-{fault.kind}-{name_of(fault.data)}")
            path.write_bytes(fault.data)
            path.with_name(f"{path.name}.txt").write_text(f"{fault.text}\n")

    run = oracle.Oracle(TARGETS[name], report)
    # To minimise a corpus libFuzzer starts this program again, by a shell.
    itself = shlex.join([sys.executable, "-m", "tests.fuzzing.guided", name, folder])
    atheris.Setup([itself, *options], run, internal_libfuzzer=True)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

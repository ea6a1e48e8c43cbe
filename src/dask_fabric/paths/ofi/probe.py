"""A program that loads one libfabric and prints what it offers as one line of JSON.

It runs in a process of its own, because a library that does not fit this machine may print, hang,
crash or take over signals. Of this package it loads one compiled module, by its file: the package
itself would take longer than the probe.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys


def main(module: str, path: str, seconds: str) -> None:
    """Print the version and providers of the libfabric *path*, by the compiled *module*."""
    signal.alarm(int(seconds))  # ends this process even if its parent has died
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # providers may print
    try:
        spec = importlib.util.spec_from_file_location("dask_fabric.paths.ofi.libfabric", module)
        assert spec is not None and spec.loader is not None
        libfabric = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(libfabric)
        found = libfabric.survey(path)
    except Exception as exc:
        found = {"error": str(exc) or repr(exc)}
    answer.write(json.dumps(found) + "\n")
    answer.close()
    os._exit(0)  # skip the library's exit handlers


if __name__ == "__main__":
    main(*sys.argv[1:])

"""libfabric's own benchmark, fi_pingpong, as a floor.

Debian has it in libfabric-bin. It sends a message there and the same back, without reading the
other's memory as `fabric+ofi` does.
"""

from __future__ import annotations

import os
import shutil

from dask_fabric import config
from dask_fabric.bench import programs
from dask_fabric.errors import UnavailableError
from dask_fabric.paths.ofi import library as libraries

PROGRAM = "fi_pingpong"
_RATE_COLUMN = 5  # of: bytes, #sent, #ack, total, time, MB/sec, usec/xfer, Mxfers/sec


def choice() -> libraries.Choice | None:
    """Give library and provider as `fabric+ofi` takes them; None without them, or the program."""
    settings = config.load().paths.ofi
    kinds = libraries.wanted_kinds(True, settings.provider)
    if not kinds or shutil.which(PROGRAM) is None:
        return None
    try:
        chosen = libraries.choose(kinds, settings.library, settings.options, logs=False)
    except UnavailableError:
        return None
    return chosen if chosen.library else None


def bandwidth(chosen: libraries.Choice, nbytes: int, count: int) -> float | None:
    """Measure messages there and back, one at a time.

    Parameters
    ----------
    chosen : Choice
        From `choice`.

    Returns
    -------
    float or None
        GB/s; None if this fi_pingpong does not run with the library and provider.
    """
    assert chosen.library is not None and chosen.kind is not None
    settings = config.load().paths.ofi
    options = libraries.environment(settings.options, chosen.kind)
    environment = {**programs.with_library(chosen.library.path), **options}
    port = str(programs.free_port())
    command = [PROGRAM, "-p", chosen.kind.name, "-e", "rdm", "-S", str(nbytes), "-I", str(count)]
    command += ["-d", settings.domain] if settings.domain else []
    on_first, on_last = _on_cpus(*sorted(os.sched_getaffinity(0)))
    ends = [*on_last, *command, "-B", port], [*on_first, *command, "-P", port, "127.0.0.1"]
    return programs.figure(*ends, environment, _rate)


def _on_cpus(*cpus: int) -> list[list[str]]:
    """Give what starts a program on the first of these CPUs, and on the last: both ends spin."""
    taskset = shutil.which("taskset")
    return [[taskset, "-c", str(cpu)] if taskset else [] for cpu in (cpus[0], cpus[-1])]


def _rate(output: str) -> float | None:
    columns = programs.last_line(output).split()
    try:
        return float(columns[_RATE_COLUMN]) / 1e3
    except (LookupError, ValueError):
        return None

"""UCX's own benchmark, ucx_perftest, as a floor.

Debian has it in ucx-utils; the wheels of libucx on PyPI contain it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from dask_fabric.bench import programs

SHARED_MEMORY = "posix,sysv,self"  # the transports of fabric+ucx within a host
_PROGRAM = "ucx_perftest"
_WARM_UPS = 4  # messages


def _program() -> str | None:
    """Find the program on the PATH, or else in the wheel."""
    folders = [os.environ.get("PATH", os.defpath)]
    wheel = importlib.util.find_spec("libucx")
    if wheel is not None:
        folders += (f"{folder}/bin" for folder in wheel.submodule_search_locations or ())
    return shutil.which(_PROGRAM, path=os.pathsep.join(folders))


def own_library() -> str | None:
    """Give the UCX that ucx_perftest came with, or is linked to; None without ucx_perftest."""
    program = _program()
    if program is None:
        return None
    # The wheel's program does not find its libraries by itself, or finds another UCX.
    beside = Path(program).resolve().parent.parent / "lib/libucp.so.0"
    if beside.exists():
        return os.path.realpath(beside)
    linked = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    found = re.search(r"libucp\S* => (/\S+)", linked)
    return os.path.realpath(found[1]) if found else None


def bandwidth(
    library: str,
    nbytes: int,
    count: int,
    transports: str | None,
    memory: str = "host",
    window: int = 1,
) -> float | None:
    """Measure tags one way.

    Parameters
    ----------
    library : str
        Path of the libucp to run on.
    transports : str, optional
        For ``UCX_TLS``; by default UCX chooses.
    memory : str
        The memory on both sides: ``host``, or ``cuda``.
    window : int
        How many messages are in flight. The send of a large message ends when it has arrived, so a
        window of 1 corresponds to acknowledging each message.

    Returns
    -------
    float or None
        GB/s; None if this ucx_perftest does not run with the library.
    """
    environment = {
        **programs.with_library(library),
        "UCX_WARN_UNUSED_ENV_VARS": "n",
        **({"UCX_TLS": transports} if transports else {}),
    }
    command = [
        *(_program() or _PROGRAM, "-t", "tag_bw", "-m", memory, "-f", "-w", str(_WARM_UPS)),
        *("-s", str(nbytes), "-n", str(count), "-O", str(window), "-p", str(programs.free_port())),
    ]
    cpus = sorted(os.sched_getaffinity(0))  # both ends spin, and would starve each other on one CPU
    on_first, on_last = (["-c", str(cpu)] for cpu in (cpus[0], cpus[-1]))
    ends = [*command, *on_last], [*command, *on_first, "127.0.0.1"]
    return programs.figure(*ends, environment, _rate)


def _rate(output: str) -> float | None:
    figures = re.findall(r"[\d.]+", programs.last_line(output))
    return float(figures[5]) * 2**20 / 1e9 if len(figures) > 5 else None  # MB/s of 2**20

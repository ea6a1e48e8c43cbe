"""Keeping the CPUs awake during a measurement."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# Ends with its parent.
_LOOP = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
while os.getppid() == int(sys.argv[2]):
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def awake_cpus(wanted: bool = True) -> Iterator[None]:
    """Run an idle-priority busy loop on every CPU for the duration of the block.

    Waking an idle virtual CPU costs 25 us here (a round trip over blocking sockets takes 15 us with
    both CPUs awake, else 69 us). That is the same for all schemes, and nodes set up for low latency
    keep their CPUs awake too. A loop of class SCHED_IDLE runs only if nothing else needs the CPU.
    """
    cpus = sorted(os.sched_getaffinity(0)) if wanted else []
    command = [sys.executable, "-S", "-c", _LOOP]
    children = [subprocess.Popen([*command, str(cpu), str(os.getpid())]) for cpu in cpus]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()

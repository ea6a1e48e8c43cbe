"""A pool without idle memory for each test, and what the tests of memory share."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from dask_fabric.memory import pool

KIB = 1 << 10
MIB = 1 << 20
DEFAULTS = {"max_idle_bytes": 1 << 30, "idle_seconds": 10, "pressure_limit_bytes": 0}


@pytest.fixture(autouse=True)
def pristine_pool(clean_memory):
    pool.configure(**DEFAULTS | {"idle_seconds": 3600})
    yield
    pool.configure(**DEFAULTS)


def address(buffer):
    return np.frombuffer(buffer, "u1").ctypes.data


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def flags_of(address):
    """What the kernel knows of the mapping there: "hg" and "nh" are the advice on huge pages."""
    start = end = 0
    with open("/proc/self/smaps") as file:
        for line in file:
            name, *values = line.split()
            if not name.endswith(":"):
                start, end = (int(part, 16) for part in name.split("-"))
            elif name == "VmFlags:" and start <= address < end:
                return values
    raise AssertionError("no mapping")


def run_script(text):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

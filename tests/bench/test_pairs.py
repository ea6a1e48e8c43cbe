"""Two processes, between which a protocol is measured."""

import subprocess
import sys
import time

import psutil
import pytest

from dask_fabric.bench.pairs import Pair, Protocol, Surroundings


@pytest.fixture(scope="module")
def pair():
    pair = Pair(Protocol("tcp", "tcp"), Surroundings())
    yield pair
    pair.close()


def are_stopped(pair):
    """Whether both processes are, or soon will be: a signal takes a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if {psutil.Process(pid).status() for pid in pair.pids} == {psutil.STATUS_STOPPED}:
            return True
    return False


def test_who_is_not_asked_is_stopped(pair):
    assert are_stopped(pair)
    assert pair.ask("ping", count=10)["quantiles"]["p50"] > 0
    assert are_stopped(pair)
    assert pair.ask("connects", count=2)["seconds"] > 0


MEASURING = """
import sys
from dask_fabric.bench.pairs import Pair, Protocol, Surroundings
print(*Pair(Protocol("tcp", "tcp"), Surroundings()).pids, flush=True)
sys.stdin.read()
"""


def test_nobody_stays_stopped_when_who_measures_is_killed():
    command = [sys.executable, "-c", MEASURING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as measuring:
        pids = [int(pid) for pid in measuring.stdout.readline().split()]
        children = [psutil.Process(pid) for pid in pids]
        measuring.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []

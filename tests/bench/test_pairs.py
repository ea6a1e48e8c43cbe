"""The processes that measure a protocol between them."""

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

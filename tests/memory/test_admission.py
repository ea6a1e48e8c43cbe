"""Whether there is memory for what is about to be received."""

from __future__ import annotations

import os

import psutil
import pytest

from dask_fabric.memory import admission

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_limit():
    yield
    admission.set_limit(0)
    assert admission.statistics() == {"limit_bytes": 0, "under_way_bytes": 0}


def test_without_a_limit_everything_is_admitted():
    assert admission.admit(1 << 40)
    assert admission.admit(1 << 40)
    assert admission.statistics()["under_way_bytes"] == 2 << 40
    admission.received(2 << 40)


def test_above_the_limit_nothing_is_admitted():
    admission.set_limit(psutil.Process().memory_info().rss - 10 * MIB)
    assert not admission.admit(MIB)


def test_what_does_not_fit_beside_others_waits_for_their_end():
    admission.set_limit(psutil.Process().memory_info().rss + 100 * MIB)
    assert admission.admit(60 * MIB)
    assert not admission.admit(60 * MIB)
    assert admission.admit(10 * MIB)
    admission.received(10 * MIB)
    admission.received(60 * MIB)
    assert admission.admit(60 * MIB)
    admission.received(60 * MIB)


def test_one_that_is_larger_than_the_room_is_admitted_alone():
    admission.set_limit(psutil.Process().memory_info().rss + 100 * MIB)
    assert admission.admit(1000 * MIB)
    assert not admission.admit(MIB)
    admission.received(1000 * MIB)


def test_a_forked_child_receives_nothing():
    assert admission.admit(MIB)
    pid = os.fork()
    if pid == 0:
        os._exit(admission.statistics()["under_way_bytes"] != 0)
    assert os.waitpid(pid, 0)[1] == 0
    admission.received(MIB)

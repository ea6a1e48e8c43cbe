"""Whether there is memory for what is about to be received."""

from __future__ import annotations

import asyncio
import os
import time

import dask
import numpy as np
import psutil
import pytest
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

from dask_fabric.memory import admission

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_limit():
    yield
    admission.set_limit(0)
    left = admission.statistics()
    assert (left["limit_bytes"], left["under_way_bytes"]) == (0, 0)


def test_without_a_limit_everything_is_admitted():
    tickets = [admission.admit(1 << 40) for _ in range(2)]
    assert all(tickets)
    assert admission.statistics()["under_way_bytes"] == 2 << 40
    for ticket in tickets:
        admission.received(ticket)


def test_above_the_limit_nothing_is_admitted():
    admission.set_limit(psutil.Process().memory_info().rss - 10 * MIB)
    assert not admission.admit(MIB)


def test_what_does_not_fit_beside_others_waits_for_their_end():
    admission.set_limit(psutil.Process().memory_info().rss + 100 * MIB)
    large = admission.admit(60 * MIB)
    assert large
    assert not admission.admit(60 * MIB)
    small = admission.admit(10 * MIB)
    assert small
    admission.received(small)
    admission.received(large)
    large = admission.admit(60 * MIB)
    assert large
    admission.received(large)


def test_one_that_is_larger_than_the_room_is_admitted_alone():
    admission.set_limit(psutil.Process().memory_info().rss + 100 * MIB)
    ticket = admission.admit(1000 * MIB)
    assert ticket
    assert not admission.admit(MIB)
    admission.received(ticket)


def test_one_that_is_not_complete_stops_others_for_few_seconds():
    """It may never be: a peer may claim much and send nothing."""
    admission.set_limit(psutil.Process().memory_info().rss + 100 * MIB)
    slow = admission.admit(150 * MIB)
    assert not admission.admit(50 * MIB)
    while not (other := admission.admit(50 * MIB)):  # for three seconds
        time.sleep(0.01)
    for ticket in (slow, other):
        admission.received(ticket)


async def test_a_message_waits_again_if_memory_was_free_after_one_that_was_overdue():
    """Those that follow at once do not: a task may need them all to end and free memory."""
    arrived: asyncio.Queue = asyncio.Queue()
    with dask.config.set({"fabric.timeouts.memory": "0.5s"}):
        async with listen("fabric+tcp://127.0.0.1", arrived.put) as listener:
            comm = await connect(listener.contact_address)
            receiver = await arrived.get()
            waits = [-admission.statistics()["wait_count"]]
            for pause_seconds in (0, 0, 1):
                await asyncio.sleep(pause_seconds)
                admission.set_limit(1)
                await comm.write({"x": to_serialize(np.ones(8 * MIB, "u1"))})
                await receiver.read()
                waits.append(admission.statistics()["wait_count"] + waits[0] - sum(waits[1:]))
                admission.set_limit(0)
            comm.abort()
            receiver.abort()
    assert waits[1:] == [1, 0, 1]


def test_a_forked_child_receives_nothing():
    ticket = admission.admit(MIB)
    pid = os.fork()
    if pid == 0:
        os._exit(admission.statistics()["under_way_bytes"] != 0)
    assert os.waitpid(pid, 0)[1] == 0
    admission.received(ticket)

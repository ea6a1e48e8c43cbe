"""Large messages for a process that is near its memory limit."""

from __future__ import annotations

import asyncio
import logging

import dask
import numpy as np
import psutil
import pytest
from distributed import LocalCluster, Worker
from distributed.comm import CommClosedError
from distributed.protocol import to_serialize
from distributed.utils import wait_for
from tests.conftest import LOCAL_CLUSTER
from tests.wire.ends import MESSAGE, record

from dask_fabric.memory import admission

pytestmark = pytest.mark.own
MIB = 1 << 20


@pytest.fixture
def short_memory():
    """This process is above its limit."""
    admission.set_limit(psutil.Process().memory_info().rss - 50 * MIB)
    yield
    admission.set_limit(0)


async def until_it_waits(comm, reading: asyncio.Task) -> None:
    async def poll():
        while not comm.statistics()["waits_for_memory"]:
            assert not reading.done()
            await asyncio.sleep(0.001)

    await wait_for(poll(), 30)


def large(n: int = 0) -> dict:
    # A pandas block or a pickle is no array of a memory file, so it is not mapped.
    return {"n": n, "x": to_serialize(bytes([n]) * (8 * MIB))}


async def test_a_large_message_waits_for_memory(pair, open_pair, short_memory):
    a, b = pair
    await a.write(large(5))
    reading = asyncio.ensure_future(b.read())
    await until_it_waits(b, reading)
    # Small messages of others go on, and a mapped or small one of this process too.
    other, other_peer = await open_pair()
    await other.write({"x": to_serialize(np.ones(1000))})
    assert (await wait_for(other_peer.read(), 30))["x"].sum() == 1000
    assert not reading.done()
    admission.set_limit(0)
    assert (await wait_for(reading, 30))["x"] == large(5)["x"].data
    await a.write("more")
    assert await wait_for(b.read(), 30) == "more"
    assert admission.statistics()["under_way_bytes"] == 0


async def test_after_a_time_it_is_taken_anyway(open_pair, short_memory, caplog):
    with dask.config.set({"fabric.timeouts.memory": "100ms"}):
        a, b = await open_pair()
    with caplog.at_level(logging.WARNING, "dask_fabric"):
        await a.write(large(1))
        await a.write(large(2))
        for n in (1, 2):
            assert (await wait_for(b.read(), 30))["x"] == large(n)["x"].data
    assert b.statistics()["waits_for_memory"] == 1  # the second one does not wait as long again
    assert "is received although memory is short" in caplog.text
    assert "fabric.timeouts.memory" in caplog.text


@pytest.mark.parametrize("end", ["the peer", "this side"])
async def test_the_end_of_a_comm_that_waits(pair, short_memory, end):
    a, b = pair
    await a.write(large())
    reading = asyncio.ensure_future(b.read())
    await until_it_waits(b, reading)
    (a if end == "the peer" else b).abort()
    if end == "the peer":
        admission.set_limit(0)
    with pytest.raises(CommClosedError):
        await wait_for(reading, 30)
    assert admission.statistics()["under_way_bytes"] == 0


async def test_a_peer_that_stops_in_a_message_does_not_hold_up_others(open_pair, caplog):
    """However much memory it has claimed."""
    stopped, waiting = await open_pair()
    a, b = await open_pair()
    admission.set_limit(psutil.Process().memory_info().rss + 200 * MIB)
    try:
        # After the message of Dask's handshake, the first bytes of one of 400 MiB.
        claim = record(MESSAGE, 1, b"header", sizes=[400 * MIB])
        stopped._channel.transport.sock.send(claim)
        reading = asyncio.ensure_future(waiting.read())
        while not admission.statistics()["under_way_bytes"]:
            await asyncio.sleep(0.001)
        writing = asyncio.ensure_future(a.write(large(1)))
        assert (await wait_for(b.read(), 30))["x"] == large(1)["x"].data
        await writing
        assert not reading.done()
    finally:
        admission.set_limit(0)
    stopped.abort()
    with pytest.raises(CommClosedError):
        await reading
    assert "although memory is short" not in caplog.text


async def test_the_limit_is_that_at_which_the_worker_pauses():
    async with LocalCluster(
        protocol="fabric", n_workers=1, processes=False, memory_limit="8 GiB", asynchronous=True,
        **LOCAL_CLUSTER,
    ) as cluster:  # fmt: skip
        (worker,) = cluster.workers.values()
        assert isinstance(worker, Worker)
        fraction = worker.memory_manager.memory_pause_fraction
        assert admission.statistics()["limit_bytes"] == int((8 << 30) * fraction)
    assert admission.statistics()["limit_bytes"] == 0

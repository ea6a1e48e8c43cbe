"""Frames by UCX, when a process dies, stops, or breaks the connection that comms share."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import weakref
from pathlib import Path

import dask
import numpy as np
import pytest
import pytest_asyncio
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.utils import wait_for

from dask_fabric.paths.ucx import core as ucx

from ..conftest import ucx_libraries
from .conftest import PATIENCE_SECONDS, nothing_left, until

pytestmark = pytest.mark.skipif(not ucx_libraries(), reason="no UCX on this host")

# A hundred messages at once.
NO_BOUNDS = dict.fromkeys(("fabric.limits.queued", "fabric.limits.queued-total"), "1 TiB")
DATA_BYTES = 100_000_000
DEATH_PATIENCE_SECONDS = 5


@pytest.fixture(params=["fabric+ucx"])
def address(request):
    return f"{request.param}://127.0.0.1"


@pytest_asyncio.fixture
async def open_comm(address, start_peer):
    """A function that opens one more comm to the same other process, which answers."""
    peer = start_peer("answer", address, listens=True)
    contact = await peer.line()
    async with contextlib.AsyncExitStack() as stack:

        async def open_comm():
            comm = await connect(contact)
            stack.callback(comm.abort)
            return comm

        open_comm.peer = peer
        yield open_comm


async def write_large(comm, nbytes: int = DATA_BYTES) -> None:
    await comm.write({"x": to_serialize(np.ones(nbytes, "u1"))})


async def read(comm):
    return await wait_for(comm.read(), PATIENCE_SECONDS)


def sleeps_of_ucx() -> str:
    for status in Path("/proc/self/task").glob("*/status"):
        lines = status.read_text().splitlines()
        if lines[0].endswith("fabric-ucx"):
            return next(line for line in lines if line.startswith("voluntary"))
    raise LookupError("no such thread")


def count_of(line: str) -> int:
    return int(line.split()[-1])


async def test_an_idle_comm_wakes_nobody(open_comm):
    comm = await open_comm()
    await write_large(comm)
    assert await read(comm) == "read"
    await until(lambda: ucx.statistics()["in_flight_count"] == 0)
    if ucx.statistics()["abandoned_count"]:
        pytest.skip("UCX has still something for the dead peer of another test")
    for _ in range(100):
        await comm.write("small")
        await comm.read()
    before = sleeps_of_ucx()
    for _ in range(1000):
        await comm.write("small")
        await comm.read()
    # Not for messages: it may be busy with what an earlier test has left in UCX.
    assert count_of(sleeps_of_ucx()) - count_of(before) < 250


async def killed_sender(address, start_peer):
    accepted = asyncio.Queue()
    async with listen(address, accepted.put) as listener:
        peer = start_peer(
            "send_hundred", listener.contact_address, message_bytes=DATA_BYTES, config=NO_BOUNDS
        )
        assert await peer.line() == "written"
        comm = await accepted.get()
        for _ in range(5):
            message = await read(comm)
        assert comm.statistics()["fetched_bytes"] == 5 * DATA_BYTES
        assert (message["x"] == 1).all()
        reading = asyncio.ensure_future(comm.read())
        peer.signal(signal.SIGKILL)
        with pytest.raises(CommClosedError):
            while True:
                await wait_for(reading, DEATH_PATIENCE_SECONDS)
                reading = asyncio.ensure_future(comm.read())
        assert comm.closed()
        peer.end()


async def test_the_sender_of_a_hundred_is_killed(address, start_peer):
    async with nothing_left(rss=True):
        await killed_sender(address, start_peer)


async def killed_receiver(address, start_peer):
    peer = start_peer("answer", address, listens=True)
    with dask.config.set(NO_BOUNDS):
        comm = await connect(await peer.line())
    data = np.ones(DATA_BYTES, "u1")
    gone = weakref.ref(data)
    for _ in range(100):
        await comm.write({"x": to_serialize(data)})
    del data
    for _ in range(5):
        assert await read(comm) == "read"
    peer.signal(signal.SIGKILL)
    with pytest.raises(CommClosedError):
        while True:
            await wait_for(comm.read(), DEATH_PATIENCE_SECONDS)
    assert comm.closed()
    await until(lambda: gone() is None)
    peer.end()


@pytest.mark.slow
async def test_the_receiver_of_a_hundred_is_killed(address, start_peer):
    async with nothing_left(rss=True):
        await killed_receiver(address, start_peer)


async def stopped_receivers(address, start_peer, count):
    peers = [start_peer("answer", address, listens=True) for _ in range(count)]
    comms = [await connect(await peer.line()) for peer in peers]
    data = np.ones(DATA_BYTES, "u1")
    gone = weakref.ref(data)
    for comm in comms:
        for _ in range(3):
            await comm.write({"x": to_serialize(data)})
    del data
    await until(lambda: ucx.statistics()["in_flight_count"] == 3 * count)
    for peer in peers:
        peer.signal(signal.SIGSTOP)
        await peer.stopped()
    begin_seconds = time.monotonic()
    for comm in comms:
        comm.abort()
    assert time.monotonic() - begin_seconds < DEATH_PATIENCE_SECONDS
    for peer in peers:
        peer.end()
    await until(lambda: gone() is None)


@pytest.mark.slow
async def test_many_stop_at_once(address, start_peer):
    """UCX does not end its sends to them; the loop must not wait for each of them in turn."""
    async with nothing_left():
        await stopped_receivers(address, start_peer, 8)


async def test_a_peer_that_stops_in_the_middle_goes_on(open_comm):
    comm = await open_comm()
    for _ in range(2):
        await write_large(comm)
    open_comm.peer.signal(signal.SIGSTOP)
    await open_comm.peer.stopped()
    await write_large(comm)
    assert comm.statistics()["unacknowledged_bytes"] > 0
    open_comm.peer.signal(signal.SIGCONT)
    for _ in range(3):
        assert await read(comm) == "read"
    await until(lambda: comm.statistics()["unacknowledged_bytes"] == 0)


async def test_frames_go_by_the_stream_when_their_connection_breaks(open_comm):
    steady, other = await open_comm(), await open_comm()
    for comm in (steady, other):
        await write_large(comm)
        assert await read(comm) == "read"
    assert steady.statistics()["sends_by"] == "ucx"
    open_comm.peer.signal(signal.SIGSTOP)
    await open_comm.peer.stopped()
    for comm in (other, steady, steady):
        await write_large(comm)
    # What `other` has in flight ends only with the connection that it shares with `steady`.
    await until(lambda: ucx.statistics()["in_flight_count"] > 2)
    other.abort()
    open_comm.peer.signal(signal.SIGCONT)
    for _ in range(2):
        assert await read(steady) == "read"
    told = steady.statistics()
    assert told["fallbacks_sent"] > 0
    assert told["sends_by"] == "stream"
    assert told["paths"] == {"host": "ucx"}
    stream_bytes = told["traffic"]["stream"]["bytes_sent"]
    await write_large(steady)
    assert await read(steady) == "read"
    assert steady.statistics()["traffic"]["stream"]["bytes_sent"] > stream_bytes + DATA_BYTES

    later = await open_comm()
    await write_large(later)
    assert await read(later) == "read"
    assert later.statistics()["sends_by"] == "ucx"
    assert later.statistics()["fallbacks_sent"] == 0


async def test_a_peer_whose_queue_is_stuck_gets_frames_by_the_stream(address, start_peer):
    peer = start_peer("answer_with_stuck_queue", address, listens=True)
    contact = await peer.line()
    for _ in range(2):
        comm = await connect(contact)
        assert await peer.line() == "blocked"
        for _ in range(2):
            await write_large(comm)
            assert await read(comm) == "read"
        told = comm.statistics()
        assert (told["paths"], told["sends_by"]) == ({"host": "ucx"}, "stream")
        assert told["fallbacks_sent"] == 1
        comm.abort()
        assert await peer.line() == "CommClosedError"


async def test_an_orderly_close_breaks_nothing(open_comm):
    steady = await open_comm()
    before_count = ucx.statistics()["break_count"]
    for _ in range(20):
        comm = await open_comm()
        await write_large(comm, 10_000_000)
        await comm.close()
    await write_large(steady)
    assert await read(steady) == "read"
    assert steady.statistics()["fallbacks_sent"] == 0
    assert ucx.statistics()["break_count"] == before_count

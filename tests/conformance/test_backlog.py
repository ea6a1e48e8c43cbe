"""A peer that does not read what is sent to it: how much is queued for it, and what others notice.

"Taken" are bytes in the kernel's buffers; frames on offer are not, until they are fetched.
"""

from __future__ import annotations

import asyncio

import dask
import numpy as np
import pytest
from distributed.comm import CommClosedError
from distributed.protocol import to_serialize
from distributed.utils import wait_for

from dask_fabric import config
from dask_fabric.engine import backlog
from dask_fabric.telemetry import refused

pytestmark = pytest.mark.own
MIB = 1 << 20
LIMIT_BYTES = 16 * MIB
SMALL_LIMITS = {"fabric.limits.queued": LIMIT_BYTES, "fabric.limits.queued-total": 1 << 40}


@pytest.fixture(autouse=True)
def limits():
    with dask.config.set(SMALL_LIMITS):
        yield


def messages(count: int = 64) -> list[dict]:
    """Of 2 MiB each: together four times what may be queued and the kernel's buffers take."""
    return [{"n": n, "x": to_serialize(np.full(2 * MIB, n, "u1"))} for n in range(count)]


async def write_all(comm, given) -> None:
    for message in given:
        await comm.write(message)


async def until_it_waits(comm, writing: asyncio.Task) -> None:
    async def poll():
        while not comm.statistics()["waited_writes"]:
            assert not writing.done()
            await asyncio.sleep(0.001)

    await wait_for(poll(), 30)


async def read_all(comm, count: int = 64) -> None:
    for n in range(count):
        message = await wait_for(comm.read(), 30)
        assert message["n"] == n
        assert (message["x"] == n).all()


async def test_a_writer_waits_for_a_peer_that_does_not_read(pair):
    a, b = pair
    writing = asyncio.ensure_future(write_all(a, messages()))
    await until_it_waits(a, writing)
    statistics = a.statistics()
    queued_bytes = statistics["pending_bytes"] + statistics["unacknowledged_bytes"]
    assert abs(queued_bytes - LIMIT_BYTES) <= 3 * MIB
    await read_all(b)
    await wait_for(writing, 30)
    await a.write("more")
    assert await b.read() == "more"


async def test_one_message_may_be_of_any_size(pair):
    a, b = pair
    big = np.arange(4 * LIMIT_BYTES, dtype="u1")
    await wait_for(a.write({"x": to_serialize(big)}), 30)
    assert ((await wait_for(b.read(), 30))["x"] == big).all()
    await wait_for(a.write("more"), 30)
    assert await b.read() == "more"


async def test_both_sides_may_write_first(pair):
    """Each has more to send than may be queued, and reads only when it has sent it."""
    count = 12  # 24 MiB

    async def write_then_read(comm):
        await write_all(comm, messages(count))
        await read_all(comm, count)

    await wait_for(asyncio.gather(*map(write_then_read, pair)), 60)


async def test_peers_that_read_go_on(open_pair):
    """Above the limit of the process, only those wait that are behind themselves."""
    slow, slow_peer = await open_pair()
    good, good_peer = await open_pair()
    with dask.config.set({"fabric.limits.queued-total": 5 * MIB}):
        other, other_peer = await open_pair()
        writing = asyncio.ensure_future(write_all(slow, messages()))
        await until_it_waits(slow, writing)
        assert backlog.total_bytes() > 5 * MIB
        for comm, peer in (good, good_peer), (other, other_peer):
            given = asyncio.ensure_future(write_all(comm, messages()))
            await read_all(peer)
            await wait_for(given, 30)
    # A comm above the limit of the process waits until it is not behind itself.
    also = asyncio.ensure_future(write_all(other, messages(8)))
    await until_it_waits(other, also)
    assert other.statistics()["unacknowledged_bytes"] <= backlog.LEAST_BYTES + 3 * MIB
    await read_all(other_peer, 8)
    await read_all(slow_peer)
    await wait_for(asyncio.gather(also, writing), 30)

    async def poll():
        while backlog.total_bytes():  # until the last acknowledgements are here
            await asyncio.sleep(0.001)

    await wait_for(poll(), 30)


async def test_a_peer_that_never_reads_is_given_up(open_pair):
    before = refused.counts()["stalled comm"]
    with dask.config.set({"fabric.timeouts.stalled": "200ms"}):
        a, b = await open_pair()
    with pytest.raises(CommClosedError, match=r"taken nothing for 0\.2 seconds.*timeouts\.stalled"):
        await wait_for(write_all(a, messages()), 60)
    assert a.closed()
    assert refused.counts()["stalled comm"] == before + 1
    b.abort()
    assert backlog.total_bytes() == 0


@pytest.mark.parametrize("ending", ["the peer", "this side", "a close"])
async def test_a_waiting_writer_learns_of_the_end(pair, ending):
    a, b = pair
    writing = asyncio.ensure_future(write_all(a, messages()))
    await until_it_waits(a, writing)
    if ending == "a close":
        await wait_for(asyncio.gather(a.close(), b.close()), 30)
    else:
        (b if ending == "the peer" else a).abort()
    with pytest.raises(CommClosedError):
        await wait_for(writing, 30)


async def test_a_cancelled_wait_loses_nothing(pair):
    a, b = pair
    writing = asyncio.ensure_future(write_all(a, messages()))
    await until_it_waits(a, writing)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not a.closed()
    count = a.statistics()["messages_sent"] - 1  # Dask's handshake
    rest = asyncio.ensure_future(write_all(a, messages()[count:]))
    await read_all(b)
    await wait_for(rest, 30)


async def test_two_writers_wait_at_a_time(pair):
    a, b = pair
    writing = [asyncio.ensure_future(write_all(a, messages(32))) for _ in range(2)]
    await until_it_waits(a, writing[0])
    got = [(await wait_for(b.read(), 30))["n"] for _ in range(64)]
    assert sorted(got) == sorted([*range(32)] * 2)
    await wait_for(asyncio.gather(*writing), 30)


def test_the_limit_of_the_process_follows_its_memory():
    with dask.config.set({"fabric.limits.queued-total": None}):
        assert config.load().queued_total_bytes_limit == config.host_memory_bytes() // 4

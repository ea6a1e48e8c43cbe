"""The end of a comm: by close, by abort, by the peer, and with a pending read."""

from __future__ import annotations

import asyncio
import os

import dask
import numpy as np
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.utils import wait_for


async def noticed(comm, seconds: float = 5.0) -> None:
    """Wait until *comm* sees its peer's end, without reading."""

    async def poll():
        while not comm.closed():
            await asyncio.sleep(0.001)

    await wait_for(poll(), seconds)


async def test_close_ends_pending_and_later_calls_on_both_sides(pair):
    a, b = pair
    reading = [asyncio.ensure_future(comm.read()) for comm in pair]
    await asyncio.sleep(0)
    await a.close()
    assert a.closed()
    for read in reading:
        with pytest.raises(CommClosedError):
            await wait_for(read, 5)
    for comm in pair:
        with pytest.raises(CommClosedError):
            await comm.read()
        with pytest.raises(CommClosedError):
            await comm.write({})
    await b.close()


async def test_close_twice_and_concurrently(pair):
    a, b = pair
    await asyncio.gather(a.close(), a.close(), b.close())
    await a.close()
    a.abort()
    await b.close()
    assert a.closed() and b.closed()


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_the_peers_end_is_noticed_without_a_read(pair, end):
    a, b = pair
    if end == "close":
        await a.close()
    else:
        a.abort()
    await noticed(b)


@pytest.mark.own
async def test_the_peers_end_is_noticed_behind_what_is_unread(pair):
    a, b = pair
    for _ in range(15):
        await a.write("x" * 10_000)
    await a.close()
    await noticed(b)
    for _ in range(15):
        assert await b.read() == "x" * 10_000
    with pytest.raises(CommClosedError):
        await b.read()


@pytest.mark.own
async def test_what_the_peer_said_before_it_left_is_readable_after_a_failed_write(pair):
    a, b = pair
    await b.write("last words")
    await b.close()
    with pytest.raises(CommClosedError):
        while True:
            await a.write("x" * 100_000)
            await asyncio.sleep(0)
    assert await a.read() == "last words"


async def test_abort_is_immediate_and_idempotent(pair):
    a, _ = pair
    reading = asyncio.ensure_future(a.read())
    await asyncio.sleep(0)
    a.abort()
    assert a.closed()
    a.abort()
    with pytest.raises(CommClosedError):
        await wait_for(reading, 5)


async def test_what_was_written_before_close_arrives(pair):
    a, b = pair
    data = np.arange(1 << 20)
    reading = asyncio.ensure_future(b.read())
    await a.write({"x": to_serialize(data)})
    await a.close()
    np.testing.assert_array_equal((await wait_for(reading, 10))["x"], data)
    with pytest.raises(CommClosedError):
        await b.read()


@pytest.mark.own
async def test_small_messages_before_close_are_readable_after_it(pair):
    a, b = pair
    for n in range(10):
        await a.write(n)
    await a.close()
    await noticed(b)
    assert [await b.read() for _ in range(10)] == list(range(10))
    with pytest.raises(CommClosedError):
        await b.read()


@pytest.mark.own
async def test_close_is_bounded_when_the_peer_never_reads(open_pair):
    with dask.config.set({"fabric.timeouts.close": "200 ms"}):
        a, _ = await open_pair()
    await a.write({"x": to_serialize(np.zeros(64 << 20, "u1"))})
    await wait_for(a.close(), 10)
    assert a.closed()


@pytest.mark.own
async def test_a_cancelled_close_aborts(pair):
    a, _ = pair
    await a.write({"x": to_serialize(np.zeros(64 << 20, "u1"))})
    closing = asyncio.ensure_future(a.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert a.closed()


async def test_descriptors_are_given_back(scheme, listen_args, connect_args):
    handled = asyncio.Queue()

    async def handle(comm):
        await comm.read()
        await comm.close()
        handled.put_nowait(None)

    async def once(address):
        comm = await connect(address, **connect_args)
        await comm.write("x")
        await handled.get()
        await comm.close()

    async with listen(f"{scheme}://127.0.0.1", handle, **listen_args) as listener:
        await once(listener.contact_address)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await once(listener.contact_address)
        assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_peer_closed_in_dasks_handshake(scheme, listen_args, connect_args):
    async def handle(comm):
        await comm.close()

    async with listen(f"{scheme}://127.0.0.1", handle, **listen_args) as listener:
        comm = await connect(listener.contact_address, **connect_args)
        with pytest.raises(CommClosedError):
            await comm.read()
        await comm.close()

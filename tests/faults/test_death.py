"""The other process dies, or stops, in the middle of a large message."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import weakref

import dask
import numpy as np
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.utils import wait_for

from dask_fabric.engine import socket_jobs
from dask_fabric.memory import pool
from dask_fabric.paths.ucx import core as ucx

from .conftest import PATIENCE_SECONDS, nothing_left, until

pytestmark = pytest.mark.clusters

MESSAGE_BYTES = 200_000_000


@pytest.fixture(autouse=True)
def frames_go_by_the_stream():
    with dask.config.set({"fabric.cma.enabled": False, "fabric.shm.enabled": False}):
        yield


@contextlib.asynccontextmanager
async def sender(start_peer, scheme, security, listen_args):
    """The accepting end of a comm to a process that has sent 200 MB, and that process."""
    accepted = asyncio.Queue()
    address = f"{scheme}://127.0.0.1"
    async with listen(address, accepted.put, **listen_args) as listener:
        peer = start_peer("send", listener.contact_address, security, message_bytes=MESSAGE_BYTES)
        assert await peer.line() == "written"
        comm = await accepted.get()
        yield comm, peer
        comm.abort()
        peer.end()


@contextlib.asynccontextmanager
async def receiver(start_peer, scheme, security, connect_args, role):
    """A comm to a process that reads one message."""
    peer = start_peer(
        role, f"{scheme}://127.0.0.1", security, listens=True, message_bytes=MESSAGE_BYTES
    )
    comm = await connect(await peer.line(), **connect_args)
    yield comm, peer
    comm.abort()
    peer.end()


async def write_large(comm) -> weakref.ref:
    data = np.ones(MESSAGE_BYTES, "u1")
    await wait_for(comm.write({"x": to_serialize(data)}), PATIENCE_SECONDS)
    return weakref.ref(data)


async def fails(awaitable) -> None:
    with pytest.raises(CommClosedError):
        await wait_for(awaitable, PATIENCE_SECONDS)


def receiving(comm) -> bool:
    figures = ucx.statistics()
    return (
        socket_jobs.statistics()["job_count"] > 0
        or comm.statistics()["bytes_received"] > 1 << 20
        or figures["posted_count"] + figures["in_flight_count"] > 0
        # libfabric connects at the first read, which a stopped peer keeps waiting.
        or comm.paths.get("host") == "ofi"
    )


async def killed_sender(comm, peer, when: str) -> None:
    if when == "before the read":
        await peer.kill()
    else:
        peer.signal(signal.SIGSTOP)
        await peer.stopped()
    reading = asyncio.ensure_future(comm.read())
    if when != "before the read":
        await until(lambda: receiving(comm))
        await peer.kill()
    await fails(reading)
    assert comm.closed()
    await fails(comm.write("x"))


@pytest.mark.parametrize("when", ["before the read", "during the read"])
async def test_the_sender_is_killed(start_peer, scheme, security, listen_args, when):
    async with nothing_left(), sender(start_peer, scheme, security, listen_args) as pair:
        before_bytes = pool.statistics()["in_use_bytes"]
        await killed_sender(*pair, when)
        # A dead comm may be kept for long, what it received in part may not: only until a thread
        # that is just writing to it returns.
        await until(lambda: pool.statistics()["in_use_bytes"] <= before_bytes)
        del pair


async def killed_receiver(comm, peer) -> None:
    gone = await write_large(comm)
    await peer.stopped()
    reading = asyncio.ensure_future(comm.read())
    await peer.kill()
    await fails(reading)
    assert comm.closed()
    await fails(comm.write("x"))
    await until(lambda: gone() is None)


async def test_the_receiver_is_killed(start_peer, scheme, security, connect_args):
    connected = receiver(start_peer, scheme, security, connect_args, "receive_and_stop")
    async with nothing_left(), connected as pair:
        await killed_receiver(*pair)
        del pair


async def stopped_receiver(comm, peer) -> None:
    peer.signal(signal.SIGSTOP)
    await peer.stopped()
    gone = await write_large(comm)
    left = comm.statistics()
    assert left["pending_bytes"] + left["unacknowledged_bytes"] > 0  # `write` did not wait
    await wait_for(comm.close(), PATIENCE_SECONDS)
    assert comm.closed()
    await until(lambda: gone() is None)
    peer.signal(signal.SIGCONT)
    assert await peer.line() == "CommClosedError"


async def test_the_receiver_stands_still(start_peer, scheme, security, connect_args):
    with dask.config.set({"fabric.timeouts.close": "200ms"}):
        connected = receiver(start_peer, scheme, security, connect_args, "receive")
        async with nothing_left(), connected as pair:
            await stopped_receiver(*pair)
            del pair

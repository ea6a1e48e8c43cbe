"""The process at the other end of a path dies or stops, while frames are on offer."""

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
from tests.conftest import ofi_settings
from tests.faults.conftest import PATIENCE_SECONDS, Peer, start_peer, until

from dask_fabric.memory.arrays import new_array

__all__ = ["start_peer"]

NBYTES = 50_000_000
# What leaves a pair of processes with this path for large frames alone, and the scheme.
WAYS = {
    "cma": ("fabric", {"fabric.shm.enabled": False}),
    "shm": ("fabric", {"fabric.cma.enabled": False}),
    "ucx": ("fabric+ucx", {}),
    "ofi": ("fabric+ofi", {}),
}


@pytest.fixture
def way(path_name):
    if path_name not in WAYS:
        pytest.skip("the toy path is installed in no other process, and lanes lead to other hosts")
    scheme, settings = WAYS[path_name]
    settings = {**settings, "fabric.timeouts.close": "200ms"}
    if path_name == "ofi":
        settings.update(ofi_settings())
    with dask.config.set(settings):
        yield scheme, settings


@contextlib.asynccontextmanager
async def sender(start_peer, way):
    """A comm from a process that has a large frame on offer, and that process."""
    scheme, settings = way
    accepted = asyncio.Queue()
    async with listen(f"{scheme}://127.0.0.1", accepted.put) as listener:
        peer = start_peer("send", listener.contact_address, message_bytes=NBYTES, config=settings)
        assert await peer.line() == "written"
        comm = await accepted.get()
        yield comm, peer
        comm.abort()


@contextlib.asynccontextmanager
async def receiver(start_peer, way):
    """A comm to a process that reads one message."""
    scheme, settings = way
    peer = start_peer(
        "receive", f"{scheme}://127.0.0.1", listens=True, message_bytes=NBYTES, config=settings
    )
    comm = await connect(await peer.line())
    yield comm, peer
    comm.abort()


async def stop(peer: Peer) -> None:
    peer.signal(signal.SIGSTOP)
    await peer.stopped()


async def write(comm) -> weakref.ref:
    data = new_array(NBYTES)
    data[:] = 1
    await wait_for(comm.write({"x": to_serialize(data)}), PATIENCE_SECONDS)
    return weakref.ref(data)


async def whole(comm) -> None:
    message = await wait_for(comm.read(), PATIENCE_SECONDS)
    assert np.array_equal(message["x"], np.ones(NBYTES, "u1"))


async def test_the_sender_dies(start_peer, way, path_name):
    async with sender(start_peer, way) as (comm, peer):
        assert path_name in comm.statistics()["path_order"]["host"]
        await peer.kill()
        with contextlib.suppress(CommClosedError):
            await whole(comm)  # a memory file outlives its process
        with pytest.raises(CommClosedError):
            await wait_for(comm.read(), PATIENCE_SECONDS)
        assert comm.closed()


async def test_the_sender_stops_and_goes_on(start_peer, way):
    async with sender(start_peer, way) as (comm, peer):
        await stop(peer)
        reading = asyncio.ensure_future(whole(comm))
        for _ in range(100):  # the loop goes on
            await asyncio.sleep(0)
        peer.signal(signal.SIGCONT)
        await reading


async def test_the_receiver_dies(start_peer, way):
    async with receiver(start_peer, way) as (comm, peer):
        await stop(peer)
        sent = await write(comm)
        await peer.kill()
        with pytest.raises(CommClosedError):
            await wait_for(comm.read(), PATIENCE_SECONDS)
        await until(lambda: sent() is None)


async def test_the_receiver_stops_for_longer_than_a_close_waits(start_peer, way):
    async with receiver(start_peer, way) as (comm, peer):
        await stop(peer)
        sent = await write(comm)
        assert comm.statistics()["unacknowledged_bytes"] + comm.statistics()["pending_bytes"] > 0
        await wait_for(comm.close(), PATIENCE_SECONDS)
        await until(lambda: sent() is None)
        peer.signal(signal.SIGCONT)
        assert await peer.line() in ("CommClosedError", "a message")

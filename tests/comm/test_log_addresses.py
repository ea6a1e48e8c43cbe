"""Logs name a comm by the addresses that users see, not by the names of its sockets."""

from __future__ import annotations

import asyncio
import contextlib

import dask
import numpy as np
import pytest
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

from dask_fabric.paths.ucx import provider

from ..conftest import ucx_libraries
from ..engine.offering import INLINE, Region, until

DATA_BYTES = 50_000_000


@pytest.fixture(params=[True, False], ids=["unix", "tcp"], autouse=True)
def stream(request):
    with dask.config.set({"fabric.unix-sockets": request.param}):
        yield "unix" if request.param else "tcp"


@contextlib.asynccontextmanager
async def opened():
    """Both ends of a comm with a listener that learns from the client which host was reached."""
    accepted = asyncio.Queue()
    async with listen("fabric://0.0.0.0", accepted.put) as listener:
        near = await connect(f"fabric://127.0.0.1:{listener.get_host_port()[1]}")
        far = await accepted.get()
        try:
            yield near, far
        finally:
            near.abort()
            far.abort()


def ends_of(comm) -> str:
    for address in (comm.local_address, comm.peer_address):
        assert address.startswith("fabric://127.0.0.1:")
    return f"rom {comm.local_address} to {comm.peer_address}"


@pytest.mark.parametrize("server_side", [False, True])
async def test_a_comm_that_is_closed_with_bytes_unsent(server_side, stream, caplog):
    with dask.config.set({"fabric.timeouts.close": "50ms", "fabric.cma.enabled": False}):
        async with opened() as ends:
            comm = ends[server_side]
            assert comm.control_stream == stream
            for _ in range(2):  # the peer takes the first ahead of its reader
                await comm.write({"x": to_serialize(np.ones(DATA_BYTES, "u1"))})
            await comm.close()
            (line,) = (text for text in caplog.messages if "bytes unsent" in text)
            assert ends_of(comm) in line


async def fall_back(comm, peer, region, count: int) -> None:
    """Move memory that cannot be read until the peer has asked for it."""
    await comm.write({"x": to_serialize(region.view)})
    reading = asyncio.ensure_future(peer.read())
    with region.unreadable():
        await until(lambda: peer.statistics()["fallbacks_received"] == count)
    assert (await reading)["x"].nbytes == INLINE


@pytest.mark.parametrize("server_side", [False, True])
async def test_frames_that_cannot_be_fetched(server_side, stream, caplog):
    async with opened() as ends:
        comm, peer = ends[server_side], ends[not server_side]
        if comm.paths["host"] != "cma":
            pytest.skip(f"no cma within this host: {comm.refused_paths}")
        region = Region(INLINE)
        for count in range(1, 5):
            await fall_back(comm, peer, region, count)
        (first, last) = (text for text in caplog.messages if "the path cma" in text)
        assert "cannot be fetched" in first and "from now on" in last
        assert ends_of(comm) in first and ends_of(comm) in last


@pytest.mark.skipif(not ucx_libraries(), reason="no UCX on this host")
async def test_an_address_that_ucx_does_not_take(stream, caplog, monkeypatch):
    """A server finds it out before its comm exists."""
    real = provider._Candidate.open

    def opened_in_vain(*args):
        path = real(*args)
        path.offers = False
        return path

    monkeypatch.setattr(provider._Candidate, "open", opened_in_vain)
    with dask.config.set({"fabric.cma.enabled": False, "fabric.ucx.enabled": True}):
        async with opened() as ends:
            if "cannot use the peer's description of it" not in ends[0].refused_paths["ucx"]:
                pytest.skip(f"no UCX within this host: {ends[0].refused_paths}")
            lines = [text for text in caplog.messages if "UCX of this process" in text]
            assert len(lines) == 2
            assert all(any(ends_of(comm) in line for line in lines) for comm in ends)

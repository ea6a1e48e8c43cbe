"""Frames by libfabric, when a process dies, stops or ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.utils import wait_for

from dask_fabric.paths.ofi import worker as ofi

from ..conftest import OFI_SCHEME, ofi_settings
from .conftest import PATIENCE_SECONDS, nothing_left, until

DATA_BYTES = 20_000_000
DEATH_PATIENCE_SECONDS = 5
ADDRESS = f"{OFI_SCHEME}://127.0.0.1"


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Use libfabric's tcp, here and in the processes that a test starts."""
    settings = ofi_settings()
    for name, value in settings.items():
        variable = name.replace("fabric.", "DASK_FABRIC__").replace(".", "__").upper()
        monkeypatch.setenv(variable, value)
    with dask.config.set(settings):
        yield settings


async def write_large(comm, nbytes: int = DATA_BYTES) -> weakref.ref:
    data = np.ones(nbytes, "u1")
    await comm.write({"x": to_serialize(data)})
    return weakref.ref(data)


async def read(comm):
    return await wait_for(comm.read(), PATIENCE_SECONDS)


async def warm_up(start_peer):
    """Have this process open what it keeps for libfabric."""
    peer = start_peer("answer", ADDRESS, listens=True)
    comm = await connect(await peer.line())
    for _ in range(2):
        await write_large(comm)
        assert await read(comm) == "read"
    comm.abort()
    peer.end()


@contextlib.asynccontextmanager
async def sender(start_peer):
    """A comm from a process that sends a hundred large messages, and that process."""
    accepted = asyncio.Queue()
    async with listen(ADDRESS, accepted.put) as listener:
        peer = start_peer("send_hundred", listener.contact_address, message_bytes=DATA_BYTES)
        comm = await wait_for(accepted.get(), PATIENCE_SECONDS)
        yield comm, peer
        comm.abort()
        peer.end()


async def test_the_sender_of_a_hundred_is_killed(start_peer):
    await warm_up(start_peer)
    async with nothing_left(), sender(start_peer) as (comm, peer):
        await read_all(comm, 5)
        reading = asyncio.ensure_future(read_all(comm, 95))
        peer.signal(signal.SIGKILL)
        with pytest.raises(CommClosedError):
            await wait_for(reading, DEATH_PATIENCE_SECONDS)
        assert comm.closed()


async def test_the_receiver_of_a_hundred_is_killed(start_peer):
    await warm_up(start_peer)
    async with nothing_left():
        peer = start_peer("answer", ADDRESS, listens=True)
        comm = await connect(await peer.line())
        data = np.ones(DATA_BYTES, "u1")
        gone = weakref.ref(data)
        writing = asyncio.ensure_future(write_hundred(comm, data))
        del data
        for _ in range(5):
            assert await read(comm) == "read"
        peer.signal(signal.SIGKILL)
        with pytest.raises(CommClosedError):
            while True:
                await wait_for(comm.read(), DEATH_PATIENCE_SECONDS)
        await asyncio.wait([writing], timeout=PATIENCE_SECONDS)
        assert comm.closed() and writing.exception() is not None
        writing = None
        await until(lambda: gone() is None)
        peer.end()


async def write_hundred(comm, data) -> None:
    for _ in range(100):
        await comm.write({"x": to_serialize(data)})


@pytest.mark.slow
async def test_a_sender_that_stops_in_the_middle_is_given_up_and_goes_on(start_peer):
    """Its frames are requested, and sent on the stream when it goes on."""
    await warm_up(start_peer)
    async with nothing_left(), sender(start_peer) as (comm, peer):
        await read_all(comm, 1)
        peer.signal(signal.SIGSTOP)
        await peer.stopped()
        reading = asyncio.ensure_future(read_all(comm, 99))
        await until(lambda: comm.statistics()["fallbacks_received"] > 0 or reading.done())
        assert not reading.done()
        peer.signal(signal.SIGCONT)
        await reading
        assert comm.statistics()["traffic"]["stream"]["bytes_received"] > DATA_BYTES


async def read_all(comm, count) -> None:
    for _ in range(count):
        assert ((await read(comm))["x"] == 1).all()


async def test_a_receiver_that_stops_keeps_no_memory_of_a_comm_that_is_aborted(start_peer):
    peer = start_peer("answer", ADDRESS, listens=True)
    comm = await connect(await peer.line())
    await write_large(comm)
    assert await read(comm) == "read"
    peer.signal(signal.SIGSTOP)
    await peer.stopped()
    sent = [await write_large(comm) for _ in range(3)]
    assert ofi.statistics()["offered_count"] > 0
    comm.abort()
    await until(lambda: all(one() is None for one in sent))
    await until(lambda: ofi.statistics()["offered_count"] == 0)
    peer.end()


async def test_many_comms_share_a_connection(start_peer):
    peer = start_peer("answer", ADDRESS, listens=True)
    contact = await peer.line()
    comms = [await connect(contact) for _ in range(20)]
    before = ofi.statistics()["peer_count"]
    for _ in range(3):
        for comm in comms:
            await write_large(comm, 1_000_000)
        for comm in comms:
            assert await read(comm) == "read"
    assert ofi.statistics()["peer_count"] <= before
    assert all(comm.statistics()["fallbacks_sent"] == 0 for comm in comms)
    for comm in comms:
        comm.abort()


def sleeps_and_ticks() -> tuple[int, int]:
    """How often libfabric's thread has slept, and its CPU time in ticks."""
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().replace("(", ")").split(")")
        if fields[1] == "fabric-ofi":
            lines = (task / "status").read_text().splitlines()
            sleeps = next(line for line in lines if line.startswith("voluntary"))
            return int(sleeps.split()[1]), sum(map(int, fields[2].split()[11:13]))
    raise LookupError("no such thread")


async def test_an_idle_comm_wakes_nobody(start_peer):
    peer = start_peer("answer", ADDRESS, listens=True)
    comm = await connect(await peer.line())
    await write_large(comm)
    assert await read(comm) == "read"
    await until(lambda: ofi.statistics()["offered_count"] == 0)
    if ofi.statistics()["in_flight_count"]:
        pytest.skip("libfabric has still something for the dead peer of another test")
    before = sleeps_and_ticks()
    for _ in range(1000):
        await comm.write("small")
        await comm.read()
    after = sleeps_and_ticks()
    assert after[0] - before[0] < 5 and after[1] - before[1] <= 1
    comm.abort()


EXITING = """
import asyncio, sys
import numpy as np
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
async def echo(comm):
    await comm.write((await comm.read())["x"].nbytes)
async def main():
    async with listen("fabric+ofi://127.0.0.1", echo) as listener:
        comm = await connect(listener.contact_address)
        await comm.write({"x": to_serialize(np.ones(5_000_000, "u1"))})
        if sys.argv[1] == "read":
            assert await comm.read() == 5_000_000
            await comm.close()
        print("done", flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["read", "unread"])
@pytest.mark.parametrize("provider", ["tcp", "shm"])
def test_a_process_ends(monkeypatch, when, provider):
    """With frames on offer as well; providers leave no files."""
    found = ofi_settings(provider)
    monkeypatch.setenv("DASK_FABRIC__OFI__PROVIDER", provider)
    monkeypatch.setenv("DASK_FABRIC__OFI__LIBRARY", found["fabric.ofi.library"])
    with subprocess.Popen(
        [sys.executable, "-c", EXITING, when], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "done\n"
        assert process.wait(PATIENCE_SECONDS) == 0
    assert not list(Path("/dev/shm").glob(f"*{process.pid}:*"))

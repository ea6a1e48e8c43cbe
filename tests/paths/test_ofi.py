"""The path ofi: what hellos say of it, which pairs it joins, and what is registered."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize

from dask_fabric import config
from dask_fabric.errors import ChannelClosedError
from dask_fabric.jobs import completions
from dask_fabric.memory import pool
from dask_fabric.memory.arrays import new_array
from dask_fabric.paths.ofi import local, worker
from dask_fabric.paths.ofi.endpoint import OFIPath
from dask_fabric.paths.ofi.nonces import Nonce
from dask_fabric.paths.ofi.provider import PROVIDER
from dask_fabric.paths.provider import Description, Pair

from ..conftest import ofi_settings
from ..engine.conftest import new_channel, unix_pair
from ..engine.offering import receive

DESCRIBED = {
    "version": "2.5", "provider": "tcp", "protocol": 1, "protocol_version": 2, "addr_format": 3,
    "vni": 0, "name": b"name", "nonce": bytes(16), "address": 0, "key": 1,
    "connection_nonce": bytes(16), "connection_address": 0, "connection_key": 1,
}  # fmt: skip


def objection(same_host=False, **changed) -> str:
    return PROVIDER.objection(Pair(DESCRIBED, {**DESCRIBED, **changed}, "host", same_host, False))


def test_a_valid_description():
    assert PROVIDER.check(DESCRIBED)


@pytest.mark.parametrize("name", DESCRIBED)
@pytest.mark.parametrize("value", [None, -1, 1 << 64, b"", 1.5, b"x" * 300, True])
def test_an_invalid_description(name, value):
    assert not PROVIDER.check({**DESCRIBED, name: value})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"version": "2.4"}, ""),
        ({"provider": "shm"}, "the same provider"),
        ({"protocol": 2}, "do not understand each other"),
        ({"protocol_version": 1}, "do not understand each other"),
        ({"vni": 7}, "must be in the same one"),
    ],
)
def test_objections(changed, reason):
    told = objection(**changed)
    assert told == reason or (reason and reason in told)


def test_some_providers_need_the_same_version_or_host():
    shm = {**DESCRIBED, "provider": "shm"}
    older = {**shm, "version": "1.17"}
    assert "do not understand" in PROVIDER.objection(Pair(shm, older, "host", True, False))
    assert "one host only" in PROVIDER.objection(Pair(shm, shm, "host", False, False))
    assert PROVIDER.objection(Pair(shm, shm, "host", True, False)) == ""
    unknown = {**DESCRIBED, "provider": "new"}
    assert "not used by" in PROVIDER.objection(Pair(unknown, unknown, "host", True, False))


@pytest.mark.parametrize(("text", "vni"), [("", 0), ("1027", 1027), ("5,9", 5), ("x", 0)])
def test_the_network_that_slurm_gives(monkeypatch, text, vni):
    monkeypatch.setenv("SLINGSHOT_VNIS", text)
    assert local.vni() == vni


async def test_by_default_nothing_is_looked_for_without_a_device():
    settings = config.load().paths.ofi
    assert settings.enabled is None
    found, reason = local.local_ofi(settings, insists=False)
    assert found is None and "set fabric.ofi.provider" in reason


async def echo(comm):
    while True:
        message = await comm.read()
        await comm.write(message["x"].nbytes)
        del message


@pytest.fixture
async def comm():
    with dask.config.set(ofi_settings()):
        async with listen("fabric+ofi://127.0.0.1", echo) as listener:
            comm = await connect(listener.contact_address)
            yield comm
            comm.abort()


async def send(comm, data) -> None:
    await comm.write({"x": to_serialize(data)})
    assert await comm.read() == data.nbytes


async def test_a_slab_of_the_pool_is_registered_once(comm):
    pool.trim()
    data = new_array(5_000_000)
    data[:] = 1
    before = worker.statistics()["registration_count"]
    for end in (5_000_000, 4_000_000, 200_000):
        await send(comm, data[:end])
    assert worker.statistics()["registration_count"] == before + 1
    regions = worker.statistics()["region_count"]
    del data
    pool.trim()  # the slab goes back to the system
    assert worker.statistics()["region_count"] < regions


async def test_an_array_of_the_user_is_registered_while_it_is_on_offer(comm):
    before = worker.statistics()
    await send(comm, np.ones(5_000_000, "u1"))
    after = worker.statistics()
    assert after["registration_count"] == before["registration_count"] + 1
    assert after["region_count"] == before["region_count"]
    assert after["offered_count"] == 0


@pytest.mark.parametrize(
    "wrong", [{"nonce": b"another process!"}, {"nonce": b"nobody has this.", "key": 99}]
)
async def test_a_peer_that_is_not_proven_gets_frames_by_the_stream(monkeypatch, wrong):
    settings = ofi_settings()
    with dask.config.set(settings):
        found, reason = local.local_ofi(config.load().paths.ofi, insists=True)
        assert found, reason
        told = PROVIDER.describe(config.load().paths.ofi, insists=True)
        described = found, Description({**told, **wrong})
        monkeypatch.setattr(PROVIDER, "_described", described)
        async with listen("fabric+ofi://127.0.0.1", echo) as listener:
            comm = await connect(listener.contact_address)
            for _ in range(3):
                await send(comm, np.ones(500_000, "u1"))
            told = comm.statistics()
            assert told["fallbacks_sent"] == 1 and told["sends_by"] == "stream"
            comm.abort()


def test_a_forked_child_cannot_use_it():
    settings = ofi_settings()
    with dask.config.set(settings):
        assert local.local_ofi(config.load().paths.ofi, insists=True)[0]
        child = multiprocessing.get_context("fork").Process(target=_in_child)
        child.start()
        child.join(30)
    assert child.exitcode == 0
    assert worker.is_running()


def _in_child():
    found, reason = local.local_ofi(config.load().paths.ofi, insists=True)
    ok = found is None and "forked" in reason and not worker.is_running()
    os._exit(0 if ok else 1)


def description_of(facts, nonce):
    address, key = nonce.place
    return {
        **facts,
        "connection_nonce": nonce.value,
        "connection_address": address,
        "connection_key": key,
    }


async def test_what_is_read_from_a_peer_that_has_ended_the_connection_is_void():
    """The end of its stream may arrive later than it uses the memory again."""
    with dask.config.set(ofi_settings()):
        found, reason = local.local_ofi(config.load().paths.ofi, insists=True)
    assert found, reason
    ended, living = Nonce(), Nonce()
    sockets = unix_pair(), unix_pair()
    pairs = [(new_channel(near, False), new_channel(far, True)) for near, far in sockets]
    await asyncio.gather(*(channel.open() for pair in pairs for channel in pair))
    (near, far), (ending, _) = pairs
    try:
        theirs = description_of(found.facts, ended)
        near.use(OFIPath(theirs, 65_536, living))
        far.use(OFIPath(theirs, 65_536))
        ending.use(OFIPath(theirs, 65_536, ended))
        near.send(b"", [np.ones(500_000, "u1")])
        assert (await receive(far))[1][0][0] == 1
        ending.abort()
        near.send(b"", [np.ones(500_000, "u1")])
        with pytest.raises(ChannelClosedError, match="while its frames were fetched"):
            await receive(far)
    finally:
        for channel in (*pairs[0], *pairs[1]):
            channel.abort()


async def test_reads_end_though_the_sender_ends_the_connection_in_the_middle():
    """libfabric's tcp never ends reads of memory that is not registered any more."""
    data = np.ones(64_000_000, "u1")
    arrived: asyncio.Queue = asyncio.Queue()
    interrupted_count = 0
    with dask.config.set(ofi_settings()):
        async with listen("fabric+ofi://127.0.0.1", arrived.put) as listener:
            while interrupted_count < 10:
                comm = await connect(listener.contact_address)
                receiver = await arrived.get()
                reading = asyncio.ensure_future(receiver.read())
                await comm.write({"x": to_serialize(data)})
                # A busy machine may not let this process see the middle.
                while worker.statistics()["in_flight_count"] < 2 and not reading.done():
                    await asyncio.sleep(0)
                comm.abort()
                (outcome,) = await asyncio.gather(reading, return_exceptions=True)
                interrupted_count += isinstance(outcome, CommClosedError)
                receiver.abort()
                # At once: the next connection would end them.
                while worker.statistics()["in_flight_count"]:
                    await asyncio.sleep(0.01)


async def abort_while_on_offer(count: int, nbytes: int) -> list[weakref.ref]:
    """Abort comms whose peers have not read their frames; give these."""
    arrived: asyncio.Queue = asyncio.Queue()
    frames = []
    async with listen("fabric+ofi://127.0.0.1", arrived.put) as listener:
        for _ in range(count):
            comm = await connect(listener.contact_address)
            receiver = await arrived.get()
            data = np.ones(nbytes, "u1")
            frames.append(weakref.ref(data))
            await comm.write({"x": to_serialize(data)})
            del data
            comm.abort()
            receiver.abort()
    return frames


async def test_what_is_held_for_peers_has_a_limit():
    """Of what many aborted comms had on offer the newest is held."""
    with dask.config.set({**ofi_settings(), "fabric.limits.queued-total": "25 MB"}):
        frames = await abort_while_on_offer(8, 10_000_000)
    assert completions.statistics()["held_bytes"] <= 25_000_000
    assert [one() is not None for one in frames] == [False] * 6 + [True] * 2
    while completions.statistics()["held_bytes"]:
        await asyncio.sleep(0.01)
    assert frames[-1]() is None


def test_what_is_held_is_freed_after_the_loop_has_closed():
    with dask.config.set(ofi_settings()):
        (frame,) = asyncio.run(abort_while_on_offer(1, 10_000_000))
    while frame() is not None:  # for a second
        time.sleep(0.01)


async def abort_last(address: str, other_comms: list) -> weakref.ref:
    """Abort a comm as the last act of a loop; give the frame that its peer has not read."""
    comm = await connect(address)
    if other_comms:
        other_comms[0] = await connect(address)
    data = np.ones(10_000_000, "u1")
    await comm.write({"x": to_serialize(data)})
    comm.abort()
    return weakref.ref(data)


@pytest.mark.parametrize("other_comms", [[], [None]], ids=["the last comm", "another is open"])
async def test_what_is_held_is_freed_after_a_loop_that_ends_at_once(other_comms):
    arrived: asyncio.Queue = asyncio.Queue()
    with dask.config.set(ofi_settings()):
        async with listen("fabric+ofi://127.0.0.1", arrived.put) as listener:
            last = abort_last(listener.contact_address, other_comms)
            frame = await asyncio.to_thread(asyncio.run, last)
            while frame() is not None:  # for a second
                await asyncio.sleep(0.01)
            while not arrived.empty():
                arrived.get_nowait().abort()
    for comm in other_comms:
        comm.abort()


def test_a_forked_child_holds_nothing():
    with dask.config.set(ofi_settings()):
        asyncio.run(abort_while_on_offer(1, 10_000_000))
    assert completions.statistics()["held_bytes"]
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(completions.statistics()["held_bytes"] != 0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_threads_that_free_at_once_free_each_frame_once():
    with dask.config.set(ofi_settings()):
        frames = asyncio.run(abort_while_on_offer(20, 1_000_000))
    with ThreadPoolExecutor(4) as threads:
        while completions.statistics()["quarantined_count"]:
            for done in [threads.submit(completions.reap) for _ in range(4)]:
                done.result()
    assert not any(one() is not None for one in frames)
    assert completions.statistics()["held_bytes"] == 0


def test_many_nonces_need_few_registrations():
    with dask.config.set(ofi_settings()):
        assert local.local_ofi(config.load().paths.ofi, insists=True)[0]
    before = worker.statistics()["region_count"]
    nonces = [Nonce() for _ in range(1000)]
    assert len({nonce.place for nonce in nonces}) == 1000
    assert worker.statistics()["region_count"] <= before + 5
    after = worker.statistics()["region_count"]
    del nonces
    assert len([Nonce() for _ in range(1000)]) == 1000
    assert worker.statistics()["region_count"] == after

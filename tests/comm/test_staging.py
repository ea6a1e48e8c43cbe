"""Staging: chunks of a hostile peer, limits, memory, and processes without a device.

The behaviour of every scheme is tested in ``tests/conformance/test_device.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import Serialized, to_serialize

from dask_fabric.comm.device import staging_send
from dask_fabric.comm.device.staging_receive import Incoming, to_device
from dask_fabric.comm.device.staging_send import CHUNK, CHUNK_KIND, MARK, MESSAGE, MESSAGE_KIND
from dask_fabric.comm.runtime import settings
from dask_fabric.config import load
from dask_fabric.errors import LimitError, MessageTooLargeError, ProtocolError, UnavailableError
from dask_fabric.memory import device
from dask_fabric.memory.device import StagedFrame
from dask_fabric.paths.ucx import local as ucx_local

from ..conftest import ucx_libraries
from ..device import Array, StandIn, make_array
from .pairs import opened_pair

MEBI = 1 << 20


@pytest.fixture
def gpu():
    with dask.config.set({"fabric.gpu.chunk": "1 MiB"}):  # larger ones stay pinned for ever
        settings()  # applied now: it would be with the first comm
        runtime = StandIn()
        device.install(runtime)
        yield runtime
        device.install(None)


@pytest.fixture
async def pair(gpu):
    """Two ends over TCP, so that what is sent is what a peer reads."""
    async with opened_pair("fabric+tcp") as pair:
        yield pair


# ---- what arrives


def chunk(index, nbytes, offset, memory) -> tuple[bytes, list]:
    head = CHUNK.pack(MARK, CHUNK_KIND, index, nbytes, offset)
    return head, [memoryview(bytearray(memory))]


def message(indexes, *frames, count=None) -> tuple[bytes, list]:
    count = len(indexes) if count is None else count
    head = MESSAGE.pack(MARK, MESSAGE_KIND, count) + struct.pack(f"<{len(indexes)}I", *indexes)
    return head + b"\x80", [memoryview(bytearray(frame)) for frame in frames]


async def receive(*messages, limits=None) -> tuple:
    incoming = Incoming(replace(load(), **(limits or {})))
    for part in messages[:-1]:
        assert await incoming.receive(*part, True) is None
    return await incoming.receive(*messages[-1], True)


async def test_frames_are_put_together_in_their_places():
    header, frames = await receive(
        chunk(1, 5, 0, b"ab"), chunk(1, 5, 2, b"cde"), chunk(3, 2, 0, b"xy"),
        message([1, 2, 3], b"host", b"in it"),
    )  # fmt: skip
    assert header == b"\x80"
    assert [bytes(frame) for frame in frames] == [b"host", b"abcde", b"in it", b"xy"]
    assert [type(frame) for frame in frames] == [memoryview, *[StagedFrame] * 3]


async def test_what_nothing_belongs_to_is_passed():
    assert await receive(message([], b"x")) == (b"\x80", [b"x"])
    _, frames = await receive(message([0], b""))
    assert type(frames[0]) is StagedFrame and frames[0].nbytes == 0


HOSTILE = {
    "header cut after the mark": [(MARK, [])],
    "unknown kind": [(MARK + b"\x03", [])],
    "chunk header cut": [(chunk(0, 2, 0, b"ab")[0][:-1], [memoryview(b"ab")])],
    "chunk header too long": [(chunk(0, 2, 0, b"ab")[0] + b".", [memoryview(b"ab")])],
    "chunk without frame": [(chunk(0, 2, 0, b"")[0], [])],
    "chunk of two frames": [(chunk(0, 2, 0, b"")[0], [memoryview(b"a"), memoryview(b"b")])],
    "empty chunk": [chunk(0, 2, 0, b"")],
    "empty frame in chunks": [chunk(0, 0, 0, b"")],
    "larger than its frame": [chunk(0, 2, 0, b"abc")],
    "beyond the end": [chunk(0, 3, 0, b"ab"), chunk(0, 3, 2, b"cd")],
    "far offset": [chunk(0, 3, 2**64 - 1, b"a")],
    "begins in the middle": [chunk(0, 3, 1, b"ab")],
    "twice": [chunk(0, 4, 0, b"ab"), chunk(0, 4, 0, b"ab")],
    "again": [chunk(0, 2, 0, b"ab"), chunk(0, 2, 0, b"ab")],
    "a gap": [chunk(0, 6, 0, b"ab"), chunk(0, 6, 4, b"ef")],
    "another size": [chunk(0, 6, 0, b"ab"), chunk(0, 7, 2, b"cd")],
    "next before the last is whole": [chunk(0, 4, 0, b"ab"), chunk(1, 4, 0, b"ab")],
    "frames backwards": [chunk(1, 2, 0, b"ab"), chunk(0, 2, 0, b"ab")],
    "one too many": [chunk(0, 2, 0, b"ab"), chunk(0, 2, 2, b"c")],
    "message before its frame is whole": [chunk(0, 4, 0, b"ab"), message([0])],
    "frame that no message has": [chunk(0, 2, 0, b"ab"), message([], b"x")],
    "frame beyond the message": [chunk(5, 2, 0, b"ab"), message([5], b"x")],
    "frame that never came": [message([0])],
    "index beyond the frames": [message([1], b"x")],
    "index twice": [message([0, 0], b"x")],
    "indexes backwards": [message([1, 0], b"x", b"y")],
    "indexes cut": [(MESSAGE.pack(MARK, MESSAGE_KIND, 2) + b"\0\0\0\0", [memoryview(b"x")])],
    "count of indexes": [message([0], b"x", count=2**32 - 1)],
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_violation_is_told(parts):
    with pytest.raises(ProtocolError, match="protocol violation"):
        await receive(*parts)


LARGE = {
    "one frame": ([chunk(0, 2**63, 0, b"ab")], {"message_bytes_limit": 1 << 20}, "message"),
    "sum": (
        [chunk(0, 2, 0, b"ab"), chunk(1, 5000, 0, b"ab")], {"message_bytes_limit": 7000}, "message"
    ),
    "with its message": (
        [chunk(0, 2, 0, b"ab"), message([0], bytes(5000))], {"message_bytes_limit": 6000}, "message"
    ),
    "count": ([chunk(7, 2, 0, b"ab")], {"frame_count_limit": 7}, "frames"),
    "tiny ones": (
        [chunk(n, 1, 0, b"a") for n in range(9)], {"message_bytes_limit": 9000}, "message"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "limits", "key"), LARGE.values(), ids=LARGE.keys())
async def test_claims_above_a_limit_cost_no_memory(gpu, parts, limits, key):
    with pytest.raises(LimitError, match=rf"fabric\.limits\.{key}"):
        await receive(*parts, limits=limits)
    assert gpu.allocation_count < len(parts)


async def test_a_claim_takes_memory_of_the_device_when_a_part_has_arrived(gpu):
    """One byte of a large frame takes none of the device's memory, and nothing gets lost."""
    nbytes, step = 80 * MEBI, MEBI
    content = np.arange(nbytes // 8).view("u1")
    incoming = Incoming(load())
    for offset in range(0, nbytes, step):
        data = content[offset : offset + step]
        assert await incoming.receive(*chunk(0, nbytes, offset, data), True) is None
        if offset == 3 * step:  # less than a sixteenth
            await asyncio.gather(*incoming._copies)
            assert gpu.allocation_count == 0
    _, (frame,) = await incoming.receive(*message([0]), True)
    assert gpu.allocation_count == 1
    assert np.array_equal(frame.get(), content)


async def test_a_violation_ends_the_comm(pair):
    a, b = pair
    a._channel.send(*chunk(0, 4, 2, b"ab"))
    with pytest.raises(CommClosedError, match="out of its order"):
        await b.read()
    assert b.closed()
    with pytest.raises(CommClosedError, match="out of its order"):  # it was sent the reason
        await a.read()
    with pytest.raises(CommClosedError, match="out of its order"):
        await b.write("x")


async def test_a_message_that_ends_in_the_middle_ends_the_comm(pair, gpu):
    a, b = pair
    a._channel.send(*chunk(0, 4, 0, b"ab"))
    await a.close()
    with pytest.raises(CommClosedError):
        await b.read()


async def test_others_may_come_between_chunks_and_their_message(pair, gpu):
    a, b = pair
    a._channel.send(*chunk(0, 4, 0, b"ab"))
    await a.write("hello")
    assert await b.read() == "hello"


# ---- what is sent


async def test_what_the_peer_refuses_is_not_begun(gpu):
    accepted = asyncio.Queue()
    with dask.config.set({"fabric.limits.message": "1 MiB"}):
        listener = await listen("fabric+tcp://127.0.0.1", accepted.put)
    a = await connect(listener.contact_address)
    b = await accepted.get()
    with pytest.raises(MessageTooLargeError, match=r"fabric\.limits\.message"):
        await a.write({"op": "x", "x": to_serialize(gpu.array(np.zeros(MEBI)))})
    await a.write({"x": to_serialize(gpu.array(np.zeros(100_000)))})
    assert (await b.read())["x"].shape == (100_000,)
    for end in (a, b, listener):
        end.stop() if end is listener else end.abort()


async def test_a_peer_that_takes_none_gets_no_device_memory(gpu):
    accepted = asyncio.Queue()
    with dask.config.set({"fabric.gpu.enabled": False}):
        listener = await listen("fabric+tcp://127.0.0.1", accepted.put)
    a = await connect(listener.contact_address)
    b = await accepted.get()
    device.install(gpu)
    array = to_serialize(gpu.array(np.arange(10)))
    with pytest.raises(UnavailableError, match=r"fabric\.gpu\.enabled"):
        await a.write({"op": "x", "x": array}, serializers=["cuda"])
    # In a reply, the error stands where the array was to be.
    await a.write({"status": "OK", "data": {"x": array, "y": 1}}, serializers=["cuda"])
    with pytest.raises(UnavailableError, match=r"fabric\.gpu\.enabled"):
        await b.read()
    # What is passed on is in host memory already, and goes as under tcp.
    b.deserialize = False
    await a.write({"x": Serialized({"serializer": "cuda"}, [StagedFrame.over(b"abc")])})
    assert [bytes(frame) for frame in (await b.read())["x"].frames] == [b"abc"]
    for end in (a, b, listener):
        end.stop() if end is listener else end.abort()


async def test_an_aborted_comm_lets_go_of_what_came(pair, gpu):
    a, b = pair
    for part in (chunk(0, 8 * MEBI, 0, b"ab"), chunk(0, 8 * MEBI, 2, b"ab")):
        a._channel.send(*part)
    await a.write("hello")
    await b.read()
    assert b._incoming._arriving
    b.abort()
    assert not b._incoming._arriving


async def test_an_abort_while_the_last_chunks_are_copied_delivers_or_ends(pair, gpu):
    a, b = pair
    count = b.statistics()["messages_received"] + 3
    await a.write({"x": to_serialize(gpu.array(np.arange(MEBI // 4)))})  # two chunks
    gpu.hold_copies()
    reading = asyncio.ensure_future(b.read())
    while b.statistics()["messages_received"] < count:
        await asyncio.sleep(0)
    b.abort()
    gpu.may_end.set()
    with contextlib.suppress(CommClosedError):
        np.testing.assert_array_equal((await reading)["x"].get(), np.arange(MEBI // 4))


async def test_a_copy_that_cannot_begin_leaves_none_under_way(gpu, monkeypatch):
    """When it fails, no copy may still use memory of either side: others may get it."""
    frames = [StagedFrame.over(bytes([n]) * 100) for n in range(1, 4)]
    ended = []

    def copy_to_device(host_memory, span, offset):
        if host_memory[0] == 3:
            raise RuntimeError("no stream")
        return mock.Mock(wait=lambda: ended.append(host_memory[0]))

    monkeypatch.setattr(gpu, "copy_to_device", copy_to_device)
    with pytest.raises(RuntimeError, match="no stream"):
        await to_device(frames)
    assert ended == [1, 2]


async def test_a_few_bytes_do_not_claim_a_large_frame(pair, gpu):
    a, b = pair
    count = gpu.allocation_count
    for offset in range(0, 8 * MEBI // 16, 1 << 16):
        assert gpu.allocation_count == count
        a._channel.send(*chunk(0, 8 * MEBI, offset, bytes(1 << 16)))
        await a.write("hello")
        await b.read()
    await asyncio.gather(*b._incoming._copies)
    assert gpu.allocation_count == count + 1


async def test_chunks_wait_in_host_memory_for_a_peer_that_reads(pair, gpu):
    a, b = pair
    most_bytes = []

    async def watch():
        while True:
            most_bytes.append(a._channel.pending_bytes + a._channel.in_flight_bytes)
            await asyncio.sleep(0)

    watching = asyncio.ensure_future(watch())
    array = np.arange(4 * MEBI)
    writing = asyncio.ensure_future(a.write({"x": to_serialize(gpu.array(array))}))
    np.testing.assert_array_equal((await b.read())["x"].get(), array)
    await writing
    watching.cancel()
    assert max(most_bytes) < array.nbytes // 2


async def test_peers_that_both_write_first_do_not_wait_for_each_other(pair, gpu, monkeypatch):
    monkeypatch.setattr(staging_send, "PATIENCE_SECONDS", 0.01)
    array = np.arange(4 * MEBI)
    message = {"x": to_serialize(gpu.array(array))}
    await asyncio.gather(*(end.write(message) for end in pair))
    for end in pair:
        np.testing.assert_array_equal((await end.read())["x"].get(), array)


async def test_a_write_that_waits_for_room_ends_with_the_comm(pair, gpu, monkeypatch):
    monkeypatch.setattr(staging_send, "PATIENCE_SECONDS", 1000)
    a, _ = pair
    writing = asyncio.ensure_future(a.write({"x": to_serialize(gpu.array(np.arange(4 * MEBI)))}))
    while a._channel.pending_bytes + a._channel.in_flight_bytes <= 4 * MEBI:
        await asyncio.sleep(0)
    a.abort()
    with pytest.raises(CommClosedError):
        await writing


async def test_a_cancelled_write_ends_the_comm(pair, gpu):
    a, b = pair
    writing = asyncio.ensure_future(a.write({"x": to_serialize(gpu.array(np.arange(4 * MEBI)))}))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert a.closed()
    with pytest.raises(CommClosedError):
        await b.read()


@pytest.mark.skipif(not ucx_libraries(), reason="no UCX on this host")
async def test_a_gpu_without_room_for_a_context_costs_no_connection(gpu, monkeypatch):
    def fail():
        raise UnavailableError("cuDevicePrimaryCtxRetain of the CUDA driver fails with 2")

    accepted = asyncio.Queue()
    with dask.config.set({"fabric.ucx.enabled": True}):
        with monkeypatch.context() as full:
            full.setattr(gpu, "context_setter", fail)
            listener = await listen("fabric://127.0.0.1", accepted.put)
            a = await connect(listener.contact_address)
            b = await accepted.get()
            assert "fails with 2" in a.refused_paths["ucx"]
            await a.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
            np.testing.assert_array_equal((await b.read())["x"].get(), np.arange(MEBI))
        ucx_local._starts._starts.clear()  # as after the time to try again
        # What may pass is no reason for ever.
        c = await connect(listener.contact_address)
        d = await accepted.get()
        assert "fails with 2" not in c.refused_paths.get("ucx", "")
    for end in (a, b, c, d):
        end.abort()
    listener.stop()


# ---- what both sides say of themselves


@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
async def test_a_hello_says_what_memory_there_is_and_that_chunks_are_taken(scheme, gpu):
    accepted = asyncio.Queue()
    listener = await listen(f"{scheme}://127.0.0.1", accepted.put)
    for memory in (("host", "cuda"), ("host",)):
        a = await connect(listener.contact_address)
        b = await accepted.get()
        for comm in (a, b):
            assert comm._channel.peer.memory == memory
            assert comm._channel.peer.features == ("chunks",)
            comm.abort()
        device.install(None)
    with dask.config.set({"fabric.gpu.enabled": False}):
        a = await connect(listener.contact_address)
        b = await accepted.get()
    assert (b._channel.peer.memory, b._channel.peer.features) == (("host",), ())
    a.abort()
    b.abort()
    listener.stop()


# ---- processes without a device

READER = """
import sys
from distributed import Client
from dask_fabric.errors import UnavailableError

with Client(sys.argv[1]) as client:
    try:
        print(client.get_dataset("x").result())
    except UnavailableError as error:
        print("told:", error)
    print(client.submit(int, 3).result())
    assert "cupy" not in sys.modules
"""


@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
def test_a_client_without_device_is_told_what_to_do(scheme, gpu):
    with (
        LocalCluster(
            n_workers=1, processes=False, protocol=scheme, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        x = client.submit(make_array, np.arange(MEBI), key="x")
        assert type(x.result()) is Array
        client.publish_dataset(x=x)
        command = [sys.executable, "-c", READER, cluster.scheduler_address]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told, three = output.stdout.splitlines()
    assert told.startswith("told: the message holds GPU memory")
    assert three == "3"

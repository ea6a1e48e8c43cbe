"""Frames in memory files: nobody sees another's writes, and no memory is used again too early."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import fcntl
import gc
import json
import os
import pickle
import socket
import struct
import subprocess
import sys

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from distributed.comm import connect, listen
from distributed.protocol import to_serialize
from tests.conftest import LOCAL_CLUSTER, unsharing
from tests.memory.conftest import resident_bytes
from tests.paths.conformance.conftest import new_channel
from tests.paths.shm_peer import SETTINGS, new_array, pattern
from tests.programs import hand_over

import dask_fabric
from dask_fabric.memory import arrays, files, pool
from dask_fabric.paths.python_path import PythonPath
from dask_fabric.paths.shm import endpoint, exchange

NBYTES = 4_000_000
PATIENCE_SECONDS = 60


class Remote:
    """A peer in a process of its own."""

    def __init__(self, process, comm) -> None:
        self.process, self.comm = process, comm
        self.address = comm.peer_address

    async def __call__(self, op: str, **arguments):
        await self.comm.write({"op": op, **arguments})
        reply = await asyncio.wait_for(self.comm.read(), PATIENCE_SECONDS)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in reply.items()}

    async def statistics(self) -> dict:
        return await self("statistics")


@pytest.fixture
def shm(clean_memory):
    with dask.config.set(SETTINGS):
        yield


@pytest.fixture
async def peers(shm):
    """Start peers; each has settings of its own."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(prefix: tuple[str, ...] = (), **settings) -> Remote:
            command = [*prefix, sys.executable, "-m", "tests.paths.shm_peer", json.dumps(settings)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(stop, process)
            comm = await connect(process.stdout.readline().strip())
            stack.push_async_callback(comm.close)
            await until(lambda: files.statistics()["client_count"] > 0)
            return Remote(process, comm)

        yield start


def stop(process) -> None:
    process.kill()
    process.communicate()


async def until(condition) -> None:
    async def poll():
        while True:
            outcome = condition()
            if await outcome if asyncio.iscoroutine(outcome) else outcome:
                return
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), PATIENCE_SECONDS)


async def send(peer: Remote, name: str, data: np.ndarray) -> None:
    await peer("keep", name=name, data=to_serialize(data))


def retired_count() -> int:
    """Dead arrays that others still have, of other tests too; those that nobody has are taken."""
    new_array(1 << 20, 0)
    return files.statistics()["retired_count"]


def shm_frames(peer: Remote) -> tuple[int, int]:
    traffic = peer.comm.statistics()["traffic"].get("shm", {})
    return traffic.get("frames_sent", 0), traffic.get("frames_received", 0)


async def until_attached(peer: Remote) -> None:
    """A process is offered frames by shm once it has the sender's file."""
    warm = new_array(1 << 20, 0)

    async def is_used():
        before = shm_frames(peer)[0]
        await send(peer, "warm", warm)
        await peer("drop", name="warm")
        return shm_frames(peer)[0] > before

    await until(is_used)


# ---------------------------------------------------------------- writes


async def test_writes_of_either_side_are_its_own(peers):
    peer = await peers()
    await until_attached(peer)
    data = new_array(NBYTES, 1)
    await send(peer, "x", data)
    assert await peer("look", name="x") == {"values": [1], "counts": [NBYTES], "nbytes": NBYTES}
    data[:] = 2
    assert (await peer("look", name="x"))["values"] == [1]
    await peer("write", name="x", index=5, value=9)
    assert data.min() == data.max() == 2
    assert (await peer("look", name="x"))["values"] == [1, 9]


async def test_what_was_changed_after_it_was_sent_is_sent_anew_by_another_path(peers):
    peer = await peers()
    await until_attached(peer)
    data = new_array(NBYTES, 1)
    sent_before = shm_frames(peer)[0]
    await send(peer, "x", data)
    await send(peer, "y", data)  # unchanged: once more from the file
    assert shm_frames(peer)[0] == sent_before + 2
    data[NBYTES // 2] = 7
    await send(peer, "z", data)
    assert shm_frames(peer)[0] == sent_before + 2
    assert (await peer("look", name="z"))["values"] == [1, 7]
    assert (
        (await peer("look", name="x"))["values"] == (await peer("look", name="y"))["values"] == [1]
    )


async def test_a_part_of_an_array(peers):
    peer = await peers()
    await until_attached(peer)
    data = new_array(NBYTES, 0)
    data[:] = np.arange(NBYTES, dtype="u1")
    before = shm_frames(peer)[0]
    await send(peer, "x", data[1_000_001:3_500_004])
    assert shm_frames(peer)[0] == before + 1
    await peer("write", name="x", index=0, value=0)
    await peer.comm.write({"op": "give", "name": "x"})
    back = (await peer.comm.read())["data"]
    expected = data[1_000_001:3_500_004].copy()
    expected[0] = 0
    assert np.array_equal(back, expected)


# ---------------------------------------------------------------- who lives, and who dies


async def mapped_at_home(owner: Remote, reader: Remote) -> dict:
    """Have a process map its own memory, which another one has."""
    assert (await owner("fetch", name="x", address=reader.address))["path"] == ["shm"]
    seen = await owner("look", name="x")
    await owner("drop", name="x")
    return seen


async def test_a_chain_of_three_processes(peers):
    """The third maps the file of the first, without a copy, and outlives both others."""
    first, second, third = [await peers() for _ in range(3)]
    await first("make", name="x", nbytes=NBYTES, value=3)

    async def mapped(peer, source):
        outcome = await peer("fetch", name="x", address=source.address)
        if outcome["path"] != ["shm"]:
            await peer("drop", name="x")
        return outcome["path"] == ["shm"]

    await until(lambda: mapped(second, first))
    await first("drop", name="x")  # what a reader still has, it can pass on
    await until(lambda: mapped(third, second))
    assert await second("look", name="x") == await third("look", name="x")
    assert (await mapped_at_home(first, second))["values"] == [3]
    await second("drop", name="x")
    first.process.kill()
    second.process.kill()
    first.process.wait()
    assert (await third("look", name="x"))["values"] == [3]


@pytest.mark.netns
@pytest.mark.parametrize("options", [("-p", "-f", "--kill-child"), ("-U", "-r")], ids=str)
async def test_a_process_of_another_pid_or_user_namespace(peers, options):
    """Where `cma` is refused: mapping needs neither an id of the other process nor a permission."""
    peer = await peers(prefix=unsharing(*options))
    assert "cma" in peer.comm.refused_paths
    await until_attached(peer)
    data = new_array(NBYTES, 1)
    before = shm_frames(peer)
    await send(peer, "x", data)
    await peer("make", name="y", nbytes=NBYTES, value=2)

    async def is_mapped():
        await peer.comm.write({"op": "give", "name": "y"})
        assert ((await peer.comm.read())["data"] == 2).all()
        return shm_frames(peer)[1] > before[1]

    await until(is_mapped)
    assert shm_frames(peer)[0] == before[0] + 1
    assert (await peer("look", name="x"))["values"] == [1]


async def test_of_a_process_that_is_gone_arrays_are_passed_on_by_another_path(peers):
    first, second, third = [await peers() for _ in range(3)]
    await first("make", name="x", nbytes=NBYTES, value=3)
    outcome = await second("fetch", name="x", address=first.address)
    while outcome["path"] != ["shm"]:
        outcome = await second("fetch", name="x", address=first.address)
    first.process.kill()
    first.process.wait()

    async def copied():
        outcome = await third("fetch", name="x", address=second.address)
        assert (await third("look", name="x"))["values"] == [3]
        return outcome["path"] == ["cma"]

    await until(copied)


@pytest.mark.slow
async def test_arrays_that_go_around_at_random_are_what_they_must_be():
    await hand_over.run(count=60, nbytes=NBYTES, seed=7, is_quiet=True)


async def test_memory_is_used_again_when_the_last_reader_has_dropped_it(peers):
    peer = await peers()
    await until_attached(peer)
    others = retired_count()
    data = new_array(NBYTES, 1)
    await send(peer, "x", data)
    await peer("write", name="x", index=0, value=1)
    del data
    gc.collect()
    assert retired_count() == others + 1
    for value in range(2, 6):  # each would overwrite what the peer has
        other = new_array(NBYTES, value)
        assert (await peer("look", name="x"))["values"] == [1]
        del other
    assert retired_count() == others + 1
    await peer("drop", name="x")
    reused = files.statistics()["reused_count"]
    keep = [new_array(NBYTES, 0) for _ in range(3)]
    assert files.statistics()["reused_count"] == reused + 1
    del keep


async def test_a_reader_that_dies_gives_its_memory_back(peers):
    peer = await peers()
    await until_attached(peer)
    others = retired_count()
    data = new_array(NBYTES, 1)
    await send(peer, "x", data)
    del data
    gc.collect()
    clients = files.statistics()["client_count"]
    peer.process.kill()
    peer.process.wait()
    await until(lambda: files.statistics()["client_count"] < clients)
    keep = [new_array(NBYTES, 0) for _ in range(3)]
    assert retired_count() == others
    del keep


async def test_arrays_outlive_their_owner(peers):
    peer = await peers()
    await peer("make", name="x", nbytes=NBYTES, value=8)
    got = None

    async def mapped():
        nonlocal got
        before = shm_frames(peer)[1]
        await peer.comm.write({"op": "give", "name": "x"})
        got = (await peer.comm.read())["data"]
        return shm_frames(peer)[1] > before

    await until(mapped)
    peer.process.kill()
    peer.process.wait()
    assert got.min() == got.max() == 8
    got[:] = 1
    assert got.max() == 1


# ---------------------------------------------------------------- forks


async def test_a_child_of_the_owner_keeps_what_it_has(peers):
    """Its parent's memory is not used again before it has ended."""
    peer = await peers()
    await until_attached(peer)
    await peer("make", name="x", nbytes=NBYTES, value=4)
    await peer("fork")
    await peer("write", name="x", index=0, value=200)
    await peer("drop", name="x")
    for value in range(100, 105):
        await peer("make", name="y", nbytes=NBYTES, value=value)
    assert (await peer("child_sees"))["seen"] == {"x": 4}


async def test_a_child_of_a_reader_keeps_what_it_has(peers):
    peer = await peers()
    await until_attached(peer)
    data = new_array(NBYTES, 4)
    await send(peer, "x", data)
    await peer("fork")
    await peer("drop", name="x")
    del data
    gc.collect()
    keep = [new_array(NBYTES, value) for value in range(100, 105)]
    assert (await peer("child_sees"))["seen"] == {"x": 4}
    del keep
    gc.collect()
    await send(peer, "y", new_array(NBYTES, 1))
    await peer("drop", name="y")  # with a mapping that ends, the peer looks after its children

    def is_reused():
        new_array(NBYTES, 0)
        return not files.statistics()["retired_count"]

    await until(is_reused)


# ---------------------------------------------------------------- limits


async def test_what_does_not_fit_in_the_file_lies_elsewhere(peers):
    with dask.config.set({"fabric.shm.max": "6 MB"}):
        peer = await peers()
        await until_attached(peer)
        first, second = new_array(NBYTES, 1), new_array(NBYTES, 2)
        assert files.statistics()["slab_bytes"] <= 6_000_000
        before = shm_frames(peer)[0]
        await send(peer, "x", first)
        await send(peer, "y", second)
        assert shm_frames(peer)[0] == before + 1
        assert (await peer("look", name="y"))["values"] == [2]
        del first, second


async def test_without_descriptors_frames_go_by_another_path(peers):
    """Where the limit of open files is reached, nobody attaches, and all messages arrive."""
    limited = ("prlimit", "--nofile=28:28")
    peer = await peers(limited)
    data = new_array(NBYTES, 5)
    for _ in range(3):
        await send(peer, "x", data)
        assert (await peer("look", name="x"))["values"] == [5]


# ---------------------------------------------------------------- hostile peers


def greeted(message: bytes, fds: list[int]) -> bytes:
    """What the exchange answers; b"" where it closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE_SECONDS)
        sock.connect(f"\0dask-fabric-shm-{exchange.of_process().id:016x}")
        socket.send_fds(sock, [message], fds)
        try:
            data, received, _, _ = socket.recv_fds(sock, 64, 4)
        except ConnectionError:
            return b""
        for fd in received:
            os.close(fd)
        return data


STRANGER = 77


def hello(peer: int = STRANGER) -> bytes:
    return struct.pack("<8sQ", b"dfshm 1\n", peer)


def claims(nbytes: int = 4 << 16, seals: int = 2) -> int:
    fd = os.memfd_create("claims", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    if seals:
        fcntl.fcntl(fd, 1033, seals)
    return fd


def test_a_good_client_is_answered(shm):
    fd = claims()
    assert greeted(hello(STRANGER + 1), [fd]) == b"dfshm 1\n"
    os.close(fd)


@pytest.mark.parametrize(
    ("message", "made"),
    [
        (b"nonsense", claims),
        (hello()[:-1], claims),
        (hello() + b"x", claims),
        (struct.pack("<8sQ", b"dfshm 2\n", STRANGER), claims),
        (hello(), lambda: claims(4096)),
        (hello(), lambda: claims(seals=0)),
        (hello(), lambda: os.open("/dev/zero", os.O_RDONLY)),
        (hello(), lambda: os.open("/proc/self/exe", os.O_RDONLY)),
        (hello(), None),
    ],
)
def test_who_breaks_the_exchange_is_refused(shm, message, made):
    """A table that could shrink would end the process that looks at it (SIGBUS)."""
    fds = [made()] if made else []
    assert greeted(message, fds) == b""
    for fd in fds:
        os.close(fd)
    assert not files.has_client(STRANGER)


def test_descriptors_that_come_with_nothing_else_are_closed(shm):
    exchange.of_process()
    fd = claims()
    for _ in range(20):
        assert greeted(b"", [fd]) == b""  # it has been read, and refused
    assert greeted(hello(STRANGER + 2), [fd]) == b"dfshm 1\n"
    status = os.fstat(fd)
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    assert sum(os.path.exists(one) and os.path.samestat(os.stat(one), status) for one in links) == 1
    os.close(fd)


def place_of_new(nbytes: int, before: list[tuple]) -> tuple[int, int]:
    """Slab and generation of what was made since: others hold slabs, too."""
    return next(
        (number, one[0])
        for number, (one, earlier) in enumerate(zip(slab_records(), before, strict=True))
        if one != earlier and one[3] >= nbytes
    )


def slab_records() -> list[tuple]:
    """Every record of this process's table of slabs: its generation is the first field."""
    memory, table = files.descriptors()
    try:
        return list(struct.iter_unpack("<IIQQQ", os.pread(table, 32 << 16, 0)))
    finally:
        os.close(memory)
        os.close(table)


async def test_places_that_make_no_sense_are_not_mapped(shm):
    """Stale, beyond the slab, beyond the table: only the place itself is mapped."""
    own = exchange.of_process()
    assert own.attach(own.id) == ""
    await until(lambda: files.has_origin(own.id))
    files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=1 << 30)
    before = slab_records()
    data = new_array(NBYTES, 1)
    slab, generation = place_of_new(NBYTES, before)
    assert files.try_place(own.id, slab, generation, 0, NBYTES) == 0
    for place in (
        (0, generation, 0, NBYTES),
        (slab, generation + 1, 0, NBYTES),
        (1 << 16, generation, 0, NBYTES),
        ((1 << 32) - 1, generation, 0, NBYTES),
        (slab, generation, (1 << 64) - 1, NBYTES),
        (slab, generation, NBYTES, NBYTES),
        (slab, generation, 0, 1 << 63),
        (slab, generation, 1 << 50, 1),
    ):
        assert files.try_place(own.id, *place) in (2, 3), place
    assert files.try_place(own.id + 1, slab, generation, 0, NBYTES) == 1  # nobody is known there
    assert files.statistics()["mapping_count"] == 0
    del data


async def test_an_array_larger_than_the_memory_of_the_host_can_be_mapped(shm):
    """Its pages take memory as they are written; one that was not written takes none."""
    own = exchange.of_process()
    assert own.attach(own.id) == ""
    await until(lambda: files.has_origin(own.id))
    nbytes = psutil.virtual_memory().total + psutil.swap_memory().total + (1 << 30)
    files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=2 * nbytes)
    before = slab_records()
    data = arrays.new_array(nbytes)
    slab, generation = place_of_new(nbytes, before)
    assert files.try_place(own.id, slab, generation, 0, nbytes) == 0
    assert files.try_place(own.id, slab, generation, 5 << 19, nbytes - (5 << 19)) == 0
    del data
    pool.trim()


class Elsewhere(PythonPath):
    """Says that all frames lie in the file of a process that nobody knows."""

    def describe_frame(self, memory):
        return struct.pack("<QIIQ", STRANGER, 1, 1, 0)


async def test_frames_in_a_file_that_never_comes_are_requested(monkeypatch):
    monkeypatch.setattr(endpoint, "PATIENCE_SECONDS", 0.01)
    near, far = socket.socketpair()
    near, far = new_channel(near, False), new_channel(far, True)
    await asyncio.gather(near.open(), far.open())
    wanted = []
    far.use(endpoint.SHMPath(STRANGER, wanted.append, 65_536))
    near.use(Elsewhere(asyncio.get_running_loop(), endpoint.NAME, endpoint.NUMBER, 24))
    sent = np.arange(100_000, dtype="u1")
    near.send(b"header", [sent])
    header, (frame,) = await asyncio.wait_for(far.receive(), PATIENCE_SECONDS)
    assert bytes(header) == b"header" and frame == memoryview(sent)
    assert wanted == [STRANGER]
    assert near.statistics()["fallbacks_sent"] == 1
    for channel in (near, far):
        channel.abort()


# ---------------------------------------------------------------- results of tasks


@pytest.fixture
def shareable(shm):
    """Run functions in a context in which NumPy's arrays lie in the memory file."""
    exchange.of_process()
    files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=1 << 30)
    context = contextvars.copy_context()
    context.run(arrays.share_results)
    return context.run


def in_file(array: np.ndarray) -> bool:
    return files.holds(array.ctypes.data)


def test_large_results_lie_in_the_file_and_small_ones_do_not(shareable):
    large, small = (shareable(np.ones, nbytes, "u1") for nbytes in (NBYTES, 1000))
    outside = np.ones(NBYTES, "u1")
    assert [in_file(one) for one in (large, small, outside)] == [True, False, False]
    assert large.flags.owndata and large.sum() == outside.sum() == NBYTES and small.sum() == 1000
    in_use = pool.statistics()["in_use_bytes"]
    del large
    gc.collect()
    assert pool.statistics()["in_use_bytes"] == in_use - NBYTES


@pytest.mark.parametrize("nbytes", [1 << 20, NBYTES, 8 << 20, (8 << 20) - 1])
def test_results_begin_at_different_places_of_their_pages(shareable, nbytes):
    """Arrays at the same place slow each other down. Each lies in its own slab all the same."""
    made = [shareable(np.full, nbytes, number, "u1") for number in range(20)]
    places = [array.ctypes.data % 4096 for array in made]
    assert len(set(places[:15])) == 15 and 0 not in places
    assert all(place % 64 == 0 for place in places)
    for number, array in enumerate(made):
        assert in_file(array) and in_file(array[-1:]) and array.min() == array.max() == number
    del made, array
    gc.collect()
    assert files.statistics()["retired_count"] == 0


@pytest.mark.resident
def test_zeroed_memory_is_ordinary_and_takes_none_until_it_is_used(shareable):
    before = resident_bytes()
    zeros = shareable(np.zeros, 1 << 30, "u1")  # no freed part of the heap is as large
    assert not in_file(zeros) and resident_bytes() - before < 16 << 20
    assert zeros[:: 1 << 12].max() == 0


# ---------------------------------------------------------------- huge pages


def huge_bytes() -> int:
    """How many bytes of memory files this process has mapped in huge pages."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if "ShmemPmdMapped:" in line)


@pytest.fixture
def huge_pages():
    """Skips where the kernel makes none for memory files."""
    with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled") as file:
        is_denied = "[deny]" in file.read()
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if is_denied or release < (6, 1):
        pytest.skip("this kernel makes no huge pages for memory files")
    pool.trim()


def test_results_lie_in_huge_pages(shareable, huge_pages):
    def made() -> int:
        pool.trim()
        before = huge_bytes()
        data = shareable(np.ones, 9 << 20, "u1")
        assert in_file(data) and data.sum() == 9 << 20
        return huge_bytes() - before

    # The kernel may have none at the moment.
    assert any(made() == 8 << 20 for _ in range(20))


async def test_copied_frames_lie_in_huge_pages(peers, huge_pages):
    peer = await peers()
    await peer("paint", name="x", nbytes=9 << 20, seed=1, in_file=False)

    async def made() -> bool:
        pool.trim()
        before = huge_bytes()
        await peer.comm.write({"op": "give", "name": "x"})
        data = (await peer.comm.read())["data"]
        assert in_file(data) and np.array_equal(data, pattern(1, 9 << 20))
        return huge_bytes() - before == 8 << 20

    await until(made)
    assert peer.comm.statistics()["traffic"]["cma"]["frames_received"] > 0


async def test_huge_pages_of_a_peer_are_mapped_as_such(peers, huge_pages):
    """One entry of the page table for each, where there were 512."""
    peer = await peers()
    await until_attached(peer)

    async def made() -> bool:
        await send(peer, "x", pattern(1, 9 << 20))  # it copies that into its memory file
        before = huge_bytes(), shm_frames(peer)[1]
        await peer.comm.write({"op": "give", "name": "x"})
        data = (await peer.comm.read())["data"]
        assert np.array_equal(data, pattern(1, 9 << 20))
        assert shm_frames(peer)[1] == before[1] + 1
        return huge_bytes() - before[0] == 8 << 20

    await until(made)


WITHOUT_PAGE_SCAN = (sys.executable, "-m", "tests.paths.without_page_scan")


@pytest.mark.parametrize(("prefix", "expected"), [((), 8 << 20), (WITHOUT_PAGE_SCAN, 0)])
async def test_an_array_that_was_read_is_passed_on(peers, shareable, huge_pages, prefix, expected):
    """Without PAGEMAP_SCAN, huge pages of files may look as if they were changed."""
    peer = await peers(prefix)
    await until_attached(peer)

    async def made() -> bool:
        data = shareable(np.ones, 9 << 20, "u1")
        assert in_file(data) and data.sum() == 9 << 20
        has_huge_pages = huge_bytes() >= 8 << 20
        await send(peer, "x", data)
        before = (await peer("usage"))["huge_bytes"]
        assert (await peer("look", name="x"))["values"] == [1]
        found = (await peer("usage"))["huge_bytes"] - before
        received = shm_frames(peer)[1]
        await peer.comm.write({"op": "give", "name": "x"})
        assert ((await peer.comm.read())["data"] == 1).all()
        assert shm_frames(peer)[1] == received + 1
        await peer("drop", name="x")
        assert found in (0, expected)
        return has_huge_pages and found == expected

    await until(made)


async def test_frames_of_the_stream_lie_in_huge_pages(shm, huge_pages):
    nbytes = 32 << 20
    content = pattern(1, nbytes)
    settings = {"fabric.cma.enabled": False, "fabric.ucx.enabled": False}
    accepted: asyncio.Queue = asyncio.Queue()

    async def made() -> bool:
        pool.trim()
        before = huge_bytes()
        await near.write({"x": to_serialize(content)})
        data = (await far.read())["x"]
        assert in_file(data) and np.array_equal(data, content)
        return huge_bytes() - before >= nbytes // 2

    with dask.config.set(settings):
        async with listen("fabric://127.0.0.1", accepted.put) as listener:
            near = await connect(listener.contact_address)
            far = await accepted.get()
            await until(made)
            await near.close()
            await far.close()


def test_results_can_be_resized_copied_and_pickled(shareable):
    data = shareable(np.arange, 1_000_000)
    copied = shareable(pickle.loads, pickle.dumps(data))
    assert np.array_equal(data, copied)
    data.resize(1_000_001, refcheck=False)
    assert data[999_999] == 999_999 and data[-1] == 0
    assert shareable(lambda: (copied * 2)[::-1].sum()) == 999_999 * 1_000_000
    objects = shareable(np.empty, 500_000, object)
    assert objects[0] is None


def test_results_beyond_the_limit_lie_elsewhere(shareable):
    pool.trim(0)
    used = files.statistics()["slab_bytes"]
    files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=used + NBYTES + (1 << 20))
    made = [shareable(np.ones, NBYTES, "u1") for _ in range(3)]
    assert not all(map(in_file, made))
    assert all(one.sum() == NBYTES for one in made)


def test_a_worker_shares_what_its_tasks_make():
    def make():
        return np.ones(NBYTES)

    def figures(dask_worker):
        from dask_fabric import statistics

        return statistics()["shm"]

    settings = {"fabric.shm.enabled": True, "fabric.shm.results": True}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            protocol="fabric",
            memory_limit="2 GB",
            **LOCAL_CLUSTER,
        ) as own,
        Client(own) as client,
    ):
        one, other = client.scheduler_info()["workers"]
        for _ in range(5):  # the first may find that nobody is attached yet
            made = client.submit(make, workers=[one], pure=False)
            assert client.submit(np.sum, made, workers=[other], pure=False).result() == NBYTES
            assert made.result().sum() == NBYTES
        found = client.run(figures)[one]
        assert found["frozen_count"] > 0
        assert found["most_bytes"] == 10**9  # half of the worker's limit


def test_a_scheduler_passes_on_what_it_has_received():
    """It does not deserialize: the frames lie in its own file, and workers map them."""

    def mapped_bytes():
        return dask_fabric.statistics()["shm"]["mapped_bytes"]

    with (
        dask.config.set({"fabric.shm.enabled": True}),
        LocalCluster(n_workers=2, threads_per_worker=1, protocol="fabric", **LOCAL_CLUSTER) as own,
        Client(own) as client,
    ):
        data = np.ones(NBYTES, "u1")  # of a program: not in a file
        for _ in range(20):  # the first may find that nobody is attached yet
            scattered = client.scatter(data, broadcast=True, direct=False, hash=False)
            mapped = client.run(mapped_bytes).values()
            if all(nbytes >= NBYTES for nbytes in mapped):
                break
            del scattered
        assert all(nbytes >= NBYTES for nbytes in mapped)


LISTENS = """
import asyncio
import dask
from dask_fabric.memory import arrays, files
from distributed.comm import listen

async def main():
    with dask.config.set({"fabric.shm.enabled": True}):
        async with listen("%s://127.0.0.1", None):
            print(files.holds(arrays.new_array(4_000_000).ctypes.data))

asyncio.run(main())
"""


@pytest.mark.parametrize(("scheme", "expected"), [("fabric", True), ("fabric+tcp", False)])
def test_who_listens_makes_arrays_that_its_first_client_can_map(scheme, expected):
    done = subprocess.run(
        [sys.executable, "-c", LISTENS % scheme], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected), done.stderr

"""Memory files where processes die, descriptors run out, and the kernel refuses."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tests.paths.conformance.conftest import new_channel
from tests.paths.shm_peer import new_array
from tests.paths.test_shm import (
    NBYTES,
    PATIENCE_SECONDS,
    Elsewhere,
    in_file,
    peers,
    send,
    shareable,
    shm,
    until,
    until_attached,
)

from dask_fabric.errors import UnavailableError
from dask_fabric.memory import files, pool, sealed
from dask_fabric.paths.shm import endpoint, exchange

__all__ = ["peers", "shareable", "shm"]

LARGE_BYTES = 100_000_000


DESCRIPTORS = """
import os

def take_descriptors():
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return held
"""


def run(program: str) -> str:
    command = [sys.executable, "-c", DESCRIPTORS + textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


def memory_files(pid: int) -> dict[int, int]:
    """How many bytes each memory file has that a process has open, by its inode."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "memfd:dask-fabric" in os.readlink(link):
                status = link.stat()
                found[status.st_ino] = status.st_blocks * 512
        except OSError:  # it was closed meanwhile
            continue
    return found


def file_sizes(pid: int, without: Iterable[int] = ()) -> list[int]:
    """How many bytes each of these files has but for some inodes, the largest first."""
    return sorted(
        (nbytes for inode, nbytes in memory_files(pid).items() if inode not in without),
        reverse=True,
    )


# ---------------------------------------------------------------- who dies


async def owner_and_reader(peers):
    """Two processes; one has a large array, and has given the other a small one.

    Also gives what measures the memory files that the reader has open, but for that of this
    process: earlier tests may have left something in it.
    """
    sizes = functools.partial(file_sizes, without=tuple(memory_files(os.getpid())))
    owner, reader = await peers(), await peers()

    async def is_mapped():
        await reader("fetch", name="x", address=owner.address)
        return (await reader.statistics())["mapped_bytes"] > 0

    await owner("make", name="x", nbytes=NBYTES, value=5)
    await until(is_mapped)
    await owner("make", name="large", nbytes=LARGE_BYTES, value=1)
    assert sizes(reader.process.pid)[0] > LARGE_BYTES
    return owner, reader, sizes


async def test_of_a_dead_owner_only_what_is_mapped_takes_memory(peers):
    owner, reader, sizes = await owner_and_reader(peers)
    owner.process.kill()
    await until(lambda: sizes(reader.process.pid)[0] < 2 * NBYTES)
    assert await reader("look", name="x") == {"values": [5], "counts": [NBYTES], "nbytes": NBYTES}
    await reader("drop", name="x")

    async def is_forgotten():
        return max(sizes(reader.process.pid), default=0) < NBYTES

    await until(is_forgotten)


async def test_a_forked_child_that_has_ended_keeps_nothing(peers):
    owner, reader, sizes = await owner_and_reader(peers)
    await reader("fork")
    await reader("child_sees")
    await reader("drop", name="x")
    owner.process.kill()

    async def is_forgotten():
        await reader("make", name="y", nbytes=NBYTES, value=0)  # looks for children that ended
        await reader("drop", name="y")
        return sizes(reader.process.pid)[0] < LARGE_BYTES

    await until(is_forgotten)


async def test_a_dead_owner_s_forked_child_keeps_its_memory(peers):
    owner, reader, sizes = await owner_and_reader(peers)
    child = (await owner("fork", outlives=True))["pid"]
    owner.process.kill()
    try:
        await until(lambda: owner.process.poll() is not None)
        assert (await reader("look", name="x"))["values"] == [5]
        assert sizes(reader.process.pid)[0] > LARGE_BYTES
    finally:
        os.kill(child, signal.SIGKILL)


async def test_of_a_dead_array_only_what_was_offered_takes_memory(peers):
    peer = await peers()
    await until_attached(peer)
    data = new_array(LARGE_BYTES, 3)
    await send(peer, "x", data[50_000_000 : 50_000_000 + NBYTES])
    assert (await peer.statistics())["mapped_bytes"] > 0
    before = max(file_sizes(os.getpid()))
    del data
    await until(lambda: max(file_sizes(os.getpid())) < before - LARGE_BYTES + 3 * NBYTES)
    assert (await peer("look", name="x"))["values"] == [3]


async def test_only_the_first_frame_waits_for_a_process_that_does_not_answer(monkeypatch):
    stranger = 2**61 + 1
    near, far = socket.socketpair()
    near, far = new_channel(near, False), new_channel(far, True)
    await asyncio.gather(near.open(), far.open())
    far.use(endpoint.SHMPath(stranger, lambda peer: "", 65_536))

    class OfStranger(Elsewhere):
        def describe_frame(self, memory):
            return struct.pack("<QIIQ", stranger, 1, 1, 0)

    near.use(OfStranger(asyncio.get_running_loop(), endpoint.NAME, endpoint.NUMBER, 24))
    sent = np.arange(100_000, dtype="u1")
    for patience_seconds in (0.01, 1e6):
        monkeypatch.setattr(endpoint, "PATIENCE_SECONDS", patience_seconds)
        near.send(b"", [sent])
        _, (frame,) = await asyncio.wait_for(far.receive(), PATIENCE_SECONDS)
        assert frame == memoryview(sent)
    for channel in (near, far):
        channel.abort()


# ---------------------------------------------------------------- forks


def test_a_fork_without_a_free_descriptor_keeps_the_arrays_apart():
    program = """
        import gc, os, resource
        from dask_fabric.memory import arrays, files
        files.open_file_of_process()
        files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=1 << 30)
        data = arrays.new_array(4_000_000)
        data[:] = 7
        go, gone = os.pipe()
        mine, its = os.pipe()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = take_descriptors()
        for count in range(2):  # the second one finds no spare pipe
            pid = os.fork()
            if pid == 0:
                os.read(go, 1)
                os.write(its, bytes([data.min(), data.max()]))
                os._exit(0)
        for fd in held:
            os.close(fd)
        del data
        gc.collect()
        for value in range(50, 60):
            other = arrays.new_array(4_000_000)
            other[:] = value
            del other
        os.write(gone, b"gg")
        os.wait(), os.wait()
        print(list(os.read(mine, 4)))
    """
    assert run(program) == "[7, 7, 7, 7]\n"


def test_a_forked_child_uses_idle_memory_of_its_parent():
    program = """
        import os, struct
        from dask_fabric.memory import arrays, files
        from dask_fabric.wire.message_reader import MessageReader
        files.open_file_of_process()
        files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=1 << 30)
        keep = [arrays.new_array(8_000_000) for _ in range(40)]
        del keep
        pid = os.fork()
        if pid == 0:
            record = struct.pack("<BBHIQQ", 1, 0, 0, 1, 0, 0)
            record += struct.pack("<QBBHI", 8_000_000, 0, 0, 0, 0)
            readers = [MessageReader(1 << 24, 1 << 34, 100) for _ in range(30)]
            for reader in readers:  # the first bytes of large frames: they take small pages
                reader.open()
                reader.receive_data(record + b"x" * 100)
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
    """
    assert run(program) == "0\n"


# ---------------------------------------------------------------- what the kernel refuses


def test_without_descriptors_clients_of_the_exchange_wait():
    program = """
        import logging, os, resource, socket, time
        from dask_fabric.memory import files
        from dask_fabric.paths.shm import exchange

        class Lines(logging.Handler):
            count = 0

            def emit(self, record):
                self.count += 1

        lines = Lines()
        logging.getLogger("dask_fabric").addHandler(lines)
        own = exchange.of_process()
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(30)
        claims, theirs = files.new_claims()
        held = take_descriptors()
        client.connect(exchange._NAME.format(own.id))
        socket.send_fds(client, [exchange._HELLO.pack(exchange._MAGIC, 1)], [theirs])
        while not lines.count:
            time.sleep(0.01)
        for fd in held:
            os.close(fd)
        data, fds, _, _ = socket.recv_fds(client, 64, 2)
        print(len(fds), lines.count)
    """
    assert run(program) == "2 1\n"


@pytest.mark.parametrize(("setting", "refused"), [("0", False), ("1", False), ("2", True)])
def test_where_the_kernel_promises_no_memory_there_are_no_files(tree, setting, refused):
    tree.write("proc/sys/vm/overcommit_memory", setting)
    if refused:
        with pytest.raises(UnavailableError, match=r"vm\.overcommit_memory is 2"):
            sealed.check_overcommit(tree.root)
    else:
        sealed.check_overcommit(tree.root)


def test_the_limit_of_mappings(tree):
    assert sealed.map_count(65530, tree.root) == 65530
    tree.write("proc/sys/vm/max_map_count", 262144)
    assert sealed.map_count(65530, tree.root) == 262144


@pytest.mark.resident
def test_a_process_keeps_half_of_its_mappings_for_others():
    """What lies beyond is ordinary memory; the process goes on, and can read its own maps."""
    program = """
        import numpy as np
        from dask_fabric.memory import arrays, files, sealed
        count = sealed.map_count(65530)
        files.open_file_of_process()
        files.configure(is_enabled=True, threshold_bytes=4096, most_bytes=1 << 36)
        arrays.share_results()
        kept = [np.empty(65536, "u1") for _ in range(count // 2 + 100)]
        in_file = sum(files.holds(one.ctypes.data) for one in kept)
        with open("/proc/self/maps") as maps:
            print(count // 2 - 100 < in_file <= count // 2, sum(1 for _ in maps) < count)
    """
    if sealed.map_count(65530) > 100_000:
        pytest.skip("this host allows very many mappings")
    assert run(program) == "True True\n"


def test_a_program_that_is_started_meanwhile_gets_no_descriptor_of_a_memory_file():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        socket.send_fds(near, [b"x"], [near.fileno()])
        _, (fd,) = exchange._received(far, 1)
        assert not os.get_inheritable(fd)
        os.close(fd)


# ---------------------------------------------------------------- the handler of NumPy


def test_text_is_read_into_arrays_of_the_file():
    """NumPy reallocates without the GIL there."""
    program = """
        import numpy as np
        from dask_fabric.memory import arrays, files
        files.open_file_of_process()
        files.configure(is_enabled=True, threshold_bytes=65536, most_bytes=1 << 30)
        arrays.share_results()
        print(np.fromstring(" ".join(["1.5"] * 10_000), dtype="g", sep=" ").sum())
    """
    assert run(program) == "15000.0\n"


def test_ordinary_memory_gives_way_when_the_file_has_room_again(shareable):
    used = files.statistics()["slab_bytes"]
    files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=used)
    outside = [shareable(np.ones, NBYTES, "u1") for _ in range(3)]
    assert not any(map(in_file, outside))
    outside = [new_array(NBYTES, 1) for _ in range(3)]
    del outside  # idle now
    files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=1 << 30)
    assert all(in_file(shareable(np.ones, NBYTES, "u1")) for _ in range(3))


def test_an_empty_array_is_resident_up_to_a_limit(shareable):
    files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=8 << 30)
    before = max(file_sizes(os.getpid()))
    huge = shareable(np.empty, 3 << 30, "u1")
    assert in_file(huge)
    assert max(file_sizes(os.getpid())) - before < (1 << 30) + (64 << 20)
    del huge
    pool.trim()


def test_files_are_made_and_opened_all_or_none(monkeypatch):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    with pytest.raises(OSError):
        sealed.reopen((0, 10**6), os.O_RDONLY)
    with pytest.raises(OSError):
        sealed.make({"small": 4096, "impossible": -1})
    assert count() == before

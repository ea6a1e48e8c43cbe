"""Either side dies, ends or stops while frames are read from the sender's memory.

Each message is complete and right, or CommClosedError is raised soon. Nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import dask
import numpy as np
import pytest
import pytest_asyncio
from distributed.comm import CommClosedError, listen
from distributed.protocol import to_serialize
from distributed.utils import wait_for

from dask_fabric.paths.cma import copies

from .conftest import PATIENCE_SECONDS, nothing_left, until
from .stem import is_whole, message

NBYTES = 100_000_000
SOON_SECONDS = 5  # what is promised
ROUND_COUNT = 10
MOST_MESSAGES = 10


class Stem:
    """The process that forks peers, which end with it."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("stem.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pids: list[int] = []

    def order(self, role: str, address: str, nbytes: int = NBYTES) -> int:
        order = {"role": role, "address": address, "nbytes": nbytes}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.pids.append(int(self.process.stdout.readline()))
        return self.pids[-1]

    async def line(self) -> str:
        line = await wait_for(asyncio.to_thread(self.process.stdout.readline), PATIENCE_SECONDS)
        return line.strip()

    def kill_peers(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.pids.clear()

    def end(self) -> None:
        self.kill_peers()
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def the_stem():
    stem = Stem()
    yield stem
    stem.end()


@pytest.fixture
def stem(the_stem):
    yield the_stem
    the_stem.kill_peers()


@pytest_asyncio.fixture
async def accepted():
    """A queue of the comms that peers open, and the address."""
    comms = asyncio.Queue()
    async with listen("fabric://127.0.0.1", comms.put) as listener:
        comms.address = listener.contact_address
        yield comms


@contextlib.asynccontextmanager
async def opened(stem, accepted, role, nbytes=NBYTES):
    """A comm with a new peer in that role, and the peer's pid."""
    pid = stem.order(role, accepted.address, nbytes)
    comm = await wait_for(accepted.get(), PATIENCE_SECONDS)
    try:
        yield comm, pid
    finally:
        comm.abort()


async def read(comm):
    return await wait_for(comm.read(), PATIENCE_SECONDS)


async def fails_soon(awaitable) -> None:
    with pytest.raises(CommClosedError):
        await wait_for(awaitable, SOON_SECONDS)


async def whole_or_closed(reading) -> bool:
    """Whether a message arrived; then it must be right."""
    try:
        received = await wait_for(reading, SOON_SECONDS)
    except CommClosedError:
        return False
    assert is_whole(received, NBYTES)
    return True


async def read_until_the_end(comm, pid, rng) -> int:
    """Read messages, kill their sender at some moment, and give the number of messages."""
    for count in range(rng.randrange(1, MOST_MESSAGES)):
        received = await read(comm)
        assert received["number"] == count and is_whole(received, NBYTES)
        await comm.write("next")
    reading = asyncio.ensure_future(comm.read())
    await asyncio.sleep(rng.choice((0, rng.random() * 0.03)))
    os.kill(pid, signal.SIGKILL)
    count += 1
    while await whole_or_closed(reading):
        count += 1
        reading = asyncio.ensure_future(comm.read())
    assert comm.closed()
    await fails_soon(comm.write("x"))
    return count


@pytest.mark.slow
async def test_the_sender_is_killed(stem, accepted):
    rng = random.Random(1)
    async with nothing_left(rss=True):
        count = 0
        for _ in range(ROUND_COUNT):
            async with opened(stem, accepted, "send_many") as (comm, pid):
                count += await read_until_the_end(comm, pid, rng)
                assert comm.paths == {"host": "cma"}
                del comm
        assert count > ROUND_COUNT
        assert copies.statistics()["job_count"] == 0


async def write_until_the_end(comm, pid, rng) -> None:
    for number in range(rng.randrange(1, MOST_MESSAGES)):
        await comm.write(message(number, NBYTES))
        assert await read(comm) == number
    data = np.full(NBYTES // 8, 1, "u8")
    gone = weakref.ref(data)
    await comm.write({"number": 1, "x": to_serialize(data)})
    del data
    reading = asyncio.ensure_future(comm.read())
    await asyncio.sleep(rng.choice((0, rng.random() * 0.05)))
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(CommClosedError):
        assert await wait_for(reading, SOON_SECONDS) == 1
        await fails_soon(comm.read())
    assert comm.closed()
    await until(lambda: gone() is None)


@pytest.mark.slow
async def test_the_receiver_is_killed(stem, accepted):
    rng = random.Random(2)
    async with nothing_left(rss=True):
        for _ in range(ROUND_COUNT):
            async with opened(stem, accepted, "receive_many") as (comm, pid):
                await write_until_the_end(comm, pid, rng)
                del comm


@pytest.mark.parametrize("moment", range(3))
@pytest.mark.parametrize("role", ["send_and_exit", "send_and_end", "send_and_exec"])
async def test_the_sender_ends_without_closing(stem, accepted, role, moment):
    async with nothing_left(), opened(stem, accepted, role) as (comm, _):
        if moment == 1:
            assert await stem.line() == "written"
        reading = asyncio.ensure_future(comm.read())
        if await whole_or_closed(reading):
            await fails_soon(comm.read())
        if moment != 1:
            assert await stem.line() == "written"
        del comm, reading


@pytest.mark.parametrize("moment", range(2))
@pytest.mark.parametrize("config", [{}, {"fabric.unix-sockets": False}])
async def test_the_sender_dies_and_a_child_has_its_socket(stem, config, moment):
    comms = asyncio.Queue()
    with dask.config.set(config):
        async with listen("fabric://127.0.0.1", comms.put) as listener, nothing_left():
            comms.address = listener.contact_address
            async with opened(stem, comms, "send_and_leave_a_child") as (comm, pid):
                if moment:
                    assert await stem.line() == "written"
                    await until(lambda: not Path(f"/proc/{pid}").exists())
                await fails_soon(comm.read())
                if not moment:
                    assert await stem.line() == "written"
                # As long as it lives, the memory file may be in use, and its end is awaited.
                os.kill(int(await stem.line()), signal.SIGKILL)
                del comm


async def test_the_sender_closes_and_the_reader_comes_later(stem, accepted):
    async with opened(stem, accepted, "send_and_close") as (comm, _):
        assert await stem.line() == "written"
        await until(comm.closed)  # the peer has gone, with all that it had to give
        assert is_whole(await read(comm), NBYTES)
        await fails_soon(comm.read())


@pytest.mark.parametrize("config", [{}, {"fabric.unix-sockets": False}])
async def test_the_sender_aborts_and_lives_on(stem, config):
    comms = asyncio.Queue()
    with dask.config.set(config):
        async with listen("fabric://127.0.0.1", comms.put) as listener:
            comms.address = listener.contact_address
            for _ in range(3):
                async with opened(stem, comms, "send_and_abort") as (comm, _):
                    await whole_or_closed(comm.read())
                    assert await stem.line() == "written"


async def test_the_sender_stands_still(stem, accepted):
    """Its offers can be read nevertheless."""
    async with opened(stem, accepted, "send_and_wait") as (comm, pid):
        assert await stem.line() == "written"
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: is_stopped(pid))
        assert is_whole(await read(comm), NBYTES)
        await comm.close()


async def test_the_receiver_stands_still(stem, accepted):
    with dask.config.set({"fabric.timeouts.close": "100ms"}):
        async with listen("fabric://127.0.0.1", accepted.put) as listener, nothing_left():
            accepted.address = listener.contact_address
            async with opened(stem, accepted, "receive_many") as (comm, pid):
                os.kill(pid, signal.SIGSTOP)
                await until(lambda: is_stopped(pid))
                data = np.zeros(NBYTES, "u1")
                gone = weakref.ref(data)
                await comm.write({"number": 0, "x": to_serialize(data)})
                del data
                assert comm.statistics()["unacknowledged_bytes"] == NBYTES
                await wait_for(comm.close(), SOON_SECONDS)
                await until(lambda: gone() is None)
                os.kill(pid, signal.SIGCONT)
                assert await stem.line() == "CommClosedError"
                del comm


def is_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


@pytest.mark.netns
@pytest.mark.parametrize("mode", ["other", "empty"])
def test_a_process_that_gets_the_pid_of_the_dead_one_is_not_read(mode):
    program = Path(__file__).parents[1] / "programs" / "reused_pid.py"
    done = subprocess.run(
        ["unshare", "-pf", "--mount-proc", sys.executable, program, mode],
        capture_output=True, text=True, timeout=60, start_new_session=True,
    )  # fmt: skip
    assert done.stdout.strip() == "CommClosedError", done.stderr

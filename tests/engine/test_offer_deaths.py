"""The process with memory on offer dies, but its socket stays open in another process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dask_fabric.errors import ChannelClosedError
from dask_fabric.paths.cma.process import process_of
from dask_fabric.paths.ucx import frame_jobs

from .conftest import cma_path
from .offering import (
    BULK,
    ENTRY,
    FRAMES,
    INLINE,
    PATIENCE_SECONDS,
    PREFIX,
    attacked,
    offer,
    receive,
    until,
)

WITHOUT_FIRST_THREAD = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@contextlib.contextmanager
def dead(reaped: bool):
    """The `Process` of a process that has ended since."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        found = process_of(process.pid)
        process.kill()
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield found


@contextlib.asynccontextmanager
async def without_first_thread():
    """A process that lives, though its memory cannot be read by its number."""
    command = [sys.executable, "-c", WITHOUT_FIRST_THREAD]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        yield process


@contextlib.asynccontextmanager
async def asked(nbytes):
    """Such a process, whose frame was requested, the read that waits for it, and what counts the
    descriptors by which processes are watched."""
    async with (
        without_first_thread() as process,
        attacked(cma_path(process_of(process.pid))) as (channel, peer),
    ):
        gc.collect()  # what earlier tests left may go at any time, and counts less then
        before_count = process_fd_count()
        peer.send(offer(0, nbytes, 4096))
        reading = asyncio.ensure_future(receive(channel))
        await until(lambda: channel.statistics()["fallbacks_received"])
        yield process, channel, peer, reading, lambda: process_fd_count() - before_count


def process_fd_count() -> int:
    links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
    return sum("pidfd" in os.readlink(link) for link in links if os.path.lexists(link))


@pytest.mark.parametrize("reaped", [True, False])
@pytest.mark.parametrize("nbytes", [INLINE, BULK])
async def test_a_dead_process_ends_the_comm(nbytes, reaped):
    with dead(reaped) as process:
        async with attacked(cma_path(process)) as (channel, peer):
            peer.send(offer(0, nbytes, 4096))
            with pytest.raises(ChannelClosedError, match="the peer's process has died"):
                await receive(channel)
            assert channel.closed


@pytest.mark.untraced
@pytest.mark.parametrize("nbytes", [INLINE, BULK])
async def test_a_process_that_lives_on_without_its_first_thread_is_asked(nbytes):
    async with asked(nbytes) as (_, channel, peer, reading, watched_count):
        assert watched_count() == 1
        frames = PREFIX.pack(FRAMES, 0, 0, 1, 0, 0) + ENTRY.pack(nbytes, 0, 0, 0, 0)
        sending = asyncio.get_running_loop().sock_sendall(peer, frames + bytes(nbytes))
        await asyncio.wait_for(sending, PATIENCE_SECONDS)
        _, (frame,) = await reading
        assert bytes(frame) == bytes(nbytes)
        assert not channel.closed
        assert watched_count() == 0


@pytest.mark.untraced
async def test_a_process_that_dies_when_it_was_asked_ends_the_comm():
    async with asked(INLINE) as (process, _, _, reading, watched_count):
        process.kill()
        with pytest.raises(ChannelClosedError, match="the peer's process has died"):
            await reading
        assert watched_count() == 0


@pytest.mark.untraced
async def test_an_abort_lets_go_of_the_process():
    async with asked(INLINE) as (_, channel, _, reading, watched_count):
        channel.abort()
        with pytest.raises(ChannelClosedError):
            await reading
        assert watched_count() == 0


@pytest.mark.parametrize("reaped", [True, False])
def test_what_ucx_holds_for_a_dead_process_may_go(reaped):
    with dead(reaped) as process:
        assert frame_jobs._is_dead(process.pid)


@pytest.mark.untraced
async def test_what_ucx_holds_for_a_process_without_its_first_thread_stays():
    async with without_first_thread() as process:
        assert not frame_jobs._is_dead(process.pid)
    assert frame_jobs._is_dead(process.pid)

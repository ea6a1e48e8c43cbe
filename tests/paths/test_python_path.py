"""Paths in Python that fail: no comm hangs because of them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.paths.conformance.conftest import new_channel
from tests.paths.conformance.file_path import file_path

from dask_fabric.errors import ChannelClosedError
from dask_fabric.jobs import completions
from dask_fabric.wire.path import Path

PATIENCE_SECONDS = 30
NBYTES = 300_000


async def joined(path_of):
    near, far = socket.socketpair()
    pair = new_channel(near, False), new_channel(far, True)
    await asyncio.gather(*(channel.open() for channel in pair))
    for channel in pair:
        channel.use(path_of(asyncio.get_running_loop()))
    return pair


async def receive(channel):
    message = channel.receive_nowait()
    return message or await asyncio.wait_for(channel.receive(), PATIENCE_SECONDS)


def unreleasable(loop):
    path = file_path(loop)

    class Unreleasable(type(path)):
        def release_frame(self, descriptor):
            super().release_frame(descriptor)
            raise RuntimeError("no")

    made = Unreleasable.__new__(Unreleasable, loop, "file", 16, 16)
    made.__init__(loop, "file", 16, 16)
    return made


async def test_a_frame_that_cannot_be_released_ends_nothing(caplog):
    near, far = await joined(unreleasable)
    near.send(b"", [np.ones(NBYTES, "u1")])
    assert (await receive(far))[1][0].nbytes == NBYTES
    near.send(b"next", [])
    assert bytes((await receive(far))[0]) == b"next"
    await near.close(PATIENCE_SECONDS)
    far.abort()
    assert "cannot release a frame" in caplog.text


async def test_a_reader_wakes_up_although_a_frame_cannot_be_released():
    near, far = await joined(unreleasable)
    near.send(b"", [np.ones(NBYTES, "u1")])
    reading = asyncio.ensure_future(receive(near))
    await asyncio.sleep(0)
    near.abort()
    with pytest.raises(ChannelClosedError):
        await reading
    far.abort()


async def test_a_path_that_cannot_fetch_ends_its_comm():
    near, far = await joined(lambda loop: Path("mute", 16))
    near.send(b"", [np.ones(NBYTES, "u1")])
    with pytest.raises(ChannelClosedError, match="NotImplementedError"):
        await receive(far)
    with pytest.raises(ChannelClosedError, match="was lost"):
        await receive(near)


def test_a_fetch_that_ends_after_its_loop_was_closed_frees_its_memory():
    begun, goes_on = threading.Event(), threading.Event()

    def slow(loop):
        path = file_path(loop)

        class Slow(type(path)):
            def fetch_frame(self, *args):
                begun.set()
                goes_on.wait(PATIENCE_SECONDS)
                super().fetch_frame(*args)

        made = Slow.__new__(Slow, loop, "file", 16, 16)
        made.__init__(loop, "file", 16, 16)
        return made

    async def end_while_fetching():
        near, far = await joined(slow)
        near.send(b"", [np.ones(NBYTES, "u1")])
        reading = asyncio.ensure_future(receive(far))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        far.abort()
        near.abort()
        with pytest.raises(ChannelClosedError):
            await reading

    before = completions.statistics()["quarantined_count"]
    loop = asyncio.new_event_loop()
    loop.run_until_complete(end_while_fetching())
    loop.close()
    assert completions.statistics()["quarantined_count"] > before
    goes_on.set()
    while completions.statistics()["quarantined_count"] > before:
        time.sleep(0.001)


async def test_a_fetch_that_its_executor_drops_is_requested():
    """An executor that is shut down cancels what it has not begun."""
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    release = asyncio.Event()
    blocked = loop.run_in_executor(
        None, lambda: asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
    )
    near, far = await joined(file_path)
    near.send(b"", [np.ones(NBYTES, "u1")])
    reading = asyncio.ensure_future(receive(far))
    while not far.core.inbox.is_fetching:
        await asyncio.sleep(0)
    executor.shutdown(wait=False, cancel_futures=True)
    loop.set_default_executor(ThreadPoolExecutor(1))
    _, (frame,) = await reading
    assert frame == memoryview(np.ones(NBYTES, "u1"))
    release.set()
    await blocked
    for channel in (near, far):
        channel.abort()

"""Many copies out of other processes at once: turns, ends, failures and cancellations."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest

from dask_fabric.memory import pool
from dask_fabric.paths.cma import copies

from .conftest import cma_path, new_channel, unix_pair
from .offering import BULK, Region, numbers, receive, until


@contextlib.asynccontextmanager
async def pairs(count):
    """Pairs of channels, near and far, that may read this process's memory."""
    opened = []
    try:
        for _ in range(count):
            near, far = unix_pair()
            opened.append((new_channel(near, False), new_channel(far, True)))
            await asyncio.gather(*(channel.open() for channel in opened[-1]))
            for channel in opened[-1]:
                channel.use(cma_path())
        yield opened
    finally:
        for pair in opened:
            for channel in pair:
                channel.abort()


def begin(near, far, frames):
    """Have the engine fetch frames that were just sent."""
    near.send(b"", frames)
    near._uncork()
    far._on_readable()
    return far.receive()


async def test_a_small_job_does_not_wait_for_a_large_one():
    async with pairs(2) as (first, second):
        ended = []
        large = begin(*first, [np.zeros(BULK, "u1")] * 20)
        small = begin(*second, [np.zeros(5_000_000, "u1")])
        for name, future in (("large", large), ("small", small)):
            future.add_done_callback(lambda _, name=name: ended.append(name))
        while len(ended) < 2:
            await asyncio.sleep(0)
        assert ended == ["small", "large"]


async def test_many_jobs_share_the_threads():
    async with pairs(20) as opened:
        data = numbers(4_000_000)
        pending = [begin(near, far, [data[n:], data[n:]]) for n, (near, far) in enumerate(opened)]
        for number, future in enumerate(pending):
            _, frames = await future
            for frame in frames:
                assert np.array_equal(np.frombuffer(frame, "u1"), data[number:])
        assert copies.statistics()["job_count"] == 0
        assert 1 <= copies.statistics()["thread_count"] <= 64


async def test_one_that_fails_harms_no_other():
    region = Region(BULK)
    async with pairs(3) as opened:
        data = numbers(BULK)
        with region.unreadable(BULK // 2):
            pending = [
                begin(near, far, [data, region.view, data] if number == 1 else [data] * 3)
                for number, (near, far) in enumerate(opened)
            ]
            await until(lambda: opened[1][1].statistics()["fallbacks_received"])
        for number, future in enumerate(pending):
            _, frames = await future
            for index, frame in enumerate(frames):
                expected = region.view if (number, index) == (1, 1) else data
                assert np.array_equal(np.frombuffer(frame, "u1"), expected)
        counts = [far.statistics()["fallbacks_received"] for _, far in opened]
        assert counts == [0, 1, 0]


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 30])
async def test_a_cancelled_job_writes_no_more(turns):
    """Its memory is given to others at once, and keeps what they write."""
    async with pairs(4) as opened:
        before_bytes = pool.statistics()["in_use_bytes"]
        source = np.ones(BULK, "u1")
        pending = [begin(near, far, [source] * 2) for near, far in opened]
        for _ in range(turns):
            await asyncio.sleep(0)
        for _, far in opened:
            far.abort()
        assert copies.statistics()["job_count"] == 0
        await asyncio.gather(*pending, return_exceptions=True)
        del pending
        await until(lambda: pool.statistics()["in_use_bytes"] <= before_bytes)
    async with pairs(1) as [(near, far)]:
        _, frames = await receive_zeros(near, far)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(np.frombuffer(frame, "u1").any() for frame in frames)


async def receive_zeros(near, far):
    near.send(b"", [np.zeros(BULK, "u1")] * 8)
    return await receive(far)


async def test_a_very_large_one_has_more_threads():
    async with pairs(1) as ((near, far),):
        data = np.ones(140 << 20, "u1")
        _, (frame,) = await begin(near, far, [data])
        assert np.array_equal(np.frombuffer(frame, "u1"), data)
        assert copies.statistics()["thread_count"] >= 2

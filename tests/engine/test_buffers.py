"""The buffers of a channel: small again when it is idle, and never with half a record."""

from __future__ import annotations

import asyncio
import sys

import pytest

from dask_fabric.errors import ChannelClosedError
from dask_fabric.memory import pool
from dask_fabric.wire import send_buffer

from .offering import INLINE, Region, numbers, receive, until

SLACK_BYTES = 1024  # a few vectors


def sizes(pair):
    return [
        sys.getsizeof(part)
        for channel in pair
        for part in (channel.core.outgoing, channel.core.reader)
    ]


async def ping(near, far):
    near.send(b"ping", [])
    assert await receive(far) == (b"ping", [])


BURSTS = {
    "small messages": [(b"x" * 1000, []) for _ in range(1000)],
    "many frames": [(b"", [b"f" * 5000] * 10_000)],
    "many small frames": [(b"", [b"f"] * 10_000)],
    "large frames": [(b"h" * 100_000, [numbers(3_000_000)] * 3) for _ in range(2)],
}


@pytest.mark.parametrize("burst", BURSTS.values(), ids=BURSTS)
async def test_after_a_burst_both_ends_are_as_small_as_before(channels, burst):
    async with channels() as pair:
        near, far = pair
        await ping(near, far)
        before, used = sizes(pair), pool.statistics()["in_use_bytes"]
        for header, frames in burst:
            near.send(header, frames)
        assert sizes(pair)[0] > before[0] + SLACK_BYTES or near.pending_bytes == 0
        for header, frames in burst:
            received = await receive(far)
            assert (len(received[0]), len(received[1])) == (len(header), len(frames))
        del received
        await until(lambda: near.pending_bytes == 0)
        for now, then in zip(sizes(pair), before, strict=True):
            assert now <= then + SLACK_BYTES
        assert pool.statistics()["in_use_bytes"] <= used
        await ping(near, far)


async def test_idle_channels_share_their_buffers(channels):
    pairs = [channels() for _ in range(20)]
    opened = [await pair.__aenter__() for pair in pairs]
    try:
        for near, far in opened:
            await ping(near, far)
            await ping(far, near)
        idle = pool.statistics()["in_use_count"]
        for near, far in opened:
            for _ in range(200):
                near.send(b"x" * 5000, [])
            for _ in range(200):
                await receive(far)
        assert pool.statistics()["in_use_count"] == idle
    finally:
        for pair in pairs:
            await pair.__aexit__(None, None, None)


class Scarce(list):
    """A list that raises `MemoryError` once, after `left` more items."""

    left = -1

    def append(self, owner):
        self._put()
        super().append(owner)

    def __setitem__(self, index, owner):
        if owner is not None:
            self._put()
        super().__setitem__(index, owner)

    def _put(self):
        Scarce.left -= 1
        if Scarce.left == -1:
            raise MemoryError


@pytest.mark.parametrize("waits", [False, True])
async def test_a_message_without_memory_leaves_nothing_in_the_queue(cma_pair, monkeypatch, waits):
    """Wherever memory ends: no half record, and no bytes that nobody wrote."""
    monkeypatch.setattr(send_buffer, "new_owners", Scarce)
    frames = [b"inline", numbers(9000), numbers(70_000, 1), b"", numbers(20_000, 2), b"x" * 5000]
    async with cma_pair(stream_inline_bytes=10_000) as (near, far):
        sent, failure_count = [], 0
        while failure_count == len(sent):
            if waits:  # in the chunk, for the end of the turn
                near.send(b"before", [])
                near.send(b"before too", [b"y" * failure_count])
            Scarce.left = failure_count
            try:
                near.send(b"large" * 1000, frames)
                break
            except MemoryError:
                failure_count += 1
            finally:
                Scarce.left = -1
            sent.append((b"small", [b"frame"] * failure_count))
            near.send(*sent[-1])
            if waits:
                assert await receive(far) == (b"before", [])
                assert await receive(far) == (b"before too", [b"y" * (failure_count - 1)])
            assert await receive(far) == sent[-1]
        assert failure_count >= 4
        if waits:
            await receive(far)
            await receive(far)
        header, received = await receive(far)
        assert header == b"large" * 1000
        assert [bytes(frame) for frame in received] == [bytes(frame) for frame in frames]


async def test_requested_frames_without_memory_leave_nothing_in_the_queue(cma_pair, monkeypatch):
    monkeypatch.setattr(send_buffer, "new_owners", Scarce)
    region = Region(INLINE)
    async with cma_pair() as (near, far):
        near.send(b"", [region.view])
        with region.unreadable():
            asked = asyncio.ensure_future(receive(far))
            await until(lambda: far.statistics()["fallbacks_received"])
        Scarce.left = 1
        with pytest.raises(ChannelClosedError):
            await asked
        assert Scarce.left < 0 and near.closed and near.pending_bytes == 0


async def test_reads_that_find_nothing_leave_no_buffer(channels):
    used = pool.statistics()["in_use_bytes"]
    async with channels() as pair:
        for channel in pair:
            channel._on_readable()
        assert pool.statistics()["in_use_bytes"] <= used
        pair[0].abort()
        await until(lambda: pair[1].closed)
        assert pool.statistics()["in_use_bytes"] <= used

"""Frames on offer between two channels: fetched, acknowledged, or requested."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest

from dask_fabric.errors import ChannelClosedError, ProtocolError

from .offering import BULK, INLINE, Region, numbers, receive, until


@pytest.mark.parametrize("nbytes", [131_072, INLINE, BULK])
async def test_frames_on_offer_are_fetched_and_let_go(cma_pair, nbytes):
    async with cma_pair() as (near, far):
        sent = [numbers(nbytes, 1), numbers(10, 2), numbers(nbytes + 4097, 3)]
        near.send(b"header", sent)
        assert near.in_flight_bytes == 2 * nbytes + 4097
        header, frames = await receive(far)
        assert bytes(header) == b"header"
        for one, other in zip(sent, frames, strict=True):
            assert np.array_equal(one, np.frombuffer(other, "u1"))
        await until(lambda: near.in_flight_bytes == 0)
        told = far.statistics()
        assert (told["fetched_frames"], told["fetched_bytes"]) == (2, 2 * nbytes + 4097)
        assert near.statistics()["offered_frames"] == 2


async def test_an_offer_is_kept_alive_until_it_is_acknowledged(cma_pair):
    async with cma_pair() as (near, far):
        data = numbers(BULK)
        gone = weakref.ref(data)
        near.send(b"", [data])
        del data
        await asyncio.sleep(0)
        assert gone() is not None
        await receive(far)
        await until(lambda: near.in_flight_bytes == 0)
        gc.collect()
        assert gone() is None


async def test_order_is_kept_among_offers_and_others(cma_pair):
    sizes = [10, BULK, 5, INLINE, 100_000, BULK, 0, 3_000_000, 70_000]
    async with cma_pair() as (near, far):
        for number, size in enumerate(sizes):
            near.send(b"%d" % number, [np.full(size, number, "u1")])
        for number, size in enumerate(sizes):
            header, (frame,) = await receive(far)
            assert bytes(header) == b"%d" % number
            assert frame.nbytes == size and set(np.unique(frame)) <= {number}


async def test_both_sides_may_offer_before_they_read(cma_pair):
    async with cma_pair() as pair:
        data = numbers(BULK)
        for channel in pair:
            channel.send(b"", [data])
        for channel in pair:
            _, (frame,) = await receive(channel)
            assert np.array_equal(data, np.frombuffer(frame, "u1"))
        await until(lambda: not any(channel.in_flight_bytes for channel in pair))


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("begin", [0, 65_536])
@pytest.mark.parametrize("nbytes", [INLINE, BULK])
async def test_what_cannot_be_read_is_asked_for_again(cma_pair, nbytes, begin):
    """Memory that the peer cannot read, wholly or from some page on, is sent on the stream."""
    region = Region(nbytes)
    async with cma_pair() as (near, far):
        near.send(b"first", [region.view])
        near.send(b"second", [numbers(200_000)])
        with region.unreadable(begin):
            pending = asyncio.ensure_future(receive(far))
            await until(lambda: far.statistics()["fallbacks_received"])
            assert unacknowledged(near) == nbytes + 200_000
        await until(lambda: near.statistics()["fallbacks_sent"])
        assert unacknowledged(near) == 200_000  # the other is being sent
        header, (frame,) = await pending
        assert bytes(header) == b"first"
        assert np.array_equal(np.frombuffer(frame, "u1"), region.view)
        assert bytes((await receive(far))[0]) == b"second"
        await until(lambda: near.in_flight_bytes == 0)
        check_fallback(near.statistics(), far.statistics(), nbytes)


def unacknowledged(channel):
    return channel.statistics()["traffic"]["cma"]["unacknowledged_bytes"]


def check_fallback(sent, received, nbytes):
    """The first of two frames was offered and sent; the figures of both ends agree on that."""
    assert sent["fallbacks_sent"] == received["fallbacks_received"] == 1
    by_cma, by_stream = sent["traffic"]["cma"], sent["traffic"]["stream"]
    assert by_cma["unacknowledged_bytes"] == 0
    assert (by_cma["fallbacks_sent"], by_cma["fallback_bytes"]) == (1, nbytes)
    assert (by_cma["frames_sent"], by_cma["bytes_sent"]) == (2, nbytes + 200_000)
    assert by_stream["frames_sent"] == received["traffic"]["stream"]["frames_received"] == 1
    assert nbytes < by_stream["bytes_sent"] < nbytes + 1000
    assert sent["bytes_sent"] == by_cma["bytes_sent"] + by_stream["bytes_sent"] - nbytes
    fetched = received["traffic"]["cma"]
    assert (fetched["frames_received"], fetched["bytes_received"]) == (1, 200_000)


async def test_what_is_not_there_any_more_ends_the_comm(cma_pair):
    """If neither side can read it, the sender gets an error, and the peer no false frame."""
    region = Region(BULK)
    async with cma_pair() as (near, far):
        near.send(b"", [region.view])
        with region.unreadable():
            with pytest.raises((ChannelClosedError, OSError)):
                await receive(far)
            await until(lambda: near.closed)


async def test_messages_behind_a_frame_that_is_asked_for_wait(cma_pair):
    region = Region(BULK)
    async with cma_pair() as (near, far):
        near.send(b"first", [region.view])
        for number in range(200):
            near.send(b"%d" % number, [bytes(50_000)])
        with region.unreadable():
            pending = asyncio.ensure_future(receive(far))
            await until(lambda: far.statistics()["fallbacks_received"])
        assert bytes((await pending)[0]) == b"first"
        for number in range(200):
            assert bytes((await receive(far))[0]) == b"%d" % number


async def test_messages_instead_of_a_frame_that_was_asked_for_are_bounded(cma_pair):
    limit = 1_000_000
    async with cma_pair(message_bytes_limit=limit) as (near, far):
        region = Region(INLINE)
        near.send(b"", [region.view])
        for _ in range(200):
            near.send(b"", [bytes(50_000)])
        with region.unreadable(), pytest.raises(ProtocolError, match="instead of the frames"):
            await receive(far)


async def test_after_some_failures_in_a_row_nothing_is_offered(cma_pair):
    region = Region(INLINE)
    async with cma_pair() as (near, far):
        for _ in range(4):
            near.send(b"", [region.view])
            with region.unreadable():
                pending = asyncio.ensure_future(receive(far))
                count = far.statistics()["fallbacks_received"]
                await until(lambda: far.statistics()["fallbacks_received"] > count)  # noqa: B023
            await pending
        near.send(b"", [region.view])
        assert near.in_flight_bytes == 0
        _, (frame,) = await receive(far)
        assert np.array_equal(np.frombuffer(frame, "u1"), region.view)

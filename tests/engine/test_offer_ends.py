"""A side closes, aborts or is lost while frames are on offer."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import socket

import numpy as np
import pytest

from dask_fabric.errors import ChannelClosedError, ProtocolError
from dask_fabric.memory import pool
from dask_fabric.paths.cma import copies
from dask_fabric.paths.cma.endpoint import CMAPath
from dask_fabric.paths.cma.process import Secret, process_of

from .conftest import sealed_cma_paths
from .offering import (
    ACKNOWLEDGE,
    BULK,
    CLOSE,
    INLINE,
    MESSAGE,
    PATIENCE_SECONDS,
    PREFIX,
    REQUEST,
    Region,
    attacked,
    numbers,
    offer,
    receive,
    until,
)


@pytest.mark.parametrize("size", [INLINE, BULK])
async def test_an_orderly_close_waits_for_a_peer_that_reads_later(cma_pair, size):
    async with cma_pair() as (near, far):
        for number in range(3):
            near.send(b"%d" % number, [np.full(size, number, "u1")])
        near.send(b"last", [])
        await near.close(PATIENCE_SECONDS)
        for number in range(3):
            header, (frame,) = await receive(far)
            assert bytes(header) == b"%d" % number and set(np.unique(frame)) == {number}
        assert bytes((await receive(far))[0]) == b"last"
        with pytest.raises(ChannelClosedError, match="the peer closed"):
            await receive(far)


async def test_a_close_waits_for_frames_that_are_asked_for_again(cma_pair):
    region = Region(INLINE)
    async with cma_pair() as (near, far):
        near.send(b"", [region.view])
        with region.unreadable():
            closing = asyncio.ensure_future(near.close(PATIENCE_SECONDS))
            await until(lambda: far.statistics()["fallbacks_received"])
        await closing
        _, (frame,) = await receive(far)
        assert np.array_equal(np.frombuffer(frame, "u1"), region.view)


async def test_a_close_finds_acknowledgements_behind_messages_that_nobody_reads(cma_pair):
    async with cma_pair() as (near, far):
        near.send(b"", [numbers(BULK)])
        for _ in range(100):
            far.send(b"", [bytes(50_000)])
        far.send(b"", [numbers(5_000_000)])
        await receive(far)
        await near.close(PATIENCE_SECONDS)
        assert near.closed and near.in_flight_bytes == 0


async def test_what_is_discarded_does_not_count_as_backlog(cma_pair):
    async with cma_pair(message_bytes_limit=25_000_000) as (near, far):
        near.send(b"", [numbers(BULK)])
        for _ in range(3):
            far.send(b"", [bytes(20_000_000)])
        closing = asyncio.ensure_future(near.close(PATIENCE_SECONDS))
        await until(lambda: far.pending_bytes == 0)
        assert (await receive(far))[1][0].nbytes == BULK
        await closing
        assert near.error is None


async def test_a_close_by_both_sides_with_offers_waits_for_nobody(cma_pair):
    """Neither reads any more, so neither will fetch."""
    async with cma_pair() as pair:
        for channel in pair:
            channel.send(b"", [numbers(BULK)])
        closing = [channel.close(10 * PATIENCE_SECONDS) for channel in pair]
        await asyncio.wait_for(asyncio.gather(*closing), PATIENCE_SECONDS)
        assert all(channel.closed and channel.error is None for channel in pair)


async def test_no_answer_follows_the_close_record():
    """A side that closes while it fetches sends nothing more."""
    data = np.ones(100_000_000, "u1")
    async with attacked() as (channel, peer):
        channel.send(b"", [numbers(BULK)])
        peer.sendall(offer(0, data.nbytes, data.ctypes.data))
        channel._on_readable()
        reading = channel.receive()
        closing = asyncio.ensure_future(channel.close(PATIENCE_SECONDS))
        assert np.array_equal(np.frombuffer((await reading)[1][0], "u1"), data)
        await asyncio.sleep(0)
        peer.shutdown(socket.SHUT_WR)
        await closing
        assert peer.recv(65536).endswith(PREFIX.pack(CLOSE, 0, 0, 0, 0, 0))


async def test_a_peer_that_closes_too_is_not_waited_for_where_a_reader_waits():
    async with attacked() as (channel, peer):
        channel.send(b"", [numbers(BULK)])
        reading = channel.receive()
        closing = asyncio.ensure_future(channel.close(10 * PATIENCE_SECONDS))
        await asyncio.sleep(0)
        peer.sendall(PREFIX.pack(CLOSE, 0, 0, 0, 0, 0))
        await asyncio.wait_for(closing, PATIENCE_SECONDS)
        with pytest.raises(ChannelClosedError):
            await reading


async def test_no_error_follows_the_close_record():
    async with attacked() as (channel, peer):
        channel.send(b"", [numbers(BULK)])
        closing = asyncio.ensure_future(channel.close(PATIENCE_SECONDS))
        await asyncio.sleep(0)
        peer.sendall(PREFIX.pack(9, 0, 0, 0, 0, 0))
        await closing
        assert isinstance(channel.error, ProtocolError)
        assert peer.recv(65536).endswith(PREFIX.pack(CLOSE, 0, 0, 0, 0, 0))


async def test_nothing_is_delivered_from_behind_a_violation():
    async with attacked() as (channel, peer):
        bogus = PREFIX.pack(ACKNOWLEDGE, 0, 0, 0, 0, 7)
        peer.sendall(bogus + PREFIX.pack(MESSAGE, 0, 0, 0, 0, 0))
        for _ in range(2):
            with pytest.raises(ProtocolError, match="an answer about message 7"):
                await receive(channel)


async def test_messages_stay_in_order_where_an_answer_cannot_be_sent():
    """The frames that are requested between them go to a peer that has left."""
    async with attacked() as (channel, peer):
        channel.send(b"", [numbers(INLINE)])
        headers = [b"%d" % number * 12_000 for number in range(2)]  # not all in one read
        first, second = (
            PREFIX.pack(MESSAGE, 0, 0, 0, len(header), number) + header
            for number, header in enumerate(headers)
        )
        reading = channel.receive()
        peer.sendall(first + PREFIX.pack(REQUEST, 0, 0, 0, 0, 0) + second)
        peer.close()
        assert [bytes((await reading)[0]), bytes((await receive(channel))[0])] == headers


async def test_close_is_bounded_where_nobody_fetches(caplog):
    """The peer accepts the offer, and then does nothing."""
    async with attacked() as (channel, peer):
        channel.send(b"", [numbers(BULK)])
        await channel.close(0.05)
        assert channel.closed and channel.in_flight_bytes == 0
        assert "bytes unsent" in caplog.text
        assert peer.recv(1)


@pytest.mark.parametrize("behind_bytes", [0, 30_000_000])
async def test_an_abort_while_the_peer_fetches_is_never_garbage(cma_pair, behind_bytes):
    """Also where the end of the stream would wait behind what the peer has not read."""
    async with cma_pair() as (near, far):
        data = np.ones(100_000_000, "u1")
        near.send(b"", [data])
        near.send(b"", [bytes(50_000)] * (behind_bytes // 50_000))
        if behind_bytes:
            await until(
                lambda: far.statistics()["bytes_received"] > 128 << 10 and is_full(cma_pair.near_fd)
            )
        else:
            far._on_readable()
        pending = far.receive()
        near.abort()
        data[:] = 2  # what another owner of the memory may do now
        with pytest.raises(ChannelClosedError):
            await asyncio.wait_for(pending, PATIENCE_SECONDS)
    assert copies.statistics()["job_count"] == 0


def is_full(fd):
    return not select.select([], [fd], [], 0)[1]


async def test_an_offer_of_a_peer_that_went_cannot_be_fetched(cma_pair):
    async with cma_pair() as (near, far):
        near.send(b"whole", [])
        near.send(b"lost", [numbers(INLINE)])
        near.send(b"behind", [])
        await until(lambda: far.statistics()["bytes_received"])
        near.abort()
        await until(lambda: far.closed)
        assert bytes(far.receive_nowait()[0]) == b"whole"
        for _ in range(3):
            with pytest.raises(ChannelClosedError):
                await receive(far)


async def test_nothing_is_delivered_behind_a_message_that_was_lost(cma_pair):
    async with cma_pair() as (near, far):
        near.send(b"whole", [])
        near.send(b"lost", [numbers(BULK)])
        near.send(b"behind", [])
        await until(lambda: not near.pending_bytes)
        far._on_readable()
        assert bytes(far.receive_nowait()[0]) == b"whole"
        pending = far.receive()
        near.abort()
        with pytest.raises(ChannelClosedError):
            await pending
        for _ in range(2):
            with pytest.raises(ChannelClosedError):
                await receive(far)


async def test_memory_of_a_fetch_is_let_go_at_the_end_of_the_peer(cma_pair):
    region = Region(BULK)
    async with cma_pair() as (near, far):
        before_bytes = pool.statistics()["in_use_bytes"]
        near.send(b"", [region.view])
        near.send(b"behind", [bytes(100)])
        with region.unreadable():
            pending = far.receive()
            await until(lambda: far.statistics()["fallbacks_received"])
            near.abort()
            with pytest.raises(ChannelClosedError):
                await pending
        assert pool.statistics()["in_use_bytes"] <= before_bytes


async def test_an_abort_of_the_receiver_ends_its_fetch(cma_pair):
    async with cma_pair() as (near, far):
        near.send(b"", [np.ones(100_000_000, "u1")])
        far._on_readable()
        pending = far.receive()
        far.abort()
        assert copies.statistics()["job_count"] == 0
        with pytest.raises(ChannelClosedError):
            await pending
        await until(lambda: near.closed)
        assert near.in_flight_bytes == 0


@pytest.mark.parametrize("size", [INLINE, BULK])
async def test_what_is_fetched_from_a_peer_that_has_revoked_its_secret_is_void(channels, size):
    """Over TCP the end of the stream may arrive later than the peer uses the memory again."""
    async with channels() as (near, far):
        secrets = Secret(), Secret()
        paths = sealed_cma_paths(secrets, 65_536)
        for channel, path in zip((near, far), paths, strict=True):
            channel.use(path)
        near.send(b"whole", [np.ones(size, "u1")])
        assert (await receive(far))[1][0][0] == 1
        near.send(b"void", [np.ones(size, "u1")])
        secrets[0].revoke()  # the reset, which follows, is still on its way
        with pytest.raises(ChannelClosedError, match="while its frames were fetched"):
            await asyncio.wait_for(receive(far), PATIENCE_SECONDS)
    assert copies.statistics()["job_count"] == 0


@pytest.mark.parametrize("ends_by", ["abort", "close"])
async def test_the_secret_is_revoked_at_the_end_and_not_before(channels, ends_by):
    async with channels() as (near, far):
        secret = Secret()
        paths = sealed_cma_paths((secret, Secret()), 65_536)
        for channel, path in zip((near, far), paths, strict=True):
            channel.use(path)
        near.send(b"", [np.ones(INLINE, "u1")])
        await receive(far)
        assert ctypes.string_at(secret.address, 16) == secret.nonce
        await near.close(0.1) if ends_by == "close" else near.abort()
        assert ctypes.string_at(secret.address, 16) == bytes(16)


async def test_a_secret_that_cannot_be_read_has_the_frames_requested(channels):
    async with channels() as (near, far):
        region = Region(INLINE)
        process = process_of(os.getpid())
        address = region.view.__array_interface__["data"][0]
        near.use(CMAPath(process, 65_536, Secret(), address, bytes(16)))
        far.use(CMAPath(process, 65_536, Secret(), address, bytes(16)))
        near.send(b"", [np.ones(INLINE, "u1")])
        with region.unreadable():
            assert (await receive(far))[1][0][0] == 1
        assert far.statistics()["fallbacks_received"] == 1

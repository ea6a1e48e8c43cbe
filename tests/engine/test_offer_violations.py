"""Peers that offer, answer and request against the rules, with hand-made records."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dask_fabric.errors import ChannelClosedError, ProtocolError
from dask_fabric.memory import pool
from dask_fabric.paths.negotiation import decode_found

from .conftest import new_channel, unix_pair
from .offering import (
    ACKNOWLEDGE,
    BULK,
    CLOSE,
    ENTRY,
    FRAMES,
    INLINE,
    MESSAGE,
    PATIENCE_SECONDS,
    PREFIX,
    REQUEST,
    attacked,
    numbers,
    offer,
    receive,
    until,
)


@pytest.mark.parametrize("kind", [ACKNOWLEDGE, REQUEST])
@pytest.mark.parametrize("sequence", [0, 7, 2**64 - 1])
async def test_an_answer_about_nothing_is_a_violation(kind, sequence):
    async with attacked() as (channel, peer):
        channel.send(b"no offer", [b"x"])
        peer.sendall(PREFIX.pack(kind, 0, 0, 0, 0, sequence))
        with pytest.raises(ProtocolError, match="which offers nothing"):
            await receive(channel)


@pytest.mark.parametrize("kinds", [(ACKNOWLEDGE, ACKNOWLEDGE), (REQUEST, ACKNOWLEDGE)])
async def test_an_offer_is_answered_once(kinds):
    async with attacked() as (channel, peer):
        channel.send(b"", [numbers(INLINE)])
        for kind in kinds:
            peer.sendall(PREFIX.pack(kind, 0, 0, 0, 0, 0))
        with pytest.raises(ProtocolError, match="which offers nothing"):
            await receive(channel)


@pytest.mark.parametrize("address", [0, 1, 2**47, 2**63, 2**64 - 65_536, 0xFFFFFFFFFF600000])
@pytest.mark.parametrize("nbytes", [65_536, BULK])
async def test_an_offer_at_an_address_that_is_none_is_asked_for(address, nbytes):
    async with attacked() as (channel, peer):
        peer.sendall(offer(0, nbytes, address))
        pending = asyncio.ensure_future(receive(channel))
        await until(lambda: channel.statistics()["fallbacks_received"])
        await asyncio.sleep(0)
        record = peer.recv(24)
        assert PREFIX.unpack(record) == (REQUEST, 0, 0, 0, 0, 0)
        frames = PREFIX.pack(FRAMES, 0, 0, 1, 0, 0) + ENTRY.pack(nbytes, 0, 0, 0, 0)
        sending = asyncio.to_thread(send_all, peer, frames + b"f" * nbytes)
        await sending
        _, (frame,) = await pending
        assert bytes(frame) == b"f" * nbytes


def send_all(sock, data):
    sock.settimeout(PATIENCE_SECONDS)
    sock.sendall(data)


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (PREFIX.pack(FRAMES, 0, 0, 1, 0, 1), "not requested"),
        (PREFIX.pack(FRAMES, 0, 0, 2, 0, 0), "other frames"),
        (PREFIX.pack(FRAMES, 0, 0, 1, 5, 0), "other frames"),
        (PREFIX.pack(FRAMES, 0, 0, 1, 0, 0) + ENTRY.pack(65_537, 0, 0, 0, 0), "65537 bytes"),
        (PREFIX.pack(FRAMES, 0, 0, 1, 0, 0) + ENTRY.pack(65_536, 1, 0, 0, 8), "on the stream"),
    ],
)
async def test_frames_must_be_those_that_were_asked_for(frames, text):
    async with attacked() as (channel, peer):
        peer.sendall(offer(0, 65_536, 1) + frames)
        with pytest.raises(ProtocolError, match=text):
            await receive(channel)


async def test_frames_without_a_request_are_a_violation():
    async with attacked() as (channel, peer):
        peer.sendall(PREFIX.pack(FRAMES, 0, 0, 0, 0, 0))
        with pytest.raises(ProtocolError, match="not requested"):
            await receive(channel)


async def test_an_end_instead_of_the_frames_that_were_asked_for():
    async with attacked() as (channel, peer):
        peer.sendall(offer(0, 65_536, 1) + PREFIX.pack(CLOSE, 0, 0, 0, 0, 0))
        pending = asyncio.ensure_future(receive(channel))
        await until(lambda: channel.statistics()["fallbacks_received"])
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(ChannelClosedError):
            await pending
        with pytest.raises(ChannelClosedError):
            await receive(channel)


async def test_frames_and_the_end_at_once_are_delivered():
    """Requested frames that arrived are read, in the same turn in which the stream ends."""
    async with attacked() as (channel, peer):
        peer.sendall(offer(0, 65_536, 1) + PREFIX.pack(CLOSE, 0, 0, 0, 0, 0))
        await until(lambda: channel.statistics()["fallbacks_received"])
        await asyncio.sleep(0)
        frames = PREFIX.pack(FRAMES, 0, 0, 1, 0, 0) + ENTRY.pack(65_536, 0, 0, 0, 0)
        peer.sendall(frames + b"f" * 65_536)
        peer.shutdown(socket.SHUT_WR)
        _, (frame,) = await channel.receive()  # before the loop has seen anything of it
        assert bytes(frame) == b"f" * 65_536


async def test_a_message_that_looks_like_a_close_costs_nothing():
    """The last bytes of a frame may be those of a close record."""
    fake = PREFIX.pack(CLOSE, 0, 0, 0, 0, 0)
    async with attacked(message_bytes_limit=10_000) as (channel, peer):
        for sequence in range(50):
            table = PREFIX.pack(MESSAGE, 0, 0, 0, len(fake) + 500, sequence)
            peer.sendall(table + bytes(500) + fake)
            await until(lambda: channel.statistics()["bytes_received"])
            await asyncio.sleep(0)
        for _ in range(50):
            assert bytes((await receive(channel))[0]).endswith(fake)


async def test_offers_without_end_that_nobody_reads_are_bounded():
    limit = 50_000_000
    async with attacked(message_bytes_limit=limit) as (channel, peer):
        before_bytes = pool.statistics()["in_use_bytes"]
        offers = b"".join(offer(n, 10_000_000, 1) for n in range(500))
        peer.sendall(offers + PREFIX.pack(CLOSE, 0, 0, 0, 0, 0))
        await until(lambda: channel.statistics()["fallbacks_received"])
        assert pool.statistics()["in_use_bytes"] - before_bytes < 3 * limit
        assert not channel.closed


@pytest.mark.parametrize("server_side", [True, False])
async def test_paths_that_nobody_asked_for(server_side):
    near, far = unix_pair()
    near, far = new_channel(near, False), new_channel(far, True)
    await asyncio.gather(near.open(), far.open())
    sender, target = (near, far) if server_side else (far, near)
    sender.send_paths(b"\x80")
    with pytest.raises(ProtocolError, match="paths that nobody asked for"):
        await receive(target)
    with pytest.raises(ProtocolError, match="paths that nobody asked for"):
        await receive(sender)
    near.abort(), far.abort()


class Reader:
    """A negotiator that reads what the client says, and chooses nothing."""

    def await_client(self, channel):
        channel.choice = "nothing yet"

    def complete_as_server(self, channel, content):
        decode_found(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x90", b"\x81\xa3cma\x01", b"\xff" * 4096],
    ids=["empty", "a list", "no reason", "no msgpack"],
)
async def test_malformed_paths_are_answered_with_an_error_record(content):
    near, far = unix_pair()
    near, far = new_channel(near, False), new_channel(far, True, Reader())
    await asyncio.gather(near.open(), far.open())
    near.send_paths(content)
    with pytest.raises(ProtocolError):
        await receive(far)
    with pytest.raises(ProtocolError, match="the peer ended the connection"):
        await receive(near)
    near.abort(), far.abort()


async def test_paths_come_once():
    near, far = unix_pair()
    near, far = new_channel(near, False), new_channel(far, True, Reader())
    await asyncio.gather(near.open(), far.open())
    for _ in range(2):
        near.send_paths(b"\x80")
    with pytest.raises(ProtocolError, match="nobody asked for"):
        await receive(far)
    near.abort(), far.abort()

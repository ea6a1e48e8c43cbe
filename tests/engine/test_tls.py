"""Channels over TLS: OpenSSL's requests, and wake-ups of the loop."""

import asyncio
import contextlib
import ssl

import numpy as np
import pytest

from dask_fabric import config
from dask_fabric.engine.channel import Channel
from dask_fabric.engine.tls_transport import TLSTransport
from dask_fabric.errors import ChannelClosedError
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.hello import Hello

from .conftest import fd_of, low_water_bytes, tcp_pair

SIZES = [0, 100, 16_384, 65_536, 70_000, 1 << 20, 5_000_000]


class Renegotiating:
    """A context whose sockets do not encrypt, and raise like OpenSSL in a renegotiation."""

    def __init__(self):
        self.send_errors, self.receive_errors = [], []
        self.send_count = self.receive_count = 0
        self.held = b""

    def wrap_socket(self, sock, **options):
        self.sock = sock
        return self

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def do_handshake(self):
        pass

    def getpeercert(self):
        return {}

    def cipher(self):
        return "none", "TLSv1.2", 0

    def pending(self):
        return 0

    def send(self, data):
        self.send_count += 1
        if self.send_errors:
            raise self.send_errors.pop()
        return self.sock.send(data)

    def recv_into(self, room, nbytes):
        self.receive_count += 1
        if self.receive_errors:
            self.held = self.sock.recv(nbytes)  # nothing is left that would wake the loop
            raise self.receive_errors.pop()
        if self.held:
            nbytes = len(self.held)
            room[:nbytes], self.held = self.held, b""
            return nbytes
        try:
            return self.sock.recv_into(room, nbytes)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None


def new_tls_channel(sock, server_side, ssl_context):
    return Channel(
        asyncio.get_running_loop(),
        TLSTransport(sock, ssl_context, server_side),
        Handshake(Hello(scheme="fabric+tls"), server_side=server_side),
        config.load(),
    )


@contextlib.asynccontextmanager
async def opened(near_context, far_context):
    near, far = tcp_pair()
    pair = new_tls_channel(near, False, near_context), new_tls_channel(far, True, far_context)
    try:
        await asyncio.gather(*(channel.open() for channel in pair))
        yield pair
    finally:
        for channel in pair:
            channel.abort()


@pytest.fixture
def contexts(temporary_security):
    return (
        temporary_security.get_connection_args("client")["ssl_context"],
        temporary_security.get_listen_args("scheduler")["ssl_context"],
    )


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def receive(channel):
    return channel.receive_nowait() or await channel.receive()


async def test_a_send_that_wants_to_read_waits_for_the_peer_and_does_not_spin():
    context = Renegotiating()
    async with opened(context, Renegotiating()) as (near, far):
        await turns(5)
        context.send_errors = [ssl.SSLWantReadError()] * 2
        before = context.send_count
        near.send(b"held", [])
        await turns(50)
        assert context.send_count - before <= 2  # at once, and at the end of the turn
        assert near.pending_bytes
        context.send_errors.clear()
        far.send(b"answer", [])
        assert (await receive(near))[0] == b"answer"
        assert (await receive(far))[0] == b"held"
        assert near.pending_bytes == 0


async def test_a_receive_that_wants_to_write_waits_for_room_in_the_socket():
    context = Renegotiating()
    async with opened(context, Renegotiating()) as (near, far):
        await turns(5)
        context.receive_errors = [ssl.SSLWantWriteError()]
        far.send(b"message", [])
        assert (await receive(near))[0] == b"message"
        before = context.receive_count
        await turns(50)
        assert context.receive_count == before
        near.send(b"back", [])
        assert (await receive(far))[0] == b"back"


async def test_what_came_before_a_write_failed_stays_readable():
    """A write notices that the peer has sent its last messages and closed."""
    context = Renegotiating()
    async with opened(context, Renegotiating()) as (near, far):
        await turns(5)
        context.send_errors = [ssl.SSLWantWriteError()]
        near.send(b"lost", [])
        assert near.pending_bytes
        far.send(b"last", [])
        far._uncork()
        context.send_errors = [BrokenPipeError(32, "Broken pipe")]
        near._on_writable()  # before the loop has seen that something came
        assert near.closed
        assert (await receive(near))[0] == b"last"
        with pytest.raises(ChannelClosedError, match="Broken pipe"):
            await receive(near)


async def test_frames_arrive_as_they_were(contexts):
    async with opened(*contexts) as (near, far):
        for size in SIZES:
            sent = [np.random.default_rng(size).integers(0, 256, size, "u1"), b"x" * 10]
            near.send(b"header", sent)
            header, frames = await receive(far)
            assert bytes(header) == b"header"
            assert [bytes(frame) for frame in frames] == [bytes(frame) for frame in sent]


async def test_a_large_message_wakes_for_many_records_and_a_small_one_for_each(contexts):
    async with opened(*contexts) as (near, far):
        near.send(b"h", [np.zeros(30_000_000, "u1")])
        pending, fd = far.receive(), fd_of(far)
        seen = set()
        while not pending.done():
            await asyncio.sleep(0)
            seen.add(low_water_bytes(fd))
        assert max(seen) > 100_000
        assert low_water_bytes(fd) == 1
        near.send(b"small", [])
        assert (await receive(far))[0] == b"small"


async def test_a_peer_that_dies_in_a_large_message_is_noticed_below_the_low_water(contexts):
    async with opened(*contexts) as (near, far):
        near.send(b"h", [np.zeros(30_000_000, "u1")])
        pending = far.receive()
        while not far.statistics()["bytes_received"]:
            await asyncio.sleep(0)
        near.abort()
        with pytest.raises(ChannelClosedError):
            await pending


async def test_a_cancelled_opening_hears_no_more_of_the_peer(contexts):
    near, far = tcp_pair()
    with far:
        loop, complaints = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda loop, context: complaints.append(context))
        channel = new_tls_channel(near, False, contexts[0])
        opening = asyncio.ensure_future(channel.open())
        await asyncio.sleep(0)
        far.send(b"no TLS at all")
        loop.call_soon(opening.cancel)  # and the bytes are found in the same turn
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert channel.closed and complaints == []

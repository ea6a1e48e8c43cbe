"""Channels over TLS: OpenSSL's requests, and wake-ups of the loop."""

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import ssl
import subprocess
import sys
import threading

import numpy as np
import pytest

from dask_fabric import config
from dask_fabric.engine.channel import Channel
from dask_fabric.engine.tls_transport import tls_transport
from dask_fabric.errors import ChannelClosedError
from dask_fabric.paths import openssl
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
        tls_transport(sock, ssl_context, server_side, 1 << 16),
        Handshake(Hello(scheme="fabric+tls"), server_side=server_side),
        config.load(),
    )


@pytest.fixture(autouse=True, params=["OpenSSL called directly", "Python's methods"])
def is_native(request, monkeypatch):
    """Where Python's OpenSSL cannot be called, its own methods are used."""
    native = request.param == "OpenSSL called directly"
    if native and not openssl.is_available:
        pytest.skip("this Python's OpenSSL cannot be called directly")
    monkeypatch.setattr(openssl, "is_available", native)
    return native


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


async def test_native_threads_move_what_is_large(contexts, is_native):
    """Without the GIL, which the tasks of a worker may hold."""
    async with opened(*contexts) as (near, far):
        sent = np.arange(10_000_000, dtype="u4").view("u1")
        near.send(b"h", [sent])
        _, (frame,) = await receive(far)
        assert frame == memoryview(sent)
        assert (near.statistics()["send_jobs"] > 0) == is_native
        assert (far.statistics()["receive_jobs"] > 0) == is_native


async def test_large_and_small_messages_pass_each_other_both_ways(contexts):
    """The threads and the loop use one session of OpenSSL."""
    async with opened(*contexts) as (near, far):
        data = np.random.default_rng(0).integers(0, 256, 3_000_000, "u1")

        async def send(channel):
            for number in range(40):
                channel.send(b"%d" % number, [data] if number % 4 == 0 else [b"small"] * 3)
                while channel.pending_bytes > 10_000_000:
                    await asyncio.sleep(0)

        async def take(channel):
            for number in range(40):
                header, frames = await receive(channel)
                assert header == b"%d" % number
                assert all(frame == memoryview(data) for frame in frames) or number % 4

        await asyncio.gather(send(near), send(far), take(near), take(far))


@pytest.mark.parametrize("nbytes", [100, 5_000_000])
async def test_a_record_that_was_changed_on_its_way_ends_the_connection(contexts, nbytes):
    near, inside = tcp_pair()
    outside, far = tcp_pair()
    spoiled = asyncio.Event()

    async def pump(source, sink, spoils):
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, 1 << 16):
                if spoils and spoiled.is_set():
                    data = data[:-1] + bytes([data[-1] ^ 1])
                await loop.sock_sendall(sink, data)

    pumps = asyncio.gather(pump(inside, outside, True), pump(outside, inside, False))
    pair = new_tls_channel(near, False, contexts[0]), new_tls_channel(far, True, contexts[1])
    await asyncio.gather(*(channel.open() for channel in pair))
    pair[0].send(b"good", [])
    assert (await receive(pair[1]))[0] == b"good"
    spoiled.set()
    pair[0].send(b"bad", [np.zeros(nbytes, "u1")])
    with pytest.raises(ChannelClosedError):
        await receive(pair[1])
    for end in (*pair, inside, outside):
        end.abort() if isinstance(end, Channel) else end.close()
    pumps.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await pumps


async def test_pages_that_are_slow_to_read_stop_neither_the_loop_nor_the_other_direction(
    contexts, is_native, slow_memory
):
    if not is_native:
        pytest.skip("Python's methods read them in the loop")
    memory = slow_memory(5_000_000)
    async with opened(*contexts) as (near, far):
        near.send(b"slow", [memory.view])
        reading = asyncio.ensure_future(receive(far))
        while not memory.is_awaited():
            await asyncio.sleep(0)
        far.send(b"there", [np.ones(1_000_000, "u1")])
        header, (frame,) = await receive(near)  # by the session of the thread that waits
        assert header == b"there" and frame.nbytes == 1_000_000
        memory.arrive()
        header, (frame,) = await reading
        assert header == b"slow" and bytes(frame) == bytes(memory.view)


async def test_an_abort_does_not_wait_for_a_page_and_keeps_the_session(
    contexts, is_native, slow_memory, quarantined
):
    if not is_native:
        pytest.skip("Python's methods read them in the loop")
    memory = slow_memory(5_000_000)
    async with opened(*contexts) as (near, _):
        near.send(b"slow", [memory.view])
        while not memory.is_awaited():
            await asyncio.sleep(0)
        near.abort()
        assert quarantined() == 1
    del near
    memory.arrive()
    while quarantined():
        await asyncio.sleep(0)


FORWARDER = """
import os, socket, sys, threading
left, right = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
def forward(source, sink, moved=0):
    while data := source.recv(1 << 16):
        sink.sendall(data)
        if moved >> 20 != (moved := moved + len(data)) >> 20:
            os.write(1, b"1 MiB more")
threading.Thread(target=forward, args=(right, left), daemon=True).start()
forward(left, right)
"""


async def test_native_threads_go_on_while_a_task_holds_the_gil(contexts, is_native):
    """Also if the loop waits for the session, and then for the GIL."""
    if not is_native:
        pytest.skip("Python's methods need the GIL")
    near, left = tcp_pair()
    right, far = tcp_pair()
    for sock in (near, left, right, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    left.setblocking(True), right.setblocking(True)
    fds = left.fileno(), right.fileno()
    command = [sys.executable, "-c", FORWARDER, *map(str, fds)]
    forwarder = subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE)
    left.close(), right.close()
    progress = forwarder.stdout.fileno()
    os.set_blocking(progress, False)
    moved, ended = [], threading.Event()

    def hold_the_gil():
        poll = ctypes.PyDLL(None).poll
        state = (ctypes.c_int * 2)(progress, select.POLLIN)
        while not ended.is_set():
            with contextlib.suppress(BlockingIOError):
                os.read(progress, 1 << 16)
            moved.append(poll(state, 1, 20_000))
            ended.wait(0.001)

    async def take_all():
        while True:
            await receive(near)

    pair = new_tls_channel(near, False, contexts[0]), new_tls_channel(far, True, contexts[1])
    await asyncio.gather(*(channel.open() for channel in pair))
    near, far = pair
    near.send(b"large", [np.zeros(200_000_000, "u1")])
    large, small = asyncio.ensure_future(receive(far)), asyncio.ensure_future(take_all())
    while not far.statistics()["receive_jobs"]:
        await asyncio.sleep(0)
    task = threading.Thread(target=hold_the_gil)
    task.start()
    while len(moved) < 20 and all(moved):
        far.send(b"small", [])
        await asyncio.sleep(0)
    ended.set()
    forwarder.kill()
    task.join(60)
    near.abort(), far.abort()
    await asyncio.gather(large, small, return_exceptions=True)
    forwarder.communicate()
    assert all(moved)


async def test_errors_of_openssl_do_not_show_in_other_connections_of_the_thread(contexts):
    near, far = tcp_pair()
    other = [
        contexts[0].wrap_socket(near, do_handshake_on_connect=False),
        contexts[1].wrap_socket(far, server_side=True, do_handshake_on_connect=False),
    ]
    for end in other * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()

    def fill():
        while True:
            other[1].send(b"until the socket is full" * 1000)

    with pytest.raises(ssl.SSLWantWriteError):
        fill()
    async with opened(*contexts) as (near, far):
        near.abort()
        with pytest.raises(ChannelClosedError):
            await receive(far)
        with pytest.raises(ssl.SSLWantWriteError):
            fill()
    for end in other:
        end.close()


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

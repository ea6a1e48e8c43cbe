"""Peers of other protocols: recognised early, with a reply that their own software shows.

The real ones run here: Dask's own tcp connector and listener, a TLS client and an HTTP client.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ssl
import struct
from collections.abc import AsyncIterator

import distributed.comm
import distributed.comm.tcp
import msgpack
import pytest

from dask_fabric.errors import ForeignProtocolError, ProtocolError
from dask_fabric.wire.foreign import PREAMBLE_BYTES, SEEN_BY_CLIENT, SEEN_BY_SERVER
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.hello import Hello

HELLO = Hello(scheme="fabric")


def feed(data: bytes, server_side: bool) -> tuple[ForeignProtocolError, int]:
    """Feed *data* byte by byte; return the error and how many bytes it took."""
    side = Handshake(HELLO, server_side)
    side.data_to_send()
    for count in range(1, len(data) + 1):
        try:
            side.receive(data[count - 1 : count])
        except ForeignProtocolError as error:
            return error, count
    raise AssertionError("not recognised")


def dask_message(frame_bytes: int) -> bytes:
    return struct.pack("<QQQ", 16 + frame_bytes, 1, frame_bytes) + bytes(frame_bytes)


@pytest.mark.parametrize(
    ("data", "byte_count", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", 4, "HTTP client"),
        (b"OPTIONS * HTTP/1.1\r\n", 8, "HTTP client"),
        (b"PRI * HTTP/2.0\r\n", 12, "HTTP client"),
        (b"\x16\x03\x01\x02\x00\x01", 3, "give both sides certificates, or fabric.auth.encrypt"),
        (b"SSH-2.0-OpenSSH", 4, "SSH client"),
        (dask_message(60), 16, "use fabric:// in the client's address"),
        (dask_message(0x89 - 16), 16, "tcp://"),
        (b"HTTP/1.1 200 OK", 3, "its first bytes are b'HTT'"),
        (b"\x89PNG\r\n\x1a\n", 3, "its first bytes are b'\\x89PN'"),
        (bytes(20), 16, "its first bytes are b'\\x00"),
        (struct.pack("<QQ", 8, 1), 16, "its first bytes are b'\\x08"),
        (b"hi\n", 3, "its first bytes are b'hi\\n'"),
    ],
)
def test_server_recognises(data, byte_count, expected):
    error, count = feed(data, server_side=True)
    assert expected in str(error) and "fabric://" in str(error)
    assert count == byte_count


@pytest.mark.parametrize(
    ("data", "byte_count", "expected"),
    [
        (b"HTTP/1.1 400 Bad", 5, "speaks HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", 3, "use fabric+tls://"),
        (b"\x16\x03\x03\x00\x02\x02\x46", 3, "use fabric+tls://"),
        (b"SSH-2.0-OpenSSH", 4, "speaks SSH"),
        (dask_message(60), 16, "use tcp:// in the address"),
        (b"220 mail.example", 3, "its first bytes are b'220'"),
    ],
)
def test_client_recognises(data, byte_count, expected):
    error, count = feed(data, server_side=False)
    assert expected in str(error)
    assert count == byte_count and error.reply == b""


def test_nothing_needs_more_than_a_preamble():
    for foreign in SEEN_BY_CLIENT + SEEN_BY_SERVER:
        assert all(1 < len(prefix) <= PREAMBLE_BYTES for prefix in foreign.prefixes)


def test_dask_tcp_reply_is_one_whole_message():
    error, _ = feed(dask_message(60), server_side=True)
    total, frame_count = struct.unpack_from("<QQ", error.reply)
    assert total == len(error.reply) - 8
    lengths = struct.unpack_from(f"<{frame_count}Q", error.reply, 16)
    assert 8 + 8 + 8 * frame_count + sum(lengths) == len(error.reply)
    assert msgpack.unpackb(error.reply[16 + 8 * frame_count :][: lengths[0]]) == {
        "__Serialized__": 1
    }
    assert error.reply.endswith(str(error).encode())


# ---- against the real software


class Server:
    """A fabric server as far as the handshake; keeps the error of its last connection."""

    def __init__(self) -> None:
        self.error: ProtocolError | None = None
        self.finished = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        side = Handshake(HELLO, server_side=True)
        try:
            while not side.done:
                side.receive(await reader.read(1))
        except ProtocolError as error:
            self.error = error
            writer.write(error.reply)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):  # drained: unread bytes would send a reset
                while await reader.read(4096):
                    pass
        writer.close()
        self.finished.set()


@contextlib.asynccontextmanager
async def running_server() -> AsyncIterator[tuple[Server, int]]:
    state = Server()
    server = await asyncio.start_server(state.serve, "127.0.0.1", 0)
    async with server:
        yield state, server.sockets[0].getsockname()[1]
        await state.finished.wait()


async def test_dask_tcp_connector_raises_our_text():
    async with running_server() as (server, port):
        connector = distributed.comm.tcp.TCPConnector()
        comm = await connector.connect(f"127.0.0.1:{port}")
        await comm.write(comm.handshake_info())
        with pytest.raises(TypeError, match="use fabric:// in the client's address"):
            await comm.read()
        await comm.close()
    assert "tcp:// or tls:// in its address" in str(server.error)


async def test_dask_connect_ends_at_once_with_our_text():
    async with running_server() as (_, port):
        with pytest.raises(TypeError, match="use fabric:// in the client's address"):
            await distributed.comm.connect(f"tcp://127.0.0.1:{port}", timeout=60)


async def test_client_at_dask_tcp_listener_and_the_listener_lives_on():
    handled = asyncio.Queue()
    listener = await distributed.comm.listen("tcp://127.0.0.1", handled.put)
    try:
        host, port = listener.get_host_port()
        reader, writer = await asyncio.open_connection(host, port)
        side = Handshake(HELLO, server_side=False)
        writer.write(side.data_to_send())
        with pytest.raises(ForeignProtocolError, match="speaks Dask's plain tcp://"):
            while True:
                side.receive(await reader.read(1))
        with contextlib.suppress(ConnectionError):
            await reader.read()  # to the end: the listener refuses our preamble at once
        writer.close()
        comm = await distributed.comm.connect(listener.contact_address)
        await (await handled.get()).close()
        await comm.close()
        assert handled.empty()
    finally:
        listener.stop()


async def test_tls_client_gets_an_alert():
    async with running_server() as (server, port):
        with pytest.raises(ssl.SSLError, match=r"(?i)alert.handshake.failure"):
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())
    assert "not encrypted" in str(server.error)


async def test_http_client_gets_a_response():
    def request(port: int) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        with contextlib.closing(connection):
            connection.request("GET", "/status")
            response = connection.getresponse()
            return response.status, response.read().decode()

    async with running_server() as (server, port):
        status, body = await asyncio.to_thread(request, port)
    assert status == 400
    assert "serves no web page" in body and body.strip() == str(server.error)

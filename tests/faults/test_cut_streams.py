"""Every record and the hello, cut at each byte and with each field at its limits, both ways.

Over TCP, Unix sockets and TLS. A side that waits in its loop for the rest answers nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct

import dask
import pytest
from distributed.comm import CommClosedError, connect
from distributed.comm.registry import get_backend
from distributed.utils import wait_for

from dask_fabric.comm.network import attempts, unix
from dask_fabric.wire.hello import Hello

from .conftest import PATIENCE_SECONDS, check_good_client, nothing_left, serving

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, ERROR, CLOSE, REQUEST, FRAMES, PATHS = range(1, 8)
AT_ONCE_COUNT = 16
LIMITS = (0, 1, (1 << 8) - 1, (1 << 16) - 1, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)

RECORDS = {
    "message": PREFIX.pack(MESSAGE, 0, 0, 1, 3, 0) + ENTRY.pack(2, 0, 0, 0, 0) + b"hdrfr",
    "offer": PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(65_536, 1, 0, 0, 8) + bytes(8),
    "acknowledge": PREFIX.pack(ACKNOWLEDGE, 0, 0, 0, 0, 0),
    "error": PREFIX.pack(ERROR, 0, 0, 0, 7, 0) + b"enough!",
    "close": PREFIX.pack(CLOSE, 0, 0, 0, 0, 0),
    "request": PREFIX.pack(REQUEST, 0, 0, 0, 0, 0),
    "frames": PREFIX.pack(FRAMES, 0, 0, 1, 0, 0) + ENTRY.pack(65_536, 0, 0, 0, 0),
    "paths": PREFIX.pack(PATHS, 0, 0, 0, 1, 0) + b"\x80",
}
# Of the prefix, and of the first entry of a table: where each field begins, and its bytes.
FIELDS = (
    (0, 1),
    (1, 1),
    (2, 2),
    (4, 4),
    (8, 8),
    (16, 8),
    (24, 8),
    (32, 1),
    (33, 1),
    (34, 2),
    (36, 4),
)
HELLO_FIELDS = ((0, 8), (8, 1), (9, 1), (10, 2), (12, 4))


def variants(stream: bytes, fields) -> list[bytes]:
    """The stream cut at each byte, and with each field at each limit."""
    found = [stream[:cut] for cut in range(len(stream) + 1)]
    for begin, width in fields:
        if begin + width <= len(stream):
            for value in LIMITS:
                changed = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
                found.append(stream[:begin] + changed + stream[begin + width :])
    return found


def attacks(scheme: str, address: str = "") -> list[bytes]:
    hello = Hello(scheme=scheme, address=address).encode()
    found = variants(hello[:24], HELLO_FIELDS) + [hello[:cut] for cut in range(24, len(hello), 7)]
    for record in RECORDS.values():
        found += [hello + variant for variant in variants(record, FIELDS)]
    return found


@pytest.fixture(params=["tcp", "unix", pytest.param("tls", marks=pytest.mark.slow)])
def stream(request):
    """The kind of stream that is attacked."""
    return request.param


@pytest.fixture
def scheme(stream):
    return "fabric+tls" if stream == "tls" else "fabric"


async def open_stream(stream, listener, connect_args):
    host, port = listener.get_host_port()
    if stream == "tls":
        context = connect_args["ssl_context"]
        return await asyncio.open_connection(host, port, ssl=context)
    if stream == "tcp":
        return await asyncio.open_connection(host, port)
    sock, _, _ = unix.dial([(socket.AF_INET, (host, port))])
    return await asyncio.open_connection(sock=sock)


async def attack(stream, listener, connect_args, data: bytes) -> None:
    """Send *data* and then nothing; the other side ends the connection when ours ends."""
    reader, writer = await open_stream(stream, listener, connect_args)
    try:
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()
            if stream != "tls":  # which Python cannot end in one direction
                writer.write_eof()
                await wait_for(reader.read(), PATIENCE_SECONDS)
    finally:
        writer.transport.abort()


async def test_a_listener_goes_on(stream, scheme, listen_args, connect_args, caplog):
    caplog.set_level(logging.INFO)
    async with serving(scheme, listen_args) as listener:
        await check_good_client(listener, connect_args)
        data = attacks(scheme)
        async with nothing_left(rss=True):
            for first in range(0, len(data), AT_ONCE_COUNT):
                some = data[first : first + AT_ONCE_COUNT]
                attempts = [attack(stream, listener, connect_args, each) for each in some]
                await asyncio.gather(*attempts, check_good_client(listener, connect_args))
    assert not [record for record in caplog.records if record.exc_info]
    assert len(caplog.records) <= len(data)


async def test_a_client_goes_on(stream, scheme, listen_args, connect_args, caplog, monkeypatch):
    """The same from a server: what it says first is the hello, and then records."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(attempts, "_LONGEST_PAUSE_SECONDS", 0.0)
    data = b""
    families = []

    async def serve(reader, writer):
        families.append(writer.get_extra_info("socket").family)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            begin = await reader.readexactly(16)
            await reader.readexactly(struct.unpack_from("<I", begin, 12)[0])
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connect_and_read():
        connector = get_backend(scheme).get_connector()
        comm = await connector.connect(address, **connect_args)
        try:
            while True:
                await comm.read()
        finally:
            comm.abort()

    async with contextlib.AsyncExitStack() as stack:
        context = listen_args.get("ssl_context")
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        await stack.enter_async_context(server)
        address = unix.address_of(server.sockets[0].getsockname())
        if stream == "unix":
            for sock, _ in unix.bind_beside(server.sockets, AT_ONCE_COUNT):
                beside = await asyncio.start_unix_server(serve, sock=sock)
                await stack.enter_async_context(beside)
        await stack.enter_async_context(nothing_left())
        for variant in attacks(scheme, address):
            data = variant
            try:
                await wait_for(connect_and_read(), PATIENCE_SECONDS)
            except (OSError, CommClosedError):
                pass
            except Exception as error:  # a header of three letters is no message of Dask's
                assert type(error).__module__.startswith(("msgpack", "dask_fabric")), error
    assert (socket.AF_UNIX in families) == (stream == "unix")
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_server_that_says_no_more_than_its_hello_is_given_up(monkeypatch):
    """Dask itself would wait for the server's half of its handshake for ever."""
    monkeypatch.setattr(attempts, "_LONGEST_PAUSE_SECONDS", 0.0)

    async def serve(reader, writer):
        begin = await reader.readexactly(16)
        await reader.readexactly(struct.unpack_from("<I", begin, 12)[0])
        writer.write(Hello(scheme="fabric+tcp").encode())
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = unix.address_of(server.sockets[0].getsockname())
        with dask.config.set({"fabric.timeouts.handshake": 0.5}):
            with pytest.raises(OSError) as caught:
                await wait_for(connect(f"fabric+tcp://{address}"), PATIENCE_SECONDS)
            chain = f"{caught.value!r} {caught.value.__cause__!r}"
            assert "has not begun Dask's handshake within 0.5 seconds" in chain

"""Dask's handshake: what a listener accepts as one, and its errors about the rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import struct

import msgpack
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.utils import wait_for

from dask_fabric.comm.dask_handshake import decode
from dask_fabric.comm.network.refusals import LINE_LIMIT
from dask_fabric.errors import MessageTooLargeError, ProtocolError
from dask_fabric.wire.hello import Hello

PREFIX = struct.Struct("<BBHIQQ")
GOOD = {"compression": None, "python": [3, 11, 7], "pickle-protocol": 5}
HELLO = Hello(scheme="fabric+tcp").encode()


def message(header: bytes, sequence: int = 0) -> bytes:
    return PREFIX.pack(1, 0, 0, 0, len(header), sequence) + header


def pickled(path) -> bytes:
    """A message whose only payload makes a directory when it is unpickled."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path),)

    data = pickle.dumps(Bomb())
    table = struct.pack("<BI", 0xC1, 1) + struct.pack("<BIQ", 3, 0, len(data)) + data
    return table + msgpack.packb({"__Payload__": 1})


BAD = {
    "an array": (b"\x90", "not a map"),
    "nothing": (b"\xc0", "not a map"),
    "text": (b"\xa1x", "not a map"),
    "no msgpack": (b"\xc1", "cannot be decoded"),
    "deep": (b"\x91" * 3000, "cannot be decoded"),
    "keys that are maps": (b"\x81\x80\x01", "cannot be decoded"),
    "an empty map": (b"\x80", "lacks 'compression'"),
    "another protocol of pickle": (
        msgpack.packb({**GOOD, "pickle-protocol": "x\n"}), "'pickle-protocol' in Dask's handshake",
    ),
    "an enum": (
        msgpack.packb({**GOOD, "x": {"__Enum__": True, "__module__": "os", "name": 1}}), "",
    ),
    "too large": (msgpack.packb({**GOOD, "x": "x" * 4000, "y": "y" * 200}), "too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_handshake_of_dask(name):
    header, expected = BAD[name]
    if not expected:
        assert decode(header, [])["x"] == {"__Enum__": True, "__module__": "os", "name": 1}
        return
    with pytest.raises(ProtocolError, match=expected) as caught:
        decode(header, [])
    assert "\n" not in str(caught.value) and caught.value.reply


def test_a_handshake_is_read_as_distributed_reads_it():
    assert decode(memoryview(msgpack.packb(GOOD)), []) == {**GOOD, "python": (3, 11, 7)}
    with pytest.raises(ProtocolError, match="too large"):
        decode(msgpack.packb(GOOD), [b"frame"])


async def send(listener, data: bytes, end: bool = False) -> bytes:
    """Send bytes as a stranger, and give the reply until the listener closes."""
    reader, writer = await asyncio.open_connection(*listener.get_host_port())
    writer.write(data)
    if end:
        writer.write_eof()
    try:
        return await wait_for(reader.read(), 10)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def echo(comm):
    while True:
        await comm.write(await comm.read())


def log_of(caplog) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno >= logging.WARNING and r.name != "asyncio"]


STRANGERS = {
    **{name: (HELLO + message(header), text) for name, (header, text) in BAD.items() if text},
    # Refused before it arrives.
    "a first message that claims much": (HELLO + PREFIX.pack(1, 0, 0, 0, 5000, 0), "too large"),
    "a first message that claims a frame": (
        HELLO + PREFIX.pack(1, 0, 0, 1, 0, 0) + struct.pack("<QQ", 1 << 20, 0), "too large",
    ),
    "limits below what a handshake takes": (
        Hello(scheme="fabric+tcp", limits={"message": 0}).encode(), "'limits'",
    ),
    "no hello": (b"x" * 16, "does not speak fabric+tcp"),
    "a hello that is no map": (
        struct.pack("<8sBBHI", b"\x89fabric\x8a", 1, 0, 0, 1) + b"\xc0", "not a map",
    ),
    "a hello and another one": (HELLO + HELLO, "refused"),
    "a message that cannot be decoded": (
        HELLO + message(msgpack.packb(GOOD)) + message(b"\xc1", 1), "Closing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
async def test_a_stranger_costs_one_line_of_the_log(name, caplog):
    data, expected = STRANGERS[name]
    async with listen("fabric+tcp://127.0.0.1", ended(echo)) as listener:
        await send(listener, data)
        comm = await connect(listener.contact_address)
        await comm.close()
    (record,) = log_of(caplog)
    assert expected in record.message and record.exc_info is None
    assert "\n" not in record.message and len(record.message) < 500


def ended(handler):
    """What a server of Dask does when a comm ends."""

    async def handle(comm):
        with contextlib.suppress(CommClosedError):
            await handler(comm)

    return handle


async def test_many_strangers_cost_few_lines(caplog):
    async with listen("fabric+tcp://127.0.0.1", ended(echo)) as listener:
        for _ in range(LINE_LIMIT + 5):
            await send(listener, HELLO + message(b"\xc0"))
        address = listener.listen_address
    messages = [record.message for record in log_of(caplog)]
    assert len(messages) == LINE_LIMIT + 1
    assert messages[-1] == f"5 more connections to {address} were refused in the last minute"


async def test_a_handler_that_cannot_take_what_came_costs_one_line(caplog):
    async def handle(comm):
        raise TypeError(f"Bad message type: {await comm.read()}")

    async with listen("fabric+tcp://127.0.0.1", handle) as listener:
        await send(listener, HELLO + message(msgpack.packb(GOOD)) + message(b"\xa3a\nb", 1))
    (record,) = log_of(caplog)
    assert "TypeError: Bad message type: a b (test_dask_handshake.py" in record.message
    assert record.exc_info is None


async def test_a_peer_that_accepts_next_to_nothing_costs_few_lines(caplog):
    async def serve(comm):
        for _ in range(LINE_LIMIT + 5):
            with pytest.raises(MessageTooLargeError):
                await comm.write("x" * 1000)
        await comm.write("done")
        await comm.close()

    limits = {"header": 256, "message": 256}
    async with listen("fabric+tcp://127.0.0.1", serve) as listener:
        hello = Hello(scheme="fabric+tcp", limits=limits).encode()
        assert b"done" in await send(listener, hello + message(msgpack.packb(GOOD)))
    lines = [record for record in log_of(caplog) if "Could not send a message" in record.message]
    assert len(lines) <= LINE_LIMIT and not any(line.exc_info for line in lines)


async def test_nothing_is_unpickled_before_the_handshake(tmp_path, caplog):
    path = tmp_path / "unpickled"
    async with listen("fabric+tcp://127.0.0.1", ended(echo)) as listener:
        await send(listener, HELLO + message(pickled(path)))
        assert not path.exists() and len(log_of(caplog)) == 1
        await send(
            listener, HELLO + message(msgpack.packb(GOOD)) + message(pickled(path), 1), end=True
        )
        assert path.exists()  # it works


async def test_a_client_reads_a_servers_handshake_as_strictly():
    served = asyncio.Event()

    async def serve(reader, writer):
        await reader.readuntil(b"stream")
        writer.write(HELLO + message(b"\xc0"))
        await reader.read()
        writer.close()
        await writer.wait_closed()
        served.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(CommClosedError, match="Dask's handshake cannot be decoded"):
            await wait_for(connect(f"fabric+tcp://{host}:{port}"), 10)
        await wait_for(served.wait(), 10)

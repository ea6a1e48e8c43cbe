"""One side's part in choosing paths, if either side does not follow the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import SimpleNamespace

import pytest
from distributed.comm import listen
from distributed.utils import wait_for

from dask_fabric import config
from dask_fabric.comm.channels.negotiator import Negotiator, boot_id
from dask_fabric.errors import ProtocolError, RefusedError
from dask_fabric.wire.handshake import Ended
from dask_fabric.wire.hello import PREAMBLE, Hello
from dask_fabric.wire.records import error_record, paths_record

PREFIX = struct.Struct("<BBHIQQ")
ERROR = 3
UCX = {"version": "1", "transports": ("tcp",), "address": b"a", "token": 1}


@pytest.fixture
def sockets():
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_a_client_that_refuses_late_tells_the_server_why(sockets):
    hello = Hello(scheme="fabric+ucx", paths=("stream", "ucx"), described={"ucx": UCX})
    negotiator = Negotiator(sockets[0], hello, False, config.load())
    server = Hello(refused={"ucx": "not today"})
    channel = SimpleNamespace(peer=server, handshake=Ended(server, False))
    with pytest.raises(RefusedError, match="server: not today") as caught:
        negotiator.complete_as_client(channel)
    assert caught.value.reply == error_record(str(caught.value))


def test_paths_that_nobody_asked_for_are_a_violation(sockets):
    negotiator = Negotiator(sockets[0], Hello(), True, config.load())
    negotiator.answer(Hello())
    with pytest.raises(ProtocolError, match="paths that nobody asked for"):
        negotiator.complete_as_server(SimpleNamespace(peer=Hello()), b"\x80")


async def ignore(comm):
    await comm.close()


@pytest.mark.parametrize("boot", ["", "of this host"])
async def test_over_a_socket(boot):
    """A client that has only the stream but sends PATHS, and one that must send it."""
    hello = Hello(scheme="fabric")
    if boot:
        hello = Hello(
            paths=("stream", "cma"),
            boot=boot_id(),
            described={"cma": {"address": 1, "nonce": b"n" * 16}},
        )
    async with listen("fabric://127.0.0.1", ignore) as listener:
        reader, writer = await asyncio.open_connection(*listener.get_host_port())
        writer.write(hello.encode() + paths_record(b"\x80"))
        head = await wait_for(reader.readexactly(PREAMBLE.size), 10)
        await wait_for(reader.readexactly(PREAMBLE.unpack(head)[-1]), 10)
        answer = await wait_for(reader.read(), 10)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    # The pid of such a client is another process's, so that the server has nothing to ask it for.
    assert b"paths that nobody asked for" in answer

"""Connecting to hosts with several addresses."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dask_fabric.comm import connector
from dask_fabric.comm.connector import _connect_to_any

IPV4 = socket.AF_INET


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield (IPV4, listening.getsockname())


@pytest.fixture
def refusing():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield (IPV4, unused.getsockname())


@pytest.fixture
def silent():
    """A full backlog: the kernel drops further connections, like lost packets."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listening,
        socket.create_connection(listening.getsockname()),
    ):
        yield (IPV4, listening.getsockname())


async def test_the_first_that_answers(server, refusing):
    loop = asyncio.get_running_loop()
    with await _connect_to_any(loop, [refusing, server]) as sock:
        assert sock.getpeername() == server[1]
        assert sock.gettimeout() == 0.0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_silent_address_does_not_hold_up_the_next(server, silent, monkeypatch):
    monkeypatch.setattr(connector, "_STAGGER_SECONDS", 0.001)
    loop = asyncio.get_running_loop()
    with await _connect_to_any(loop, [silent, server]) as sock:
        assert sock.getpeername() == server[1]


async def test_none_answers(refusing):
    loop = asyncio.get_running_loop()
    with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1 port {refusing[1][1]}"):
        await _connect_to_any(loop, [refusing, refusing])
    with pytest.raises(OSError, match="no address"):
        await _connect_to_any(loop, [])


@pytest.mark.parametrize("count", [1, 2])
async def test_a_cancelled_connect_closes_its_sockets(silent, count):
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(_connect_to_any(loop, [silent] * count))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)  # the warning of an unclosed socket would fail this test

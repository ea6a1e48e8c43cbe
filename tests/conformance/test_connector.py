"""Connecting: host names, timely errors, and foreign peers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.comm.core import FatalCommClosedError
from distributed.comm.registry import get_backend
from distributed.utils import wait_for


async def ignore(comm):
    await comm.close()


@contextlib.asynccontextmanager
async def raw_server(answer: bytes | None):
    """Serve a foreign protocol: send *answer* to each client (None: send nothing)."""
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        if answer is not None:
            writer.write(answer)
            with contextlib.suppress(ConnectionError):
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in writers:
            writer.close()
        server.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.3"])
async def test_hosts(scheme, host, listen_args, connect_args):
    async with listen(f"{scheme}://0.0.0.0", ignore, **listen_args) as listener:
        address = f"{scheme}://{host}:{listener.get_host_port()[1]}"
        comm = await connect(address, **connect_args)
        assert comm.peer_address == address
        await comm.close()


async def test_nobody_listens(scheme, connect_args):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(OSError, match="Timed out trying to connect"):
            await connect(address, timeout=0.15, **connect_args)


async def test_an_unknown_name(scheme, connect_args):
    with pytest.raises(OSError):
        await connect(f"{scheme}://no-such-host.invalid:1", timeout=0.2, **connect_args)


async def test_one_attempt_fails_with_oserror(scheme, connect_args):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        location = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(OSError):
            await get_backend(scheme).get_connector().connect(location, **connect_args)


@pytest.mark.parametrize("location", ["127.0.0.1", "::1:1", "[::1:1"])
async def test_a_malformed_address_is_a_valueerror(scheme, location, connect_args):
    with pytest.raises(ValueError):
        await get_backend(scheme).get_connector().connect(location, **connect_args)


async def test_a_silent_peer_does_not_outlast_the_timeout(scheme, connect_args):
    async with raw_server(None) as location:
        with pytest.raises(OSError):
            await wait_for(connect(f"{scheme}://{location}", timeout=0.3, **connect_args), 10)


@pytest.mark.own
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        bytes(64),
    ],
    ids=["http", "ssh", "zeros"],
)
async def test_a_foreign_server_is_a_clear_and_final_error(scheme, answer, connect_args):
    async with raw_server(answer) as location:
        with pytest.raises(FatalCommClosedError, match=location):
            await wait_for(connect(f"{scheme}://{location}", timeout=30, **connect_args), 10)


@pytest.mark.own
async def test_a_plain_dask_server_is_a_clear_and_final_error(scheme, connect_args):
    async with listen("tcp://127.0.0.1", ignore) as listener:
        address = listener.contact_address.replace("tcp://", f"{scheme}://")
        with pytest.raises(FatalCommClosedError):
            await wait_for(connect(address, timeout=30, **connect_args), 10)


@pytest.mark.own
@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(100), b"\xff" * 100]
)
async def test_a_foreign_client_is_turned_away_and_named_in_the_log(
    scheme, request_, listen_args, connect_args, caplog
):
    handled = []
    with caplog.at_level(logging.WARNING, "dask_fabric"):
        async with listen(f"{scheme}://127.0.0.1", handled.append, **listen_args) as listener:
            reader, writer = await asyncio.open_connection(*listener.get_host_port())
            writer.write(request_)
            with contextlib.suppress(ConnectionError):
                answer = await wait_for(reader.read(), 5)
                assert len(answer) < 70_000
            host, port = writer.get_extra_info("sockname")
            writer.close()
    assert not handled
    assert len(caplog.records) == 1
    assert f"{host}:{port}" in caplog.text


@pytest.mark.own
async def test_a_client_that_comes_and_goes_is_no_news(scheme, listen_args, connect_args, caplog):
    with caplog.at_level(logging.WARNING, "dask_fabric"):
        async with listen(f"{scheme}://127.0.0.1", ignore, **listen_args) as listener:
            socket.create_connection(listener.get_host_port()).close()
            comm = await connect(listener.contact_address, **connect_args)
            await comm.close()
    assert not caplog.records


@pytest.mark.own
async def test_a_silent_client_is_dropped_in_time(scheme, listen_args, caplog):
    import dask

    with dask.config.set({"fabric.timeouts.handshake": "50ms"}):
        async with listen(f"{scheme}://127.0.0.1", ignore, **listen_args) as listener:
            reader, writer = await asyncio.open_connection(*listener.get_host_port())
            with contextlib.suppress(ConnectionError):
                await wait_for(reader.read(), 5)
            writer.close()
    assert "no handshake within 0.05 seconds" in caplog.text


async def test_required_encryption(scheme, security):
    if security is not None:
        pytest.skip("this scheme encrypts")
    with pytest.raises(RuntimeError, match="encryption required"):
        await listen(f"{scheme}://127.0.0.1", ignore, require_encryption=True)
    with pytest.raises(RuntimeError, match="encryption required"):
        await connect(f"{scheme}://127.0.0.1:1", require_encryption=True)


async def test_a_cancelled_connect_leaves_nothing_behind(scheme, connect_args):
    async with raw_server(None) as location:
        task = asyncio.ensure_future(connect(f"{scheme}://{location}", **connect_args))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_peer_closes_in_the_handshake(scheme, connect_args):
    async def serve(reader, writer):
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    location = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises((CommClosedError, OSError)):
        await wait_for(connect(f"{scheme}://{location}", timeout=0.2, **connect_args), 10)
    server.close()
    while len(asyncio.all_tasks()) > 1:  # connections that were accepted late
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)  # and their transports are closed a turn later


@pytest.mark.own
@pytest.mark.parametrize("location", ["127.0.0.1:99999", "..:1", "a" * 70 + ".b:1", "a\0b:1"])
async def test_an_impossible_address_is_an_oserror(scheme, connect_args, location):
    connector = get_backend(scheme).get_connector()  # `connect` would try for its whole time
    with pytest.raises(OSError):
        await wait_for(connector.connect(location, **connect_args), 10)

"""Listening: what is bound, what is advertised, and what happens at the stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import pytest
from distributed.comm import CommClosedError, connect, get_address_host, listen, parse_host_port
from distributed.comm.addressing import parse_address, unparse_host_port
from distributed.utils import get_ip, wait_for


async def ignore(comm):
    await comm.close()


def own_host() -> str:
    host = get_ip()
    if host.startswith("127."):
        pytest.skip("this host has no address but loopback")
    return host


async def check_round_trip(address, connect_args):
    comm = await connect(address, **connect_args)
    assert comm.peer_address == address
    await comm.write({"op": "ping"})
    assert await comm.read() == {"op": "ping"}
    await comm.close()


async def echo(comm):
    with contextlib.suppress(CommClosedError):
        while True:
            await comm.write(await comm.read())


@pytest.mark.parametrize(
    ("location", "listens", "contact"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0", None),
        ("", "0.0.0.0", None),
        (":0", "0.0.0.0", None),
        ("[::1]", "::1", "::1"),
        ("[::1]:0", "::1", "::1"),
    ],
)
async def test_addresses(scheme, location, listens, contact, listen_args, connect_args, request):
    if "::" in location:
        request.getfixturevalue("has_ipv6")
    contact = contact or own_host()
    async with listen(f"{scheme}://{location}", echo, **listen_args) as listener:
        host, port = listener.get_host_port()
        assert (host, listener.prefix) == (listens, f"{scheme}://")
        assert 1023 < port < 65536
        assert listener.listen_address == f"{scheme}://{unparse_host_port(listens, port)}"
        assert listener.contact_address == f"{scheme}://{unparse_host_port(contact, port)}"
        assert parse_address(listener.listen_address)[0] == scheme
        await check_round_trip(listener.contact_address, connect_args)


async def test_the_host_given_is_bound_and_no_other(scheme, listen_args):
    async with listen(f"{scheme}://127.0.0.2", ignore, **listen_args) as listener:
        with pytest.raises(ConnectionRefusedError), socket.socket() as other:
            other.connect(("127.0.0.1", listener.get_host_port()[1]))


async def test_a_wildcard_of_both_families_is_reached_by_both(
    scheme, listen_args, connect_args, has_ipv6
):
    async with listen(f"{scheme}://", echo, **listen_args) as listener:
        port = listener.get_host_port()[1]
        for host in ("127.0.0.1", "[::1]", "localhost"):
            await check_round_trip(f"{scheme}://{host}:{port}", connect_args)


async def test_a_taken_port_is_eaddrinuse(scheme, listen_args):
    async with listen(f"{scheme}://127.0.0.1", ignore, **listen_args) as first:
        with pytest.raises(OSError) as caught:
            await listen(first.listen_address, ignore, **listen_args)
        assert caught.value.errno == errno.EADDRINUSE


async def test_a_port_can_be_taken_again_at_once(scheme, listen_args, connect_args):
    listener = await listen(f"{scheme}://127.0.0.1", echo, **listen_args)
    address = listener.listen_address
    await check_round_trip(address, connect_args)
    listener.stop()
    async with listen(address, echo, **listen_args) as again:
        assert again.listen_address == address
        await check_round_trip(address, connect_args)


@pytest.mark.own  # distributed's leaves sockets open where the port is taken for IPv6
async def test_a_hundred_listeners_have_distinct_addresses(scheme, listen_args):
    async with contextlib.AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(listen(f"{scheme}://", ignore, **listen_args))
            for _ in range(100)
        ]
        assert len({listener.listen_address for listener in found}) == 100
        assert len({listener.contact_address for listener in found}) == 100


async def test_unknown_and_optional_keywords_are_accepted(scheme, listen_args, connect_args):
    listener = await listen(
        f"{scheme}://0.0.0.0",
        echo,
        deserialize=True,
        allow_offload=False,
        default_host="127.0.0.1",
        default_port=0,
        whatever="is ignored",
        **listen_args,
    )
    assert get_address_host(listener.contact_address) == "127.0.0.1"
    comm = await connect(listener.contact_address, whatever="is ignored", **connect_args)
    await comm.close()
    listener.stop()


async def test_default_port_is_used_where_the_address_has_none(scheme, listen_args):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with listen(f"{scheme}://127.0.0.1", ignore, default_port=port, **listen_args) as one:
        assert parse_host_port(one.listen_address) == ("127.0.0.1", port)


async def test_allow_offload_reaches_the_comm(scheme, listen_args, connect_args):
    accepted = asyncio.Queue()
    async with listen(
        f"{scheme}://127.0.0.1", accepted.put, allow_offload=False, **listen_args
    ) as listener:
        comm = await connect(listener.contact_address, **connect_args)
        peer = await accepted.get()
    assert comm.allow_offload is True
    assert peer.allow_offload is False
    comm.abort()
    peer.abort()


async def test_comms_outlive_their_listener(scheme, listen_args, connect_args):
    listener = await listen(f"{scheme}://127.0.0.1", echo, **listen_args)
    address = listener.contact_address
    comm = await connect(address, **connect_args)
    listener.stop()
    listener.stop()
    await comm.write("still here")
    assert await comm.read() == "still here"
    with pytest.raises(OSError):
        await connect(address, timeout=0.1, **connect_args)
    await comm.close()


async def test_a_stop_aborts_handshakes(scheme, listen_args):
    listener = await listen(f"{scheme}://127.0.0.1", ignore, **listen_args)
    reader, writer = await asyncio.open_connection(*listener.get_host_port())
    while not getattr(listener, "_opening", True):  # ours can tell when it has accepted
        await asyncio.sleep(0)
    listener.stop()
    listener.abort_handshaking_comms()
    with contextlib.suppress(ConnectionError):
        await wait_for(reader.read(), 5)  # up to the end of the stream
    writer.close()


@pytest.mark.own
async def test_a_connection_in_the_backlog_is_closed_by_the_stop(scheme, listen_args, connect_args):
    listener = await listen(f"{scheme}://127.0.0.1", ignore, **listen_args)
    with socket.socket() as early:
        early.connect(listener.get_host_port())
        listener.stop()
        early.settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert early.recv(1) == b""


async def test_many_connections_at_once(scheme, listen_args, connect_args):
    async with listen(f"{scheme}://127.0.0.1", echo, **listen_args) as listener:
        await asyncio.gather(
            *(check_round_trip(listener.contact_address, connect_args) for _ in range(100))
        )


async def test_a_handler_may_be_a_plain_function(scheme, listen_args, connect_args):
    if scheme in ("tcp", "tls"):
        pytest.skip("distributed's own awaits whatever the handler returns")
    accepted = asyncio.Queue()
    async with listen(f"{scheme}://127.0.0.1", accepted.put_nowait, **listen_args) as listener:
        comm = await connect(listener.contact_address, **connect_args)
        peer = await accepted.get()
    comm.abort()
    peer.abort()

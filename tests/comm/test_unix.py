"""Unix sockets in addition to TCP: when they are used, whom they reach, and why TCP is used."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket

import dask.config
import numpy as np
import pytest
import pytest_asyncio
from distributed.comm import connect, listen
from distributed.comm.addressing import get_address_host, parse_address, parse_host_port
from distributed.comm.registry import get_backend
from distributed.protocol import to_serialize
from distributed.security import Security
from distributed.utils import wait_for

from dask_fabric.comm import connector
from dask_fabric.comm.channels.factory import make_channel
from dask_fabric.comm.network import unix
from dask_fabric.comm.network.addresses import route_source
from dask_fabric.wire.hello import Hello

ELSEWHERE = "198.51.100.1"  # TEST-NET-2: nobody's
OWN = route_source("8.8.8.8", (socket.AF_INET,))
needs_own = pytest.mark.skipif(OWN is None, reason="no route leads out of this host")


@pytest.fixture(autouse=True)
def forget_silent_sockets():
    """Forget what connectors learned about names: later tests use the same ports."""
    yield
    get_backend("fabric").get_connector()._silent_until.clear()


@pytest_asyncio.fixture
async def serve():
    """A function that starts a listener, whose comms name it in their first message."""
    async with contextlib.AsyncExitStack() as stack:

        async def serve(address: str, name: str = "server", **args):
            accepted = asyncio.Queue()

            async def handle(comm):
                stack.callback(comm.abort)
                await comm.write(name)
                accepted.put_nowait(comm)

            listener = await listen(address, handle, **args)
            stack.callback(listener.stop)
            listener.accepted = accepted
            return listener

        yield serve


@contextlib.asynccontextmanager
async def reach(address: str, name: str = "server", **args):
    comm = await wait_for(connect(address, **args), 10)
    try:
        assert await wait_for(comm.read(), 10) == name
        yield comm
    finally:
        await comm.close()


async def stream_to(address: str, name: str = "server", **args) -> str:
    """Give the kind of control stream to the server of that name."""
    async with reach(address, name, **args) as comm:
        return comm.control_stream


@pytest.fixture
def port() -> int:
    """A port that is free at each address of the host."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return probe.getsockname()[1]


@pytest.fixture
def squat(port):
    """A function that takes the name beside 127.0.0.1 and the port; gives the listening socket."""
    with contextlib.ExitStack() as stack:

        def squat() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(unix._name(f"127.0.0.1:{port}"))
            sock.listen()
            sock.setblocking(False)
            return sock

        yield squat


# ---- used


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0", "", "[::1]", "[::]",
     pytest.param(OWN, marks=needs_own)],
)  # fmt: skip
async def test_within_a_host_and_the_addresses_are_as_with_tcp(host, serve):
    try:
        listener = await serve(f"fabric://{host}")
    except OSError:
        pytest.skip("no IPv6 here")
    async with reach(listener.contact_address) as a, reach(listener.contact_address) as other:
        b = await listener.accepted.get()
        assert a.control_stream == b.control_stream == "unix"
        assert a.peer_address == b.local_address == listener.contact_address
        assert a.local_address == b.peer_address != other.local_address
        assert get_address_host(a.local_address) == get_address_host(listener.contact_address)
        assert parse_host_port(parse_address(a.local_address)[1])[1] > 65535  # nobody's in TCP
        assert a.same_host and b.same_host and a.extra_info == b.extra_info == {}
        assert a.statistics()["control_stream"] == "unix"


async def test_many_that_come_at_once_find_a_place(serve):
    """Dask's default backlog is 2048, and a full one cannot be waited for."""
    with dask.config.set({"distributed.comm.socket-backlog": 1}):
        listener = await serve("fabric://127.0.0.1")
    streams = await asyncio.gather(*(stream_to(listener.contact_address) for _ in range(30)))
    assert set(streams) == {"unix"}


@pytest.mark.parametrize("unix_sockets", [True, False])
async def test_what_many_comms_know_of_their_peers_is_kept_once(unix_sockets, serve):
    """Without a Unix socket the hellos hold proofs, and so are different for each connection."""
    with dask.config.set({"fabric.unix-sockets": unix_sockets}):
        listener = await serve("fabric://127.0.0.1")
        async with reach(listener.contact_address) as a, reach(listener.contact_address) as b:
            await a.write("choose"), await b.write("choose")
            comms = [await listener.accepted.get() for _ in range(2)]
            for comm in comms:
                assert await comm.read() == "choose"  # and the PATHS record before it
            for one, other in ((a, b), comms):
                assert one._channel.peer is other._channel.peer
                assert one._channel.peer.described == {} and one._channel.peer.software
                assert one._channel.choice is other._channel.choice


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost"])
async def test_a_wildcard_listener_learns_which_host_was_reached(host, serve):
    listener = await serve("fabric://0.0.0.0")
    port = listener.get_host_port()[1]
    async with reach(f"fabric://{host}:{port}") as a:
        b = await listener.accepted.get()
        assert a.control_stream == "unix" and a.peer_address == f"fabric://{host}:{port}"
        assert b.local_address == f"fabric://{socket.gethostbyname(host)}:{port}"
        assert a.local_address == b.peer_address


async def test_large_messages_both_ways_at_once(serve):
    listener = await serve("fabric://127.0.0.1")
    data = np.arange(4_000_000)
    async with reach(listener.contact_address) as a:
        b = await listener.accepted.get()
        for comm in (a, b):
            await comm.write({"x": to_serialize(data)})
        for received in await asyncio.gather(a.read(), b.read()):
            assert (received["x"] == data).all()


async def test_two_hosts_with_one_port_are_told_apart(serve, port):
    for host in ("127.0.0.1", "127.0.0.2"):
        await serve(f"fabric://{host}:{port}", host)
    for host in ("127.0.0.1", "127.0.0.2"):
        assert await stream_to(f"fabric://{host}:{port}", host) == "unix"


async def test_a_stopped_listener_leaves_no_name(serve, port):
    for _ in range(2):
        listener = await serve(f"fabric://127.0.0.1:{port}")
        assert await stream_to(listener.contact_address) == "unix"
        listener.stop()
        with pytest.raises(ConnectionRefusedError):
            await connector.FabricConnector(listener.scheme).connect(f"127.0.0.1:{port}")


# ---- not used


async def test_not_by_the_scheme_of_plain_tcp(serve):
    listener = await serve("fabric+tcp://127.0.0.1")
    assert await stream_to(listener.contact_address) == "tcp"
    port = listener.get_host_port()[1]
    assert await stream_to(f"fabric://127.0.0.1:{port}") == "tcp"
    listener = await serve("fabric://127.0.0.1")
    port = listener.get_host_port()[1]
    assert await stream_to(f"fabric+tcp://127.0.0.1:{port}") == "tcp"


async def test_not_with_tls(serve):
    security = Security.temporary()
    listener = await serve("fabric://127.0.0.1", **security.get_listen_args("scheduler"))
    assert all(sock.family == socket.AF_INET for sock in listener._sockets)
    args = security.get_connection_args("client")
    assert await stream_to(listener.contact_address, **args) == "tcp"


@pytest.mark.parametrize("side", ["listener", "connector"])
async def test_not_when_switched_off(side, serve):
    with dask.config.set({"fabric.unix-sockets": side != "listener"}):
        listener = await serve("fabric://127.0.0.1")
    with dask.config.set({"fabric.unix-sockets": side != "connector"}):
        assert await stream_to(listener.contact_address) == "tcp"


async def test_another_host_is_not_taken_for_this_one(serve):
    port = (await serve("fabric://0.0.0.0")).get_host_port()[1]
    here, there = ((socket.AF_INET, (host, port)) for host in ("127.0.0.1", ELSEWHERE))
    assert unix.dial([there]) is None
    assert unix.dial([there, here]) is None  # TCP would try that one first
    sock, target, listener = unix.dial([here])
    sock.close()
    assert (target, listener) == (f"127.0.0.1:{port}", f"0.0.0.0:{port}")


def test_which_addresses_are_own():
    v4, v6 = socket.AF_INET, socket.AF_INET6
    assert unix.is_own(v4, ("127.0.0.1", 1)) and unix.is_own(v4, ("127.9.9.9", 1))
    assert OWN is None or unix.is_own(v4, (OWN, 1))
    for host in (ELSEWHERE, "0.0.0.0", "255.255.255.255"):
        assert not unix.is_own(v4, (host, 1))
    assert not unix.is_own(v6, ("::", 1, 0, 0))
    assert not unix.is_own(v6, ("2001:db8::1", 1, 0, 0))


# ---- other users


@pytest.mark.parametrize(
    ("own", "listener_uid", "expected"),
    [(1000, 1000, True), (1000, 0, True), (1000, 1001, False), (0, 1000, False)],
)
async def test_whose_listener_a_client_trusts(own, listener_uid, expected, serve, monkeypatch):
    listener = await serve("fabric://127.0.0.1")
    monkeypatch.setattr(os, "geteuid", lambda: own)
    monkeypatch.setattr(unix, "peer_uid", lambda sock: listener_uid)
    dialled = unix.dial([(socket.AF_INET, listener.get_host_port())])
    with dialled[0] if dialled else contextlib.nullcontext() as sock:
        assert (sock is not None) is expected
    stream = await stream_to(listener.contact_address)
    assert stream == ("unix" if expected else "tcp")


@pytest.mark.parametrize(
    ("own", "client_uid", "expected"),
    [(1000, 1000, True), (1000, 0, True), (1000, 1001, False), (0, 1000, True)],
)
def test_which_client_a_listener_takes(own, client_uid, expected, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: own)
    monkeypatch.setattr(unix, "peer_uid", lambda sock: client_uid)
    assert unix.is_welcome(None, b"\x0000f3a", False) is expected


@pytest.mark.parametrize("name", ["", "/tmp/x", b"", b"\0f3a", b"\0dask-fabric/x", b"\x0000F3A"])
def test_a_client_whose_name_is_not_the_kernel_s_is_turned_away(name):
    near, far = socket.socketpair()
    with near, far:
        assert unix.peer_uid(near) == os.geteuid()
        assert not unix.is_welcome(near, name, False)


async def test_a_stranger_gets_nothing(serve):
    listener = await serve("fabric://127.0.0.1")
    with socket.socket(socket.AF_UNIX) as stranger:  # it has no name
        stranger.connect(unix._name(f"127.0.0.1:{listener.get_host_port()[1]}"))
        stranger.setblocking(False)
        loop = asyncio.get_running_loop()
        assert await wait_for(loop.sock_recv(stranger, 1), 10) == b""
    assert await stream_to(listener.contact_address) == "unix"


# ---- the hello


@pytest.mark.parametrize(
    ("listener", "target", "expected"),
    [
        ("127.0.0.1:5", "127.0.0.1:5", True),
        ("127.0.0.1:5", "127.0.0.1:6", False),
        ("127.0.0.1:5", "127.0.0.2:5", False),
        ("127.0.0.1:5", "", False),
        ("0.0.0.0:5", "127.0.0.1:5", True),
        ("0.0.0.0:5", "127.0.0.2:5", True),
        ("0.0.0.0:5", "127.0.0.1: 5", False),
        ("0.0.0.0:5", "127.0.0.1:6", False),
        ("0.0.0.0:5", f"{ELSEWHERE}:5", False),
        ("0.0.0.0:5", "0.0.0.0:5", False),
        ("0.0.0.0:5", "localhost:5", False),
        ("0.0.0.0:5", "[::1]:5", False),
        ("0.0.0.0:5", "127.0.0.1", False),
        ("0.0.0.0:5", "127.0.0.1:5:5", False),
        ("[::]:5", "[::1]:5", True),
        ("[::]:5", "[0:0:0:0:0:0:0:1]:5", False),
        ("[::]:5", f"[::1]:{10**30}", False),
        ("[::]:5", "127.0.0.1:5", False),
        ("[::]:5", "[::1", False),
    ],
)
def test_the_target_that_a_client_names(listener, target, expected):
    refusal = unix.refuse_client(listener, Hello(address=target))
    assert (refusal == "") is expected
    assert expected or listener in refusal


def test_the_address_that_a_server_names():
    assert unix.refuse_server("0.0.0.0:5", Hello(address="0.0.0.0:5")) == ""
    for address in ("", "127.0.0.1:5", "0.0.0.0:6"):
        assert "0.0.0.0:5" in unix.refuse_server("0.0.0.0:5", Hello(address=address))


async def test_over_tcp_what_the_hello_says_of_it_is_ignored(serve, monkeypatch):
    lying = functools.partial(make_channel, address="9.9.9.9:9")
    monkeypatch.setattr(connector, "make_channel", lying)
    listener = await serve("fabric+tcp://127.0.0.1")
    async with reach(listener.contact_address) as a:
        b = await listener.accepted.get()
        assert b.local_address == listener.contact_address
        assert b.peer_address == a.local_address


# ---- squatters: TCP, and a working comm


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x89fabric\x8a" * 9])
async def test_a_squatter_that_is_no_fabric_peer(reply, serve, squat, port):
    sock = squat()
    listener = await serve(f"fabric://127.0.0.1:{port}")

    def accept():
        accepted, _ = sock.accept()
        with accepted:
            accepted.send(reply)

    loop = asyncio.get_running_loop()
    loop.add_reader(sock, accept)
    assert await stream_to(listener.contact_address) == "tcp"
    loop.remove_reader(sock)


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_server_of_another_port_under_the_name(refuses, serve, squat, port):
    sock = squat()
    other = await serve("fabric://127.0.0.1", "other")
    listener = await serve(f"fabric://127.0.0.1:{port}")
    address = f"127.0.0.1:{other.get_host_port()[1]}"

    def take(accepted, name):
        peer = f"fabric://{address}"
        other._begin(accepted, peer, None, lambda hello: None, address)

    if refuses:
        take = functools.partial(other._take_unix, address)
    loop = asyncio.get_running_loop()
    loop.add_reader(sock, other._accept, sock, take)
    assert await stream_to(listener.contact_address) == "tcp"
    loop.remove_reader(sock)


async def test_a_squatter_that_never_answers_is_waited_for_once(serve, squat, port, monkeypatch):
    monkeypatch.setattr(connector, "_UNIX_PATIENCE_SECONDS", 0.01)
    sock = squat()
    listener = await serve(f"fabric://127.0.0.1:{port}")
    assert [found.family for found in listener._sockets] == [socket.AF_INET]
    assert await stream_to(listener.contact_address) == "tcp"
    with sock.accept()[0] as accepted:
        assert accepted.recv(8) == b"\x89fabric\x8a"
    monkeypatch.setattr(connector, "_UNIX_PATIENCE_SECONDS", 1e6)
    assert await stream_to(listener.contact_address) == "tcp"
    with sock.accept()[0] as accepted:
        assert accepted.recv(8) == b""


async def test_dask_may_be_less_patient(serve, squat, port, monkeypatch):
    monkeypatch.setattr(connector, "_UNIX_PATIENCE_SECONDS", 1e6)
    monkeypatch.setattr(connector, "_UNIX_SILENCE_SECONDS", 0)
    squat()
    listener = await serve(f"fabric://127.0.0.1:{port}")
    assert await stream_to(listener.contact_address, timeout=2) == "tcp"


async def test_a_connect_that_is_cancelled_early_says_nothing_of_the_server(
    serve, squat, port, monkeypatch
):
    monkeypatch.setattr(connector, "_UNIX_SILENCE_SECONDS", 1e6)
    sock = squat()
    listener = await serve(f"fabric://127.0.0.1:{port}")
    task = asyncio.ensure_future(connect(listener.contact_address))
    accepted, _ = await asyncio.get_running_loop().sock_accept(sock)
    with accepted:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert accepted.recv(8) == b"\x89fabric\x8a"
    monkeypatch.setattr(connector, "_UNIX_PATIENCE_SECONDS", 0.01)
    assert await stream_to(listener.contact_address) == "tcp"
    with sock.accept()[0] as accepted:
        assert accepted.recv(8) == b"\x89fabric\x8a"  # it was tried again


async def test_a_full_backlog(serve, squat, port):
    sock = squat()
    sock.listen(0)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(sock.getsockname())
        listener = await serve(f"fabric://127.0.0.1:{port}")
        assert await stream_to(listener.contact_address) == "tcp"

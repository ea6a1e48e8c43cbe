"""What a hello discloses to a stranger, to another host, and to a process of the same host."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace

import dask
import msgpack
import pytest
from distributed.comm import connect, listen
from distributed.utils import wait_for
from hypothesis import given
from hypothesis import strategies as st

from dask_fabric.comm.channels import negotiator
from dask_fabric.paths import disclosure
from dask_fabric.paths.cma import process as cma
from dask_fabric.wire.hello import PREAMBLE, Hello

BOOT, OTHER_BOOT = "b00t-of-this-host", "b00t-of-another"
SCOPE = {"ipc": "ipc:[1]", "pid": "pid:[2]", "user": "0 of user:[3]"}
UCX = {"version": "1.18.0", "transports": ("tcp",), "address": b"a", "token": 1, "scope": SCOPE}
FULL = Hello(
    pid=4711,
    boot=BOOT,
    paths=("stream", "cma", "ucx"),
    described={"cma": {"address": 0x7F00DEADBEEF, "nonce": b"n" * 16}, "ucx": UCX},
)
TCP = {"fabric.unix-sockets": False}


def cma_of(hello: Hello) -> dict:
    return hello.described.get("cma", {})


def ucx_of(hello: Hello) -> dict:
    return hello.described.get("ucx", {})


def saying(hello: Hello, **described) -> Hello:
    return replace(hello, described={**hello.described, **described})


def says(hello: Hello) -> bytes:
    return repr(hello).encode() + hello.encode()


def secrets_of(hello: Hello) -> list[bytes]:
    numbers = [hello.pid, cma_of(hello)["address"]]
    packed = [n.to_bytes(size, "big") for n in numbers for size in (4, 8) if n < 1 << 8 * size]
    texts = [str(n) for n in numbers] + [hello.boot, *ucx_of(hello).get("scope", {}).values()]
    return [cma_of(hello)["nonce"], *packed, *(text.encode() for text in texts if text)]


def test_two_processes_of_a_host_read_what_they_tell_each_other():
    client = disclosure.of_client(FULL)
    server = disclosure.of_server(replace(FULL, pid=5), client, False)
    assert client.boot == server.boot != BOOT
    assert ucx_of(client)["scope"] == ucx_of(server)["scope"]
    assert disclosure.deciphered(client, BOOT, "client").pid == 4711
    assert disclosure.deciphered(server, BOOT, "server").pid == 5
    for side, hello in (("client", client), ("server", server)):
        assert cma_of(disclosure.deciphered(hello, BOOT, side)) == cma_of(FULL)
        assert not any(secret in says(hello) for secret in secrets_of(FULL))


def test_nothing_is_told_twice_in_the_same_way():
    first, second = disclosure.of_client(FULL), disclosure.of_client(FULL)
    answer = disclosure.of_server(FULL, first, False)
    told = {str((hello.pid, cma_of(hello))) for hello in (first, second, answer)}
    assert len(told) == 3


@pytest.mark.parametrize("boot", ["", "~", OTHER_BOOT, f"~{'0' * 32}~{'0' * 32}", "~é" + "0" * 64])
def test_a_client_that_does_not_know_the_host_is_told_nothing_of_it(boot):
    hello = disclosure.of_server(FULL, replace(FULL, boot=boot), False)
    assert (hello.pid, hello.boot, cma_of(hello)) == (0, "", {})
    assert ucx_of(hello) == {key: value for key, value in UCX.items() if key != "scope"}
    assert not any(secret in says(hello) for secret in secrets_of(FULL))


def test_two_hosts_learn_nothing_from_each_other():
    client = disclosure.of_client(FULL)
    server = disclosure.of_server(replace(FULL, boot=OTHER_BOOT), client, False)
    assert server.boot == "" and not cma_of(server)
    assert disclosure.deciphered(client, OTHER_BOOT, "client") is client
    assert not disclosure.is_proven(client.boot, OTHER_BOOT)
    assert not disclosure.is_proven(client.boot, "")


def test_the_scope_shows_what_differs():
    client = disclosure.of_client(FULL)
    ucx = {**UCX, "scope": {**SCOPE, "pid": "pid:[9]"}}
    server = disclosure.of_server(saying(FULL, ucx=ucx), client, False)
    same = [key for key in SCOPE if ucx_of(client)["scope"][key] == ucx_of(server)["scope"][key]]
    assert same == ["ipc", "user"]


def test_a_unix_socket_and_a_peer_of_an_earlier_release_are_told_as_before():
    assert disclosure.of_server(FULL, replace(FULL, boot=""), True) is FULL
    assert disclosure.of_server(FULL, FULL, False) is FULL
    assert disclosure.deciphered(FULL, BOOT, "client") is FULL


@pytest.mark.parametrize("is_unix", [False, True])
def test_the_address_of_ucx_is_told_to_those_who_have_it(is_unix):
    assert not disclosure.of_server(FULL, Hello(boot=BOOT), is_unix).described
    client = Hello(boot=BOOT, described={"ucx": UCX})
    assert disclosure.of_server(FULL, client, is_unix).described == {"ucx": UCX}


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=64),
    st.sampled_from(["client", "server"]),
)
def test_whatever_a_peer_says_can_be_deciphered(pid, address, nonce, side):
    known = disclosure.of_client(FULL).boot
    peer = replace(saying(FULL, cma={"address": address, "nonce": nonce}), boot=known, pid=pid)
    told = disclosure.deciphered(peer, BOOT, side)
    assert cma.probe(0, cma_of(told)["address"], cma_of(told)["nonce"])


# ---------------------------------------------------------------- over sockets


async def aborted(writer) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def hello_of_listener(listener, hello: Hello) -> dict:
    reader, writer = await asyncio.open_connection(*listener.get_host_port())
    writer.write(hello.encode())
    head = await wait_for(reader.readexactly(PREAMBLE.size), 10)
    body = await wait_for(reader.readexactly(PREAMBLE.unpack(head)[-1]), 10)
    await aborted(writer)
    return msgpack.unpackb(body)


async def ignore(comm):
    await comm.close()


@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
async def test_a_stranger_learns_nothing_of_the_process(scheme):
    async with listen(f"{scheme}://127.0.0.1", ignore) as listener:
        told = await hello_of_listener(listener, Hello(scheme=scheme))
    assert told["pid"] == 0 and "boot" not in told and "cma" not in told and "ucx" not in told


async def test_who_knows_the_host_learns_what_is_needed():
    async with listen("fabric://127.0.0.1", ignore) as listener:
        boot = negotiator.boot_id()
        client = replace(FULL, boot=boot, paths=("stream", "cma"))
        told = await hello_of_listener(listener, client)
        assert told["pid"] == os.getpid() and told["boot"] == boot and told["cma"]


async def test_a_client_over_tcp_tells_a_server_of_another_host_nothing():
    heard = asyncio.get_running_loop().create_future()

    serving = set()

    async def serve(reader, writer):
        serving.add(asyncio.current_task())
        try:
            head = await reader.readexactly(PREAMBLE.size)
            body = await reader.readexactly(PREAMBLE.unpack(head)[-1])
            if not heard.done():
                heard.set_result(body)
        finally:
            await aborted(writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(OSError):
            await connect(f"fabric://{host}:{port}", timeout=1)
        body = await wait_for(heard, 10)
        await asyncio.gather(*serving, return_exceptions=True)
    told = msgpack.unpackb(body)
    assert told["boot"].startswith("~") and told["pid"] != os.getpid()
    assert negotiator.boot_id().encode() not in body


async def test_over_tcp_within_a_host_memory_is_still_read():
    accepted = asyncio.Queue()
    with dask.config.set(TCP):
        async with listen("fabric://127.0.0.1", accepted.put) as listener:
            near = await connect(listener.contact_address)
            far = await accepted.get()
            await near.write("x")
            await far.read()
            assert near.control_stream == "tcp"
            assert near.paths == far.paths == {"host": "cma"}
            near.abort(), far.abort()

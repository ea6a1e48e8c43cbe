"""The bytes of the first and the last turn of a channel."""

import asyncio

import pytest

from dask_fabric.errors import ChannelClosedError, MessageTooLargeError
from dask_fabric.wire.hello import Hello
from dask_fabric.wire.records import close_record

from .conftest import new_channel, tcp_pair

CLIENT_HELLO = Hello(scheme="fabric+tcp").encode()


def server_of_a_raw_client():
    client, accepted = tcp_pair()
    client.sendall(CLIENT_HELLO)
    return client, new_channel(accepted, True)


async def test_a_servers_hello_leaves_with_its_first_message():
    client, server = server_of_a_raw_client()
    with client:
        await server.open()
        with pytest.raises(BlockingIOError):
            client.recv(1)
        server.send(b"first", [])
        data = client.recv(65536)
        assert data.startswith(b"\x89fabric\x8a") and data.endswith(b"first")
        server.abort()


async def test_a_servers_hello_waits_no_longer_than_a_turn():
    client, server = server_of_a_raw_client()
    with client:
        await server.open()
        await asyncio.sleep(0)
        assert client.recv(65536).startswith(b"\x89fabric\x8a")
        server.abort()


async def test_a_server_that_closes_at_once_has_said_hello():
    client, server = server_of_a_raw_client()
    with client:
        await server.open()
        await server.close(1)
        data = client.recv(65536)
        assert data.startswith(b"\x89fabric\x8a") and data.endswith(close_record())
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("header", "frames", "text"),
    [
        (b"", [b""] * 3, r"3 frames; the peer accepts 2 \(fabric\.limits\.frames "),
        (b"h" * 301, [], r"301 bytes of header; .* accepts 300 \(fabric\.limits\.header "),
        (b"h" * 300, [b"f" * 701], r"1001 bytes; .* accepts 1000 \(fabric\.limits\.message "),
    ],
)
async def test_what_is_above_a_limit_in_the_peers_hello_is_not_sent(header, frames, text):
    client, accepted = tcp_pair()
    limits = {"frames": 2, "header": 300, "message": 1000}
    client.sendall(Hello(scheme="fabric+tcp", limits=limits).encode())
    server = new_channel(accepted, True)
    with client:
        await server.open()
        pending_bytes = server.pending_bytes
        with pytest.raises(MessageTooLargeError, match=text):
            server.send(header, frames)
        assert server.pending_bytes == pending_bytes
        server.send(b"h" * 300, [b"f" * 699, b"f"])
        assert client.recv(65536).endswith(b"h" * 300 + b"f" * 700)
        server.abort()


async def test_a_large_message_right_behind_the_hello_is_received():
    near, far = tcp_pair()
    client, server = new_channel(near, False), new_channel(far, True)

    async def open_and_receive():
        await client.open()
        return client.receive_nowait() or await client.receive()

    received = asyncio.ensure_future(open_and_receive())
    await asyncio.sleep(0)
    await server.open()
    server.send(b"large", [bytes(8 << 20)])
    header, frames = await received
    assert bytes(header) == b"large" and frames[0].nbytes == 8 << 20
    assert client.statistics()["receive_jobs"] == 1
    client.abort()
    server.abort()


async def test_what_was_sent_before_the_close_arrives_though_something_was_not_read(channels):
    async with channels() as (near, far):
        far.send(b"never read", [])
        for number in range(3):
            near.send(b"%d" % number, [])
        await near.close(1)
        for number in range(3):
            header, _ = far.receive_nowait() or await far.receive()
            assert bytes(header) == b"%d" % number
        with pytest.raises((ChannelClosedError, OSError)):
            await far.receive()


async def test_time_is_up_for_a_silent_peer():
    near, far = tcp_pair()
    with far:
        channel = new_channel(near, False)
        with pytest.raises(ChannelClosedError, match=r"no handshake within 0\.01 seconds"):
            await channel.open(0.01)
        assert channel.closed

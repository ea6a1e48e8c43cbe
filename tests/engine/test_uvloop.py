"""Channels in uvloop: libuv stops watching a socket as soon as it has an error."""

import asyncio

import pytest

from dask_fabric.errors import ChannelClosedError
from dask_fabric.wire.hello import Hello

from .conftest import new_channel, tcp_pair, unix_pair

uvloop = pytest.importorskip("uvloop")


@pytest.fixture(params=[tcp_pair, unix_pair])
def new_pair(request):
    return request.param


async def read_last_words(new_pair):
    """Lose a peer that has not read everything: its last message comes with a reset."""
    near, far = new_pair()
    near, far = new_channel(near, False), new_channel(far, True)
    await asyncio.gather(near.open(), far.open())
    near.send(b"never read", [])
    last = asyncio.ensure_future(near.receive())
    await asyncio.sleep(0)
    far.send(b"last", [])
    far.abort()
    header, _ = await last
    assert bytes(header) == b"last"
    with pytest.raises(ChannelClosedError):
        await asyncio.wait_for(near.receive(), 10)


def test_a_peer_that_dies_behind_its_last_message(new_pair):
    uvloop.run(read_last_words(new_pair))


async def open_with_half_a_hello(new_pair):
    near, far = new_pair()
    channel = new_channel(near, False)
    opening = asyncio.ensure_future(channel.open(10))
    await asyncio.sleep(0)
    far.send(Hello(scheme="fabric+tcp").encode()[:20])
    far.close()
    with pytest.raises(ChannelClosedError, match="reset"):
        await opening


def test_a_peer_that_dies_in_its_hello(new_pair):
    uvloop.run(open_with_half_a_hello(new_pair))

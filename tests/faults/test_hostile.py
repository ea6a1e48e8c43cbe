"""Hostile clients: the listener continues, keeps nothing and unpickles nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import resource
import socket
import ssl
import struct
import time

import dask
import pytest
import pytest_asyncio
from distributed.comm import CommClosedError, connect
from distributed.comm.registry import get_backend
from distributed.protocol import to_serialize
from distributed.utils import wait_for

from dask_fabric.wire.hello import Hello

from ..conftest import OFI_SCHEME, UCX_SCHEME
from .conftest import PATIENCE_SECONDS, check_good_client, nothing_left, serving

pytestmark = pytest.mark.clusters

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, ERROR, CLOSE = 1, 2, 3, 4
AT_ONCE_COUNT = 32


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def bomb(tmp_path):
    """It must not go off in the test."""
    bomb = Bomb(tmp_path / "unpickled")
    yield bomb
    assert not os.path.exists(bomb.path)


class Target:
    """A listener under attack.

    Parameters
    ----------
    listener : FabricListener
    scheme : str
    connect_args : dict
        For a client with the right certificates.
    """

    def __init__(self, listener, scheme: str, connect_args: dict) -> None:
        self.listener = listener
        self.scheme = scheme
        self.connect_args = connect_args
        self.hello = Hello(scheme=scheme).encode()

    async def send(self, data: bytes, secured: bool = True, end: bool = True) -> bytes:
        """Send *data* on a connection (in TLS, where the scheme has it) and give what comes back.

        With *end* the end of what we send follows, without it the listener has to end.
        """
        context = self.connect_args.get("ssl_context") if secured else None
        host, port = self.listener.get_host_port()
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
                if end and context:  # TLS in Python cannot close one direction only
                    writer.close()
                    with contextlib.suppress(ssl.SSLError):
                        await wait_for(writer.wait_closed(), PATIENCE_SECONDS)
                    return b""
                if end:
                    writer.write_eof()
                return await wait_for(reader.read(), PATIENCE_SECONDS)
            return b""
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send_each(self, attacks: list[bytes], **kwargs) -> None:
        for first in range(0, len(attacks), AT_ONCE_COUNT):
            some = attacks[first : first + AT_ONCE_COUNT]
            await asyncio.gather(*(self.send(data, **kwargs) for data in some))

    async def check(self) -> None:
        await check_good_client(self.listener, self.connect_args)


@pytest_asyncio.fixture
async def target(scheme, listen_args, connect_args):
    async with serving(scheme, listen_args) as listener:
        target = Target(listener, scheme, connect_args)
        await target.check()
        async with nothing_left(rss=True):
            yield target
            await target.check()


async def recorded(scheme: str, listen_args: dict, connect_args: dict, message) -> bytes:
    """The bytes that a good client sends: hello, Dask's handshake, *message*, the close record."""
    got = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        received = await reader.readexactly(16)
        received += await reader.readexactly(struct.unpack_from("<I", received, 12)[0])
        writer.write(Hello(scheme=scheme).encode())
        got.set_result(received + await reader.read())
        writer.close()

    context = listen_args.get("ssl_context")
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with server:
        host, port = server.sockets[0].getsockname()
        connector = get_backend(scheme).get_connector()
        comm = await connector.connect(f"{host}:{port}", **connect_args)
        await comm.write(comm.handshake_info())
        await comm.write(message)
        await comm.close()
        return await wait_for(got, PATIENCE_SECONDS)


@pytest.fixture(autouse=True)
def plain_peer(scheme):
    if scheme in (UCX_SCHEME, OFI_SCHEME):
        pytest.skip("it takes no peer without its library, as the attackers are")


async def test_the_bomb_is_live(scheme, listen_args, connect_args, tmp_path):
    bomb = Bomb(tmp_path / "unpickled")
    message = {"x": to_serialize(bomb)}
    whole = await recorded(scheme, listen_args, connect_args, message)
    async with serving(scheme, listen_args) as listener:
        await Target(listener, scheme, connect_args).send(whole)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not os.path.exists(bomb.path):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)


async def test_a_message_truncated_at_every_byte(target, bomb, scheme, listen_args, connect_args):
    whole = await recorded(scheme, listen_args, connect_args, {"x": to_serialize(bomb)})
    close_bytes = PREFIX.size
    step = 1 if scheme == "fabric+tcp" else 13
    cuts = range(0, len(whole) - close_bytes, step)
    await target.send_each([whole[:cut] for cut in cuts])


async def test_random_bytes(target, bomb):
    source = random.Random(7)
    attacks = [source.randbytes(source.randrange(1, 3000)) for _ in range(50)]
    attacks += [pickle.dumps(bomb), b"\x80\x05", b"\0" * 1000, b"\xff" * 1000, b"\n" * 100_000]
    await target.send_each(attacks)
    await target.send_each(attacks, secured=False)


async def test_random_records_after_a_valid_hello(target, bomb):
    source = random.Random(8)
    payload = pickle.dumps(bomb)
    attacks = [source.randbytes(source.randrange(1, 3000)) for _ in range(30)]
    for _ in range(50):
        prefix = PREFIX.pack(
            source.randrange(6), source.choice((0, 0, 1)), source.choice((0, 0, 1)),
            source.choice((0, 1, 2, source.getrandbits(32))),
            source.choice((0, len(payload), source.getrandbits(64))), source.choice((0, 0, 1)),
        )  # fmt: skip
        attacks.append(prefix + ENTRY.pack(len(payload), 0, 0, 0, 0) + payload)
    await target.send_each([target.hello + attack for attack in attacks])


CLAIMS = {
    "header": PREFIX.pack(MESSAGE, 0, 0, 0, 2**62, 0),
    "frames": PREFIX.pack(MESSAGE, 0, 0, 2**32 - 1, 0, 0),
    "one frame": PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(2**62, 0, 0, 0, 0),
    "a sum that overflows": PREFIX.pack(MESSAGE, 0, 0, 4, 0, 0) + 4 * ENTRY.pack(2**62, 0, 0, 0, 0),
    "error text": PREFIX.pack(ERROR, 0, 0, 0, 2**62, 0),
    "an acknowledgement": PREFIX.pack(ACKNOWLEDGE, 0, 0, 0, 0, 2**62),
    "a close with content": PREFIX.pack(CLOSE, 0, 0, 1, 2**62, 0),
}


async def test_claims_of_2_to_the_62(target, bomb):
    """Each is refused at once: the connection is not ended by us."""
    for name, claim in CLAIMS.items():
        answer = await target.send(target.hello + claim + pickle.dumps(bomb), end=False)
        assert b"limit" in answer or b"violation" in answer, name


async def test_claims_within_the_limits_cost_what_arrives(target):
    claim = PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(1 << 30, 0, 0, 0, 0)
    await target.send_each([target.hello + claim + b"x" * 1000] * 8)


async def test_a_slow_hello(scheme, listen_args, connect_args):
    with dask.config.set({"fabric.timeouts.handshake": "300ms"}):
        async with serving(scheme, listen_args) as listener, nothing_left():
            target = Target(listener, scheme, connect_args)
            await target.send_each([target.hello[:n] for n in (0, 1, 15, 16, 17, 30)], end=False)
            await target.send_each([b"\x16", b"\x89"], secured=False, end=False)
            await target.check()


async def test_a_hello_and_then_silence(scheme, listen_args, connect_args):
    with dask.config.set({"fabric.timeouts.handshake": "300ms"}):
        async with serving(scheme, listen_args) as listener:
            target = Target(listener, scheme, connect_args)
            async with nothing_left():
                await target.send_each([target.hello] * 10, end=False)


async def test_thousands_that_say_nothing(target):
    count = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 3 * count)), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for number in range(count):
            silent = stack.enter_context(socket.socket())
            silent.connect(target.listener.get_host_port())
            if number % 50 == 0:
                await asyncio.sleep(0)  # the listener's turn
        await target.check()


FOREIGN = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    bytes.fromhex("16030100050100000100"),  # TLS
    b"SSH-2.0-OpenSSH_9.6\r\n",
)


async def test_foreign_protocols(target, bomb):
    for start in FOREIGN:
        for secured in (True, False):
            await target.send(start + pickle.dumps(bomb), secured)


async def test_a_plain_client_of_dask(target, bomb):
    address = target.listener.contact_address.replace(target.scheme, "tcp")
    with pytest.raises(TypeError, match="a Dask client with tcp:// or tls://"):
        await connect(address)
    host_port = address.split("://")[1]
    comm = await get_backend("tcp").get_connector().connect(host_port)
    with contextlib.suppress(CommClosedError):
        await comm.write({"x": to_serialize(bomb)})
    comm.abort()

"""TLS from the shared key: who gets in, who is told what, and what can be seen on the way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
import sys

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.comm import connect, registry
from distributed.comm.core import FatalCommClosedError, listen
from distributed.protocol import to_serialize
from tests.conftest import LOCAL_CLUSTER

from dask_fabric.comm.network import key_encryption, shared_key
from dask_fabric.errors import ConfigError
from dask_fabric.wire.authentication import Keys

ONE, OTHER = b"\x01" * 32, b"\x02" * 32
SCHEMES = ["fabric", "fabric+tls"]
SECRET = b"what nobody may see" * 10


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shared_key.forget()
    yield
    shared_key.forget()


def having(secret: bytes | None, encrypt: bool = True, local: bool = True):
    """The configuration of a process; by default it encrypts within a host too."""
    return dask.config.set(
        {
            "fabric.auth.key": secret and secret.hex(),
            "fabric.auth.encrypt": encrypt,
            "fabric.auth.encrypt-local": local,
        }
    )


async def echo(comm) -> None:
    with contextlib.suppress(OSError):
        while True:
            await comm.write(await comm.read())


@contextlib.asynccontextmanager
async def listening(scheme: str, **configuration):
    with having(**configuration):
        listener = await listen(f"{scheme}://127.0.0.1", echo)
    yield listener.contact_address
    listener.stop()


async def asked(address: str, **arguments) -> object:
    """Connect, and give the open comm after a message there and back."""
    comm = await connect(address, timeout=20, **arguments)
    sent = np.arange(1_000_000)
    await comm.write({"x": to_serialize(sent)})
    await comm.read()
    return comm


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_everything_is_encrypted(scheme):
    async with listening(scheme, secret=ONE) as address, Tap(address) as tap:
        with having(ONE):
            comm = await connect(f"{scheme}://127.0.0.1:{tap.port}", require_encryption=True)
            await comm.write({"secret": SECRET})
            assert (await comm.read())["secret"] == SECRET
            assert comm.extra_info["cipher"][1] == "TLSv1.3"
            assert comm.paths == {"host": "stream"}
            await comm.close()
    assert tap.seen.startswith(b"\x16\x03") and len(tap.seen) > 2 * len(SECRET)
    for plain in (SECRET[:19], b"fabric\x8a", b"authentication", ONE, ONE.hex().encode()):
        assert plain not in tap.seen


async def test_within_a_host_memory_is_faster_and_no_network_is_there():
    async with listening("fabric", secret=ONE, local=False) as address:
        with having(ONE, local=False):
            comm = await asked(address)
            assert comm.control_stream == "unix" and "cipher" not in comm.extra_info
            await comm.close()
        for strict in ({"local": True}, {"local": False, "require_encryption": True}):
            with having(ONE, local=strict.pop("local")):  # the stricter side decides
                comm = await asked(address, **strict)
                assert comm.extra_info["cipher"][1] == "TLSv1.3"
                await comm.close()


REFUSALS = [
    # the server's key and encryption, the client's, what the client is told, what the server logs
    ((ONE, True), (OTHER, True), "the server has another key", "the client has another key"),
    ((ONE, True), (ONE, False), "this server encrypts by the shared key", "encrypts by the shared"),
    ((ONE, True), (None, False), "the client has none: give it the same", "the client has none"),
    ((ONE, False), (ONE, True), "the server does not encrypt by a key", "which is not encrypted"),
    ((None, False), (ONE, True), "the server does not encrypt by a key", "which is not encrypted"),
]


@pytest.mark.parametrize(("server", "client", "told", "logged"), REFUSALS)
async def test_both_sides_are_told_what_to_do(server, client, told, logged, caplog):
    async def line_of_listener():
        while not any(one.name.endswith("listener") for one in caplog.records):
            await asyncio.sleep(0)

    async with listening("fabric", secret=server[0], encrypt=server[1]) as address:
        with having(client[0], client[1]), pytest.raises(FatalCommClosedError, match=told):
            await connect(address, timeout=20)
        await asyncio.wait_for(line_of_listener(), 20)  # the client may know first
    refused = [one.getMessage() for one in caplog.records if one.name.endswith("listener")]
    assert len(refused) == 1 and logged in refused[0]


@pytest.mark.parametrize("scheme", ["fabric+tcp", "fabric+ucx"])
async def test_schemes_that_never_encrypt_refuse_to(scheme):
    with having(ONE):
        with pytest.raises(RuntimeError, match=r"never encrypts: use fabric:// or fabric\+tls"):
            await listen(f"{scheme}://127.0.0.1", echo)
        with pytest.raises(RuntimeError, match="never encrypts"):
            await connect(f"{scheme}://127.0.0.1:1", timeout=20)


async def test_encryption_needs_a_key():
    with having(None), pytest.raises(ConfigError, match=r"fabric.auth.encrypt is true, and this"):
        await listen("fabric://127.0.0.1", echo)


async def test_encryption_needs_the_package_cryptography(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with having(os.urandom(32)), pytest.raises(ConfigError, match="pip install cryptography"):
        await listen("fabric://127.0.0.1", echo)


async def test_certificates_that_dask_is_given_come_first(temporary_security):
    with having(ONE):
        server = temporary_security.get_listen_args("scheduler")
        listener = await listen("fabric+tls://127.0.0.1", echo, **server)
        client = temporary_security.get_connection_args("client")
        comm = await asked(listener.contact_address, **client)
        assert comm.extra_info["peercert"]["subject"] == ((("commonName", "dask-internal"),),)
        await comm.close()
        listener.stop()


async def test_a_server_without_the_key_is_not_believed(temporary_security, tmp_path):
    """A man in the middle has some certificate, and never sees a hello."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    (tmp_path / "cert").write_text(temporary_security.tls_scheduler_cert)
    (tmp_path / "key").write_text(temporary_security.tls_scheduler_key)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    heard = bytearray()

    async def serve(reader, writer):
        with contextlib.suppress(OSError):
            heard.extend(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    with having(ONE), pytest.raises(FatalCommClosedError, match="the server has another key"):
        await connect(f"fabric://127.0.0.1:{port}", timeout=20)
    server.close()
    assert not heard


@pytest.mark.parametrize(
    ("of_server", "of_client"),
    [((OTHER, ONE), (ONE,)), ((OTHER, ONE), (OTHER,)), ((ONE,), (OTHER, ONE)), ((ONE,), (ONE,))],
)
def test_while_keys_are_replaced_a_common_one_is_found(of_server, of_client):
    certificate = handshake(Keys(of_server), Keys(of_client))
    (common,) = {*Keys(of_server).fingerprints} & {*Keys(of_client).fingerprints}
    assert certificate["subject"] == ((("commonName", f"dask-fabric {common}"),),)


def test_without_a_common_key_there_is_none():
    with pytest.raises(ssl.SSLError):
        handshake(Keys((ONE,)), Keys((OTHER,)))


def handshake(server: Keys, client: Keys) -> dict:
    """Shake hands in memory; give the server's certificate, as the client sees it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        key_encryption.client_context(client).wrap_bio(
            to_client, to_server, server_hostname=key_encryption.server_name(client)
        ),
        key_encryption.server_context(server).wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert ends[0].version() == "TLSv1.3"
    return ends[0].getpeercert()


SERVERS = [
    (b"", "the other side closed the connection"),
    (b"HTTP/1.1 400 Bad Request", "the server is another program"),
]


@pytest.mark.parametrize(("answer", "told"), SERVERS)
async def test_servers_of_other_programs(answer, told):
    async def serve(reader, writer):
        await reader.read(1 << 16)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with having(ONE), pytest.raises(FatalCommClosedError, match=told):
        await connect(f"fabric://{address}", timeout=20)
    server.close()


async def test_who_has_a_certificate_cannot_stand_between_two_who_have_the_key(
    temporary_security,
):
    """He has no key, and passes on what a client sends who trusts his certificate."""
    trusting = temporary_security.get_connection_args("client")["ssl_context"]
    trusted = temporary_security.get_listen_args("scheduler")["ssl_context"]
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    name = key_encryption.server_name(Keys((ONE,)))  # everybody can see it
    async with (
        listening("fabric", secret=ONE) as address,
        Tap(address, {"ssl": trusted}, {"ssl": careless, "server_hostname": name}) as tap,
    ):
        with having(ONE), pytest.raises(OSError, match="has not proved that it has"):
            connector = registry.get_backend(
                "fabric+tls"
            ).get_connector()  # which does not try again
            await connector.connect(f"127.0.0.1:{tap.port}", ssl_context=trusting)
    assert b"authentication" in tap.seen


@pytest.mark.parametrize("of_server", [(ONE,), (ONE, OTHER)])
async def test_a_name_that_is_no_text_makes_no_traceback(of_server, capfd, tmp_path):
    """Strangers may send many, and Python does not limit what it prints."""
    file = tmp_path / "key"
    stored = [shared_key.StoredKey(one, None) for one in of_server]
    shared_key.write(file, tuple(stored), replace=False)
    with dask.config.set({"fabric.auth.key-file": str(file)}):
        async with listening("fabric", secret=None) as address:
            alert = await answer_to_name(address, b"\xff" * 20)
            assert alert.startswith(b"\x15\x03" if len(of_server) > 1 else b"\x16\x03")
            with having(None):
                await (await asked(address)).close()  # the own names are served
    assert "Traceback" not in capfd.readouterr().err


async def answer_to_name(address: str, name: bytes) -> bytes:
    """Begin TLS as a client that asks for a name; give the server's first bytes."""
    to_server = ssl.MemoryBIO()
    stranger = key_encryption.client_context(Keys((OTHER,))).wrap_bio(
        ssl.MemoryBIO(), to_server, server_hostname="x" * len(name)
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        stranger.do_handshake()
    host, port = address.rpartition("://")[2].split(":")
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(to_server.read().replace(b"x" * len(name), name))
    answer = await asyncio.wait_for(reader.read(100), 20)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer


def test_every_process_makes_the_same_certificate():
    fingerprint = Keys((ONE,)).fingerprints[0]
    first, second = (key_encryption._pem_of(Keys((ONE,)), fingerprint) for _ in range(2))
    assert first == second
    assert key_encryption._pem_of(Keys((OTHER,)), Keys((OTHER,)).fingerprints[0]) != first


def test_the_vector_of_the_documentation():
    keys = Keys((bytes(range(32)),))
    _, certificate = key_encryption._pem_of(keys, keys.fingerprints[0])
    assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest() == (
        "ad1998aff5af177e2a34586f93094aa5f2b5b5b07573b2961d1bde4bbbeddcb5"
    )


def test_a_cluster_finds_the_key_and_encrypts(monkeypatch):
    """Nannies and workers are processes of their own."""
    monkeypatch.setenv("DASK_FABRIC__AUTH__KEY", ONE.hex())
    monkeypatch.setenv("DASK_FABRIC__AUTH__ENCRYPT", "true")
    monkeypatch.setenv("DASK_FABRIC__AUTH__ENCRYPT_LOCAL", "true")
    with (
        having(ONE),
        LocalCluster(n_workers=2, threads_per_worker=1, protocol="fabric", **LOCAL_CLUSTER) as made,
        Client(made) as client,
    ):
        left, right = client.scheduler_info()["workers"]
        data = client.submit(np.arange, 1_000_000, workers=[left])
        assert client.submit(np.sum, data, workers=[right]).result(60) == 499_999_500_000
        told = client.run(lambda dask_worker: dask_worker.batched_stream.comm.extra_info["cipher"])
        assert {cipher[1] for cipher in told.values()} == {"TLSv1.3"}


class Tap:
    """A port that passes one connection on to an address, and keeps what it has seen.

    It has TLS with both sides, or nothing to do with it.
    """

    def __init__(self, address: str, near: dict | None = None, far: dict | None = None) -> None:
        self._target = address.rpartition("://")[2].rsplit(":", 1)
        self._near, self._far = near or {}, far or {}
        self.seen = bytearray()

    async def __aenter__(self):
        self._ended = asyncio.Event()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, **self._near)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_) -> None:
        await asyncio.wait_for(self._ended.wait(), 20)
        self._server.close()

    async def _serve(self, reader, writer) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target, **self._far)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._ended.set()

    async def _pump(self, reader, writer) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.seen += data
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

"""How two processes choose their paths, by what the peer says of itself."""

from __future__ import annotations

import functools
import os

import msgpack

from dask_fabric import providers
from dask_fabric.comm.network import unix
from dask_fabric.paths import disclosure
from dask_fabric.paths.cma import process as cma_process
from dask_fabric.paths.negotiation import Agreement, decode_found, encode_found
from dask_fabric.paths.provider import HostKey
from dask_fabric.wire.hello import Hello

from ..pieces import Input
from ..registry import target
from .hello import BOOT, FULL, HELLOS, WORDS, body_of

_SALT = "0" * 32
_PROVEN = disclosure._concealed(FULL, disclosure._proof(BOOT, _SALT), "client")
_PEERS = [body_of(one) for one in (*HELLOS, _PROVEN)]


@target([msgpack.packb({"cma": "a reason", "ucx": "another"}), b"\x80"], [b"cma", b"shm", b"ucx"])
def paths_record(data: bytes) -> None:
    """The client's failed probes; what decodes and is encoded again decodes the same."""
    found = decode_found(data)
    assert decode_found(encode_found(found)) == found


@target(
    [bytes([options]) + body for options in (0, 1, 3, 0x14) for body in _PEERS],
    [*WORDS, _PROVEN.boot.encode()],
    share=3,
)
def choice_of_paths(data: bytes) -> None:
    """A peer's hello, beside ours; whatever it says, paths are chosen, or none."""
    given = Input(data)
    options = given.number()
    peer = Hello.decode(given.rest())
    is_server, is_unix = options & 1, bool(options & 2)
    if is_server:
        ours = disclosure.of_server(FULL, peer, is_unix)
        agreed = Agreement(peer, ours)
    else:
        ours = FULL if is_unix else _PROVEN
        agreed = Agreement(ours, peer)
    known = disclosure.deciphered(peer, BOOT, "client" if is_server else "server")
    for name, description in known.described.items():
        _check_concealing(providers.by_name().get(name), description)
    failed = {
        one.name: "failed" for at, one in enumerate(agreed.candidates) if options >> 4 + at & 1
    }
    choice = agreed.choose(failed)
    for name in choice.opened:
        assert name not in failed
        assert name not in choice.without(name, "gone").opened
    assert "host" in choice.paths


def _check_concealing(provider, description) -> None:
    """What is concealed for processes of this host can be revealed there."""
    if provider is None or not provider.check(description):
        return
    key = HostKey(BOOT, _PROVEN.boot, "client")
    revealed = provider.reveal(provider.conceal(description, key), key)
    for name in ("address", "nonce", "id", "token"):
        if name != "nonce" or len(description.get(name, b"")) <= 16:
            assert revealed.get(name) == description.get(name)


@functools.cache
def _secret():
    return cma_process.Secret()


@target([bytes(9) + b"\x10", b"\1" + bytes(8) + bytes(16), bytes([1]) + b"\xff" * 24])
def cma_probe(data: bytes) -> None:
    """A peer's description of its memory, which is read there to verify it."""
    given = Input(data)
    options, offset = given.number(), given.number(8)
    pid = os.getpid() if options & 1 else (1 << 22) + options  # of a process, and of none
    address = offset if options & 2 else (_secret().address + offset) % (1 << 64)
    nonce = _secret().nonce if options & 4 else given.rest()
    process, reason = cma_process.attach(pid, address, nonce)
    assert (process is None) == bool(reason)


@target([b"127.0.0.1:8786", b"[::1]:8786", b"localhost:1", b"0.0.0.0:8786", b"1:2:3", b":"])
def unix_address(data: bytes) -> None:
    """The address that a client of a Unix socket says it has dialled."""
    peer = Hello(address=data.decode(errors="replace"))
    for listener in ("127.0.0.1:8786", "0.0.0.0:8786", "[::]:8786"):
        assert isinstance(unix.refuse_client(listener, peer), str)
        assert isinstance(unix.refuse_server(listener, peer), str)

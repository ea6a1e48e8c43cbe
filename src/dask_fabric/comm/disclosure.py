"""What a hello tells to whom: what only a process of the same host can use, no other can read.

A hello over TCP goes to whoever is at the other end, and in plain text. Of use within a host alone
are the process id, the memory that proves it (``cma``), and the namespaces. They are enciphered
with a key that processes of the host can make, and nobody else: from its boot id, which each of
them can read and no hello tells, and a salt that the client draws. In place of the boot id stands
the proof that a side knows it. A Unix socket leads to a process of this host and user, and needs
none of that.

See "What a hello tells" in ``docs/wire-protocol.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace

from dask_fabric.wire.hello import Hello

_SALT_BYTES = 16
_PROOF = re.compile(r"~[0-9a-f]{32}~[0-9a-f]{32}")
_PID_MASK = (1 << 31) - 1


def of_client(hello: Hello) -> Hello:
    """Give what a client says over TCP of what *hello* has."""
    if not hello.boot:
        return hello
    proof = _proof(hello.boot, secrets.token_hex(_SALT_BYTES))
    return _enciphered(hello, proof, "client")


def of_server(hello: Hello, client: Hello, is_unix: bool) -> Hello:
    """Give what a server says to a client of what *hello* has.

    Parameters
    ----------
    hello : Hello
        With everything.
    client : Hello
        As the client sent it.
    is_unix : bool
        Whether the connection is a Unix socket.
    """
    if not client.ucx and hello.ucx:
        hello = replace(hello, ucx={})
    if is_unix or not hello.boot or client.boot == hello.boot:
        return hello
    if is_proven(client.boot, hello.boot):
        return _enciphered(hello, client.boot, "server")
    ucx = {key: value for key, value in hello.ucx.items() if key != "scope"}
    return replace(hello, pid=0, boot="", cma={}, ucx=ucx)


def deciphered(peer: Hello, boot: str, side: str) -> Hello:
    """Give a peer's hello with what it tells processes of this host.

    Parameters
    ----------
    peer : Hello
        As the peer sent it.
    boot : str
        This host's boot id.
    side : {"client", "server"}
        What the peer is.
    """
    if not is_proven(peer.boot, boot):
        return peer
    pid, cma = _exchange(peer.pid, peer.cma, _key(boot, peer.boot, side))
    return replace(peer, pid=pid, cma=cma)


def is_proven(told: str, boot: str) -> bool:
    """Whether *told* can only come from a process that knows the boot id *boot*."""
    if not boot or not _PROOF.fullmatch(told):
        return False
    return hmac.compare_digest(told, _proof(boot, told.split("~")[1]))


def _proof(boot: str, salt: str) -> str:
    return f"~{salt}~{_digest(boot, salt, 'boot')[:16].hex()}"


def _enciphered(hello: Hello, proof: str, side: str) -> Hello:
    pid, cma = _exchange(hello.pid, hello.cma, _key(hello.boot, proof, side))
    ucx = hello.ucx
    if "scope" in ucx:
        ucx = {**ucx, "scope": _disguised(ucx["scope"], hello.boot, proof)}
    return replace(hello, boot=proof, pid=pid, cma=cma, ucx=ucx)


def _disguised(scope: Mapping[str, str], boot: str, proof: str) -> dict[str, str]:
    """Give names that are the same on both sides where the scope is; more is not asked of them."""
    return {key: _digest(boot, proof, key, name)[:16].hex() for key, name in scope.items()}


def _exchange(pid: int, cma: Mapping, key: bytes) -> tuple[int, Mapping]:
    """Encipher or decipher: the two are the same."""
    pid ^= int.from_bytes(key[:4], "little") & _PID_MASK
    if cma:
        address = cma["address"] ^ int.from_bytes(key[4:12], "little")
        nonce = bytes(a ^ b for a, b in zip(cma["nonce"], key[12:], strict=False))
        cma = {**cma, "address": address, "nonce": nonce}
    return pid, cma


def _key(boot: str, proof: str, side: str) -> bytes:
    return _digest(boot, proof, side)


def _digest(boot: str, *texts: str) -> bytes:
    return hmac.digest(boot.encode(), "\0".join(texts).encode(), hashlib.sha256)

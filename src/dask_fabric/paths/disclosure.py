"""What a hello tells to whom: what only a process of the same host can use, no other can read.

A hello over TCP goes to whoever is at the other end, and in plain text. Of use within a host alone
are the process id and what some paths say (see `Provider.conceal`). They are enciphered with a key
that processes of the host can make, and nobody else: from its boot id, which each of them can read
and no hello tells, and a salt that the client draws. In place of the boot id stands the proof that
a side knows it. A Unix socket leads to a process of this host and user, and needs none of that.

See "What a hello tells" in ``docs/wire-protocol.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dask_fabric import providers
from dask_fabric.paths.provider import HostKey, Provider
from dask_fabric.wire.hello import Hello

_SALT_BYTES = 16
_PROOF = re.compile(r"~[0-9a-f]{32}~[0-9a-f]{32}")
_PID_BYTES = 4
_PID_MASK = (1 << 31) - 1


def of_client(hello: Hello) -> Hello:
    """Give what a client says over TCP of what *hello* has."""
    if not hello.boot:
        return hello
    proof = _proof(hello.boot, secrets.token_hex(_SALT_BYTES))
    return _concealed(hello, proof, "client")


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
    described = {name: told for name, told in hello.described.items() if name in client.described}
    if len(described) < len(hello.described):
        hello = replace(hello, described=described)
    if is_unix or not hello.boot or client.boot == hello.boot:
        return hello
    if is_proven(client.boot, hello.boot):
        return _concealed(hello, client.boot, "server")
    told = _by_providers(described, lambda one, description: one.for_strangers(description))
    told = {name: description for name, description in told.items() if description}
    return replace(hello, pid=0, boot="", described=told)


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
    key = HostKey(boot, peer.boot, side)
    described = _by_providers(
        peer.described, lambda one, told: one.reveal(told, key) if one.check(told) else told
    )
    return replace(peer, pid=_exchanged(peer.pid, key), described=described)


def is_proven(told: str, boot: str) -> bool:
    """Whether *told* can only come from a process that knows the boot id *boot*."""
    if not boot or not _PROOF.fullmatch(told):
        return False
    return hmac.compare_digest(told, _proof(boot, told.split("~")[1]))


def _proof(boot: str, salt: str) -> str:
    digest = hmac.digest(boot.encode(), f"{salt}\0boot".encode(), hashlib.sha256)
    return f"~{salt}~{digest[:16].hex()}"


def _concealed(hello: Hello, proof: str, side: str) -> Hello:
    key = HostKey(hello.boot, proof, side)
    described = _by_providers(hello.described, lambda one, told: one.conceal(told, key))
    return replace(hello, boot=proof, pid=_exchanged(hello.pid, key), described=described)


def _by_providers(
    described: Mapping[str, Mapping], change: Callable[[Provider, Mapping], Mapping]
) -> dict[str, Mapping[str, Any]]:
    """Change each description by its provider; those of unknown paths are left out."""
    known = providers.by_name()
    return {name: change(known[name], told) for name, told in described.items() if name in known}


def _exchanged(pid: int, key: HostKey) -> int:
    """Encipher or decipher a process id: the two are the same."""
    mask = int.from_bytes(key.exchange(0, bytes(_PID_BYTES)), "little") & _PID_MASK
    return pid ^ mask

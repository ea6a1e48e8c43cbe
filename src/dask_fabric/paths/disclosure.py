"""Disclosure: only processes of the same host can read the parts of a hello meant for them.

A hello over TCP is plain text for any peer. The process id and some descriptions of paths (see
`Provider.conceal`) are useful within a host only. They are encrypted with a key that only processes
of that host can derive: from its boot id, which is readable on the host and in no hello, and a salt
that the client draws. In place of the boot id the hello contains a proof of knowing it. A Unix
socket leads to a process of this host and user, so nothing is encrypted there.

See "What a hello discloses" in ``docs/wire-protocol.md``.
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
    """Give a client's *hello* as it is sent over TCP."""
    if not hello.boot:
        return hello
    proof = _proof(hello.boot, secrets.token_hex(_SALT_BYTES))
    return _concealed(hello, proof, "client")


def of_server(hello: Hello, client: Hello, is_unix: bool) -> Hello:
    """Give a server's *hello* as it is sent to this client.

    Parameters
    ----------
    hello : Hello
        The complete hello.
    client : Hello
        As the client sent it.
    is_unix : bool
        Whether the connection is a Unix socket.
    """
    described = {name: one for name, one in hello.described.items() if name in client.described}
    if len(described) < len(hello.described):
        hello = replace(hello, described=described)
    if is_unix or not hello.boot or client.boot == hello.boot:
        return hello
    if is_proven(client.boot, hello.boot):
        return _concealed(hello, client.boot, "server")
    public = _by_providers(described, lambda provider, one: provider.for_strangers(one))
    public = {name: one for name, one in public.items() if one}
    return replace(hello, pid=0, boot="", described=public)


def deciphered(peer: Hello, boot: str, side: str) -> Hello:
    """Give a peer's hello with the parts decrypted that are for processes of this host.

    Parameters
    ----------
    peer : Hello
        As the peer sent it.
    boot : str
        This host's boot id.
    side : {"client", "server"}
        The peer's side.
    """
    if not is_proven(peer.boot, boot):
        return peer
    key = HostKey(boot, peer.boot, side)
    described = _by_providers(
        peer.described,
        lambda provider, one: provider.reveal(one, key) if provider.check(one) else one,
    )
    return replace(peer, pid=_exchanged(peer.pid, key), described=described)


def is_proven(proof: str, boot: str) -> bool:
    """Whether *proof* can only come from a process that knows the boot id *boot*."""
    if not boot or not _PROOF.fullmatch(proof):
        return False
    return hmac.compare_digest(proof, _proof(boot, proof.split("~")[1]))


def _proof(boot: str, salt: str) -> str:
    digest = hmac.digest(boot.encode(), f"{salt}\0boot".encode(), hashlib.sha256)
    return f"~{salt}~{digest[:16].hex()}"


def _concealed(hello: Hello, proof: str, side: str) -> Hello:
    key = HostKey(hello.boot, proof, side)
    described = _by_providers(hello.described, lambda provider, one: provider.conceal(one, key))
    return replace(hello, boot=proof, pid=_exchanged(hello.pid, key), described=described)


def _by_providers(
    described: Mapping[str, Mapping], change: Callable[[Provider, Mapping], Mapping]
) -> dict[str, Mapping[str, Any]]:
    """Change each description by its provider; those of unknown paths are left out."""
    known = providers.by_name()
    return {name: change(known[name], one) for name, one in described.items() if name in known}


def _exchanged(pid: int, key: HostKey) -> int:
    """Encrypt or decrypt a process id; the operation is the same."""
    mask = int.from_bytes(key.exchange(0, bytes(_PID_BYTES)), "little") & _PID_MASK
    return pid ^ mask

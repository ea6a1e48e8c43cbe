"""The negotiation of paths, from this process's side: what it offers, and what it finds out."""

from __future__ import annotations

import functools
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from dask_fabric.comm import unix
from dask_fabric.config import Settings
from dask_fabric.paths import cma
from dask_fabric.wire.hello import Hello
from dask_fabric.wire.negotiation import (
    REASON_LENGTH_LIMIT,
    Choice,
    candidates,
    choose,
    decode_found,
    encode_found,
)

_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.lru_cache(maxsize=256)
def describe(
    scheme: str, settings: Settings, encrypted: bool, fast: bool, pid: int, address: str
) -> Hello:
    """Say of this process what a peer may need to know.

    Parameters
    ----------
    scheme : str
    settings : dask_fabric.config.Settings
    encrypted : bool
        Whether the stream is: frames then stay on it.
    fast : bool
        Whether the scheme wants other paths than the stream.
    pid : int
        This process's: a forked one must not say the same.
    address : str
        For a Unix socket; see `Hello`.
    """
    limits = {
        "frames": settings.frame_count_limit,
        "header": settings.header_bytes_limit,
        "message": settings.message_bytes_limit,
    }
    hello = Hello(scheme=scheme, pid=pid, limits=limits, address=address)
    reason = _why_not_cma(scheme, settings, encrypted, fast)
    if reason:
        return replace(hello, refused={"cma": reason})
    memory_address, nonce = cma.secret()
    return replace(
        hello,
        paths=("stream", "cma"),
        boot=boot_id(),
        cma={"address": memory_address, "nonce": nonce},
    )


def _why_not_cma(scheme: str, settings: Settings, encrypted: bool, fast: bool) -> str:
    if not fast:
        return f"{scheme}:// uses nothing but its stream"
    if encrypted:
        return "the connection is encrypted, and its frames never leave it"
    if not settings.cma_enabled:
        return "fabric.cma.enabled is false in its configuration"
    return "" if boot_id() else f"{_BOOT_ID} cannot be read"


@functools.cache
def boot_id() -> str:
    """Give what names the running system of this host; empty where that is not to be had."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


@functools.cache
def allow_ptrace(path: Path = _PTRACE_SCOPE) -> None:
    """Let peers of the same user read this process, where that takes a permission."""
    try:
        restricted = path.read_text().strip() == "1"
    except OSError:
        return  # a kernel without Yama restricts nothing
    if restricted:
        cma.allow_peers()


class Negotiator:
    """One side's part in choosing the paths of one connection.

    Parameters
    ----------
    sock : socket.socket
        Of the connection.
    hello : Hello
        What this side says of itself.
    """

    def __init__(self, sock: socket.socket, hello: Hello) -> None:
        self._sock = sock
        self._hello = hello

    def answer(self, client: Hello) -> Hello:
        """As a server, give the hello for a client whose own is known: with what was found out."""
        found = self._find_out(candidates(client, self._hello), client)
        if found:
            self._hello = replace(self._hello, refused={**self._hello.refused, **found})
        return self._hello

    def complete_as_client(self, channel: Any) -> None:
        """Find out the rest, choose, and tell the server."""
        server = channel.peer
        paths = candidates(self._hello, server)
        found = self._find_out(paths, server)
        if paths:
            channel.tell_paths(encode_found(found))
        self._use(channel, choose(self._hello, server, found))

    def await_client(self, channel: Any) -> None:
        """As a server, use the stream until the client has told what it found out."""
        paths = candidates(channel.peer, self._hello)
        channel.choice = choose(
            channel.peer, self._hello, dict.fromkeys(paths, "it has not answered yet")
        )

    def complete_as_server(self, channel: Any, content: bytes) -> None:
        """Choose as the client did, which has told what it found out.

        Raises
        ------
        ProtocolError
            What it told makes no sense.
        """
        self._use(channel, choose(channel.peer, self._hello, decode_found(content)))

    def _find_out(self, paths: list[str], peer: Hello) -> dict[str, str]:
        """Try the paths on which both hellos agree; give those that fail, with the reasons."""
        found = {}
        if "cma" in paths:
            reason = cma.probe(self._pid_of(peer), peer.cma["address"], peer.cma["nonce"])
            if reason:
                found["cma"] = reason[:REASON_LENGTH_LIMIT]
        return found

    def _pid_of(self, peer: Hello) -> int:
        """Give the peer's process: from the kernel, where it knows; else as the peer says."""
        return unix.peer_pid(self._sock) if self._sock.family == socket.AF_UNIX else peer.pid

    def _use(self, channel: Any, choice: Choice) -> None:
        channel.choice = choice
        if choice.paths["host"] == "cma":
            channel.use_path("cma", self._pid_of(channel.peer))

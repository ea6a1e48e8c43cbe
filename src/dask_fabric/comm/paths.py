"""The negotiation of paths, from this process's side: what it offers, and what it finds out."""

from __future__ import annotations

import functools
import secrets
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dask_fabric.comm import disclosure, refusals, unix
from dask_fabric.comm.direct import Devices
from dask_fabric.comm.security import Scheme
from dask_fabric.comm.ucx import LocalUCX, local_ucx
from dask_fabric.config import Settings
from dask_fabric.errors import RefusedError
from dask_fabric.memory import device
from dask_fabric.memory.device import HOST
from dask_fabric.paths.cma import process as cma
from dask_fabric.paths.cma.endpoint import CMAPath
from dask_fabric.wire.hello import CHUNKS, Hello
from dask_fabric.wire.negotiation import (
    REASON_LENGTH_LIMIT,
    UCX_SCHEME,
    Choice,
    candidates,
    choose,
    decode_found,
    encode_found,
    insists_on_ucx,
    objection,
)
from dask_fabric.wire.records import error_record, violation
from dask_fabric.wire.text import one_line

_REFUSED = "From %s to %s: %s"
_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def describe(
    scheme: Scheme,
    settings: Settings,
    encrypted: bool,
    pid: int,
    address: str,
    memory: tuple[str, ...] = (HOST,),
) -> Hello:
    """Say of this process what a peer may need to know.

    Parameters
    ----------
    scheme : Scheme
    settings : dask_fabric.config.Settings
    encrypted : bool
        Whether the stream is: frames then stay on it.
    pid : int
        This process's: a forked one must not say the same.
    address : str
        For a Unix socket; see `Hello`.
    memory : tuple of str
        The kinds of memory that this process works with so far.
    """
    ucx = None, _only_stream(scheme, encrypted)
    if not ucx[1]:
        ucx = local_ucx(settings, scheme.name == UCX_SCHEME, wait=False)
    return _described(scheme, settings, encrypted, pid, address, memory, *ucx)


# Whatever may change stands among the arguments, such as a reason why there is no UCX just now.
@functools.lru_cache(maxsize=256)
def _described(
    scheme: Scheme,
    settings: Settings,
    encrypted: bool,
    pid: int,
    address: str,
    memory: tuple[str, ...],
    local: LocalUCX | None,
    why_no_ucx: str,
) -> Hello:
    limits = {
        "frames": settings.frame_count_limit,
        "header": settings.header_bytes_limit,
        "message": settings.message_bytes_limit,
    }
    stays_on_stream = bool(_only_stream(scheme, encrypted))
    hello = Hello(
        scheme=scheme.name,
        pid=0 if stays_on_stream else pid,
        memory=memory,
        # Whatever memory it has now: it may come to have a GPU's, and without it passes chunks on.
        features=() if settings.gpu_enabled is False else (CHUNKS,),
        limits=limits,
        address=address,
        boot="" if stays_on_stream else boot_id(),
    )
    return _add_ucx(_add_cma(hello, scheme, settings, encrypted), local, why_no_ucx)


def _add_cma(hello: Hello, scheme: Scheme, settings: Settings, encrypted: bool) -> Hello:
    reason = _only_stream(scheme, encrypted)
    if not reason and scheme.name == UCX_SCHEME:
        reason = f"{UCX_SCHEME}:// insists on UCX"
    elif not reason and not settings.cma_enabled:
        reason = "fabric.cma.enabled is false in its configuration"
    elif not reason and not hello.boot:
        reason = f"{_BOOT_ID} cannot be read"
    if reason:
        return _refusing(hello, {"cma": reason})
    return replace(hello, paths=(*hello.paths, "cma"), cma=_told(_shared_secret(hello.pid)))


@functools.lru_cache(maxsize=1)
def _shared_secret(pid: int) -> cma.Secret:
    """Give the secret for connections whose kernel names the peer's process anyway."""
    return cma.Secret()


def _told(secret: cma.Secret) -> dict[str, int | bytes]:
    return {"address": secret.address, "nonce": secret.nonce}


def _add_ucx(hello: Hello, local: LocalUCX | None, reason: str) -> Hello:
    if local is None:
        return _refusing(hello, {"ucx": reason})
    described = {
        "version": local.version,
        "transports": local.transports,
        "address": local.address,
        "token": 0,
        "scope": local.scope,
    }
    return replace(hello, paths=(*hello.paths, "ucx"), ucx=described)


def _only_stream(scheme: Scheme, encrypted: bool) -> str:
    if not scheme.fast:
        return f"{scheme.name}:// uses nothing but its stream"
    return "the connection is encrypted, and its frames never leave it" if encrypted else ""


def _refusing(hello: Hello, reasons: Mapping[str, str]) -> Hello:
    """Add reasons, as names that a hello may hold."""
    reasons = {path: _as_name(reason) for path, reason in reasons.items()}
    return replace(hello, refused={**hello.refused, **reasons})


def _as_name(text: str) -> str:
    return one_line(text)[:REASON_LENGTH_LIMIT]


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
        What this process says of itself.
    server_side : bool
        Whether this side accepted the connection.
    settings : dask_fabric.config.Settings

    Attributes
    ----------
    hello : Hello
        What this side says to this peer.
    """

    def __init__(
        self, sock: socket.socket, hello: Hello, server_side: bool, settings: Settings
    ) -> None:
        self._sock = sock
        self._settings = settings
        self._process: cma.Process | None = None  # the peer's, when it was found
        if hello.cma and sock.family != socket.AF_UNIX:
            self._secret = cma.Secret()  # is to live until the peer has read it
            hello = replace(hello, cma=_told(self._secret))
            if not server_side:
                hello = replace(hello, ends=_ends(sock.getsockname(), sock.getpeername()))
        if hello.ucx:  # a token for each connection, which nobody can guess
            token = 1 + secrets.randbits(62)
            hello = replace(hello, ucx={**hello.ucx, "token": token})
        self._boot = hello.boot
        self._is_unix = sock.family == socket.AF_UNIX
        self._peer_side = "client" if server_side else "server"
        self.hello = hello if server_side or self._is_unix else disclosure.of_client(hello)
        # What the hello speaks of; whatever becomes of that until the paths are chosen.
        self._runtime = device.current() if device.CUDA in hello.memory else None
        self._open: list[str] = []  # as a server: what the client has still to try

    def refuse(self, client: Hello) -> str:
        """As a server, give the reason to turn a client away, or ""."""
        if not insists_on_ucx(client, self.hello):
            return ""
        reason = objection("ucx", client, self._hello_for(client), {})
        return reason and f"{UCX_SCHEME}:// cannot be used between the two: {reason}"

    def answer(self, client: Hello) -> Hello:
        """As a server, give the hello for a client whose own is known: with what was found out."""
        self.hello = self._hello_for(client)
        paths = candidates(client, self.hello)
        found = self._find_out(paths, client)
        if "cma" in paths and not self._is_direct(client):
            found["cma"] = "a proxy, or a translation of addresses, is between the two"
        if found:
            self.hello = _refusing(self.hello, found)
        self._open = [path for path in paths if path not in found]
        return self.hello

    def complete_as_client(self, channel: Any) -> None:
        """Find out the rest, choose, and tell the server."""
        server = channel.peer
        paths = candidates(self.hello, server)
        found = self._find_out(paths, server)
        if paths:
            channel.tell_paths(encode_found(found))
        self._use(channel, choose(self.hello, server, found))
        if insists_on_ucx(self.hello, server) and channel.choice.paths["host"] != "ucx":
            reason = channel.choice.refused["ucx"]
            text = f"{UCX_SCHEME}:// cannot be used between the two: {reason}"
            raise RefusedError(text, error_record(text))

    def await_client(self, channel: Any) -> None:
        """As a server, use the stream until the client has told what it found out."""
        waiting = dict.fromkeys(self._open, "it has not answered yet")
        channel.choice = choose(channel.peer, self.hello, waiting)

    def complete_as_server(self, channel: Any, content: bytes) -> None:
        """Choose as the client did, which has told what it found out.

        Raises
        ------
        ProtocolError
            What it told makes no sense, or it had nothing to tell.
        """
        if not self._open:
            raise violation("paths that nobody asked for")
        self._use(channel, choose(channel.peer, self.hello, decode_found(content)))

    def _hello_for(self, client: Hello) -> Hello:
        return disclosure.of_server(self.hello, client, self._is_unix)

    def _find_out(self, paths: list[str], peer: Hello) -> dict[str, str]:
        """Try the paths on which both hellos agree; give those that fail, with the reasons."""
        found = {}
        if "cma" in paths:
            told = disclosure.deciphered(peer, self._boot, self._peer_side).cma
            self._process, reason = cma.attach(self._pid_of(peer), told["address"], told["nonce"])
            if reason:
                found["cma"] = _as_name(reason)
        return found

    def _is_direct(self, client: Hello) -> bool:
        """Whether the connection ends in the client: then its end is seen here when it happens.

        A proxy may tell of it long after the frames that it voids were given up.
        """
        if self._is_unix:
            return True  # the kernel names the process, and the probe has read from that
        return client.ends == _ends(self._sock.getpeername(), self._sock.getsockname())

    def _pid_of(self, peer: Hello) -> int:
        """Give the peer's process: from the kernel, where it knows; else as the peer says."""
        if self._kernel_pid is not None:
            return self._kernel_pid
        return disclosure.deciphered(peer, self._boot, self._peer_side).pid

    @functools.cached_property
    def _kernel_pid(self) -> int | None:
        """The peer's process as the kernel tells it, 0 where that is hidden; None for TCP."""
        return unix.peer_pid(self._sock) if self._is_unix else None

    def _use(self, channel: Any, choice: Choice) -> None:
        channel.choice = choice
        if choice.paths["host"] == "cma":
            channel.use(CMAPath(self._process, self._settings.cma_threshold_bytes))
        if "ucx" in choice.paths.values() and not self._use_ucx(channel, choice.paths):
            reason = "UCX of this process does not take the peer's address"
            ends = channel.addresses()
            refusals.of(channel.loop).warn(
                "addresses of UCX were not taken", _REFUSED, *ends, reason
            )
            channel.choice = choice.without("ucx", reason)

    def _use_ucx(self, channel: Any, paths: Mapping[str, str]) -> bool:
        from dask_fabric.paths.ucx.endpoint import UCXPath

        devices = Devices(self._runtime) if paths.get("cuda") == "ucx" else None
        path = UCXPath(
            self.hello.ucx["token"],
            channel.peer.ucx["token"],
            channel.peer.ucx["address"],
            self._kernel_pid or 0,
            paths["host"] == "ucx",
            None if devices is None else devices.ucx_kind,
        )
        channel.use(path, devices)
        return path.offers


def _ends(*names: tuple) -> tuple[str, ...]:
    """Name sockets as both sides of a connection do, whatever their families."""
    hosts = (name[0].partition("%")[0].removeprefix("::ffff:") for name in names)
    return tuple(f"{host} {name[1]}" for host, name in zip(hosts, names, strict=True))

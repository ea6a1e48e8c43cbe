"""The negotiation of paths, from this process's side: what it offers, and what it finds out."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.comm.core import FatalCommClosedError

from dask_fabric import providers
from dask_fabric.comm.device.direct import Devices
from dask_fabric.comm.network import refusals, unix
from dask_fabric.comm.network.security import Scheme
from dask_fabric.config import Settings
from dask_fabric.errors import RefusedError, UnavailableError
from dask_fabric.memory import device
from dask_fabric.memory.device import HOST
from dask_fabric.paths import disclosure
from dask_fabric.paths.negotiation import (
    Agreement,
    Choice,
    agreement,
    by_side,
    decode_found,
    encode_found,
)
from dask_fabric.paths.provider import Candidate, Peer, Provider
from dask_fabric.wire.hello import CHUNKS, STREAM, Hello
from dask_fabric.wire.records import error_record, violation
from dask_fabric.wire.text import NAME_LENGTH_LIMIT, one_line

if TYPE_CHECKING:
    from dask_fabric.engine.channel import Channel

_REFUSED = "From %s to %s: %s"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

for _provider in providers.found():
    _provider.load()


class SchemeUnavailableError(UnavailableError, FatalCommClosedError):
    """The scheme is known, but nothing can be sent by it; Dask does not try again.

    Attributes
    ----------
    reason : str
        Without the address and the advice that the message has.
    """

    reason: str = ""


async def prepare(scheme: Scheme, address: str, settings: Settings, host: str = "") -> None:
    """Let the paths find and start what they need; costs nothing when that was done before.

    Parameters
    ----------
    scheme : Scheme
    address : str
        To listen on or to connect to, with the scheme.
    settings : dask_fabric.config.Settings
    host : str
        That a listener is bound to.

    Raises
    ------
    SchemeUnavailableError
        The scheme insists on a path, and that cannot be used: with the reason and the remedy.
    """
    for provider in providers.found():
        insists = provider.scheme == scheme.name
        reason = await provider.prepare(settings.of_path(provider.name), insists, host)
        if insists and reason:
            error = SchemeUnavailableError(
                f"cannot use {address}: {reason}. `dask fabric doctor --require {provider.name}` "
                "tells more; fabric:// takes the best path that both ends have"
            )
            error.reason = reason
            raise error


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
    told = tuple(
        reason or provider.describe(section, insists)
        for (provider, insists, reason), section in zip(
            _uses(scheme, encrypted), settings.paths, strict=True
        )
    )
    return _described(scheme, settings, encrypted, pid, address, memory, told)


@functools.lru_cache(maxsize=16)
def _uses(scheme: Scheme, encrypted: bool) -> tuple[tuple[Provider, bool, str], ...]:
    """Give each path, whether the scheme insists on it, and why it is not used, or ""."""
    known = providers.found()
    one_path = [one.name for one in known if one.scheme == scheme.name]

    def reason(provider: Provider) -> str:
        if one_path and provider.name not in one_path:
            return f"{scheme.prefix} takes no other path"
        if provider.within_host and not boot_id():
            return f"{_BOOT_ID} cannot be read"
        return ""

    only_stream = _only_stream(scheme, encrypted)
    return tuple((one, one.name in one_path, only_stream or reason(one)) for one in known)


# Whatever may change stands among the arguments; a description is equal to itself alone.
@functools.lru_cache(maxsize=256)
def _described(
    scheme: Scheme,
    settings: Settings,
    encrypted: bool,
    pid: int,
    address: str,
    memory: tuple[str, ...],
    told: tuple[Mapping[str, Any] | str, ...],
) -> Hello:
    limits = {
        "frames": settings.frame_count_limit,
        "header": settings.header_bytes_limit,
        "message": settings.message_bytes_limit,
    }
    stays_on_stream = bool(_only_stream(scheme, encrypted))
    by_name = dict(zip((one.name for one in providers.found()), told, strict=True))
    described = {name: one for name, one in by_name.items() if not isinstance(one, str)}
    hello = Hello(
        scheme=scheme.name,
        pid=0 if stays_on_stream else pid,
        paths=(STREAM, *described),
        memory=memory,
        # Whatever memory it has now: it may come to have a GPU's, and without it passes chunks on.
        features=() if settings.gpu_enabled is False else (CHUNKS,),
        limits=limits,
        address=address,
        boot="" if stays_on_stream else boot_id(),
        described=described,
    )
    return _refusing(hello, {name: one for name, one in by_name.items() if isinstance(one, str)})


def _only_stream(scheme: Scheme, encrypted: bool) -> str:
    if not scheme.fast:
        return f"{scheme.name}:// uses nothing but its stream"
    return "the connection is encrypted, and its frames never leave it" if encrypted else ""


def _refusing(hello: Hello, reasons: Mapping[str, str]) -> Hello:
    """Add reasons, as names that a hello may hold."""
    reasons = {path: _as_name(reason) for path, reason in reasons.items()}
    return replace(hello, refused={**hello.refused, **reasons})


def _as_name(text: str) -> str:
    return one_line(text)[:NAME_LENGTH_LIMIT]


@functools.cache
def boot_id() -> str:
    """Give what names the running system of this host; empty where that is not to be had."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


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
        self._is_unix = sock.family == socket.AF_UNIX
        self._boot = hello.boot
        self._peer_side = "client" if server_side else "server"
        known = providers.by_name()
        # By path, until the paths are chosen: some live until the peer has read from them.
        self._candidates: dict[str, Candidate] = {}
        told = {}
        for name, description in hello.described.items():
            candidate = known[name].candidate(description, settings.of_path(name), sock)
            self._candidates[name] = candidate
            if candidate.description is not description:
                told[name] = candidate.description
        if told:
            hello = replace(hello, described={**hello.described, **told})
        if not self._is_unix and not server_side:
            if any(known[name].needs_direct_connection for name in hello.described):
                hello = replace(hello, ends=_ends(sock.getsockname(), sock.getpeername()))
            hello = disclosure.of_client(hello)
        self.hello = hello
        # What the hello speaks of; whatever becomes of that until the paths are chosen.
        self._runtime = device.current() if device.CUDA in hello.memory else None
        self._agreed: Agreement | None = None  # with the peer, but for what was found since
        self._found: dict[str, str] = {}  # by this side, with its name
        self._peers: dict[str, Peer] = {}  # the peer, as each path sees it

    def refuse(self, client: Hello) -> str:
        """As a server, give the reason to turn a client away, or ""."""
        agreed = self._agree_as_server(client)
        for provider in agreed.insisted:
            if reason := agreed.objection(provider):
                return _unusable(provider, reason)
        return ""

    def answer(self, client: Hello) -> Hello:
        """As a server, give the hello for a client whose own is known: with what was found out."""
        wanted = self._agree_as_server(client).candidates
        found = self._find_out(wanted, client)
        direct_only = [one.name for one in wanted if one.needs_direct_connection]
        if direct_only and not self._is_direct(client):
            proxied = "a proxy, or a translation of addresses, is between the two"
            found |= dict.fromkeys(direct_only, proxied)
        self.hello = self._hello_for(client)
        if found:
            self.hello = _refusing(self.hello, found)
            self._found = by_side("server", found)
        return self.hello

    def complete_as_client(self, channel: Channel) -> None:
        """Find out the rest, choose, and tell the server."""
        agreed = agreement(self.hello, channel.peer)
        found = self._find_out(agreed.candidates, channel.peer)
        if agreed.candidates:
            channel.tell_paths(encode_found(found))
        self._use(channel, agreed.choose(by_side("client", found)))
        for provider in agreed.insisted:
            if channel.choice.paths[HOST] != provider.name:
                text = _unusable(provider, channel.choice.refused[provider.name])
                raise RefusedError(text, error_record(text))

    def await_client(self, channel: Channel) -> None:
        """As a server, use the stream until the client has told what it found out."""
        waiting = dict.fromkeys(self._open_paths(), "it has not answered yet")
        agreed = self._agree_as_server(channel.peer)
        channel.choice = agreed.choose({**by_side("client", waiting), **self._found})

    def complete_as_server(self, channel: Channel, content: bytes) -> None:
        """Choose as the client did, which has told what it found out.

        Raises
        ------
        ProtocolError
            What it told makes no sense, or it had nothing to tell.
        """
        if not self._open_paths():
            raise violation("paths that nobody asked for")
        told = by_side("client", decode_found(content))
        agreed = self._agree_as_server(channel.peer)
        self._use(channel, agreed.choose({**told, **self._found}))

    def _agree_as_server(self, client: Hello) -> Agreement:
        if self._agreed is None:
            self._agreed = agreement(client, self._hello_for(client))
        return self._agreed

    def _open_paths(self) -> list[str]:
        """Name the paths that the client has still to try."""
        wanted = self._agreed.candidates if self._agreed else ()
        return [one.name for one in wanted if one.name not in self._found]

    def _hello_for(self, client: Hello) -> Hello:
        return disclosure.of_server(self.hello, client, self._is_unix)

    def _find_out(self, wanted: Iterable[Provider], peer: Hello) -> dict[str, str]:
        """Try the paths on which both hellos agree; give those that fail, with the reasons."""
        found = {}
        for one in wanted:
            if reason := self._candidates[one.name].probe(self._peer(peer, one.name)):
                found[one.name] = _as_name(reason)
        return found

    def _peer(self, peer: Hello, path: str) -> Peer:
        """Give the peer as one path sees it."""
        if not self._peers:
            peer = disclosure.deciphered(peer, self._boot, self._peer_side)
            # As the kernel tells it, 0 where that is hidden.
            kernel_pid = unix.peer_pid(self._sock) if self._is_unix else 0
            pid = kernel_pid if self._is_unix else peer.pid
            self._peers = {
                name: Peer(told, pid, kernel_pid) for name, told in peer.described.items()
            }
        return self._peers[path]

    def _is_direct(self, client: Hello) -> bool:
        """Whether the connection ends in the client: then its end is seen here when it happens.

        A proxy may tell of it long after the frames that it voids were given up.
        """
        if self._is_unix:
            return True  # the kernel names the process, and the probe has read from that
        return client.ends == _ends(self._sock.getpeername(), self._sock.getsockname())

    def _use(self, channel: Channel, choice: Choice) -> None:
        """Open the paths that were chosen, the first of them first."""
        channel.choice = choice
        for name, memory in choice.opened.items():
            path = self._candidates[name].open(self._peer(channel.peer, name), memory)
            devices = None
            if device.CUDA in memory:
                assert self._runtime is not None  # this side's hello has said so
                devices = Devices(self._runtime)
            channel.use(path, devices)
            if not path.offers:
                title = providers.by_name()[name].title
                reason = f"{title} of this process cannot use what the peer's hello says"
                warn = refusals.of(channel.loop).warn
                warn("paths could not be opened", _REFUSED, *channel.addresses(), reason)
                channel.choice = channel.choice.without(name, reason)


def _unusable(provider: Provider, reason: str) -> str:
    return f"{provider.scheme}:// cannot be used between the two: {reason}"


def _ends(*names: tuple) -> tuple[str, ...]:
    """Name sockets as both sides of a connection do, whatever their families."""
    hosts = (name[0].partition("%")[0].removeprefix("::ffff:") for name in names)
    return tuple(f"{host} {name[1]}" for host, name in zip(hosts, names, strict=True))

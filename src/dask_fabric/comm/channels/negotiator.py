"""This process's side of the negotiation of paths.

Theory of operation
-------------------
`describe` makes this process's hello: its limits, its kinds of memory, and a description of each
path that it can use, or the reason why it cannot. The result is cached. A `Negotiator` adapts it to
one connection and takes one side's part in four steps:

====  ======  ==========================================================================
step  side    what happens
====  ======  ==========================================================================
1     client  sends its hello
2     server  `refuse` may turn the client away; `answer` probes each path against which
              neither hello objects, and adds those that fail to `Hello.refused`
3     client  `complete_as_client` probes the rest, announces the failures in a PATHS
              record, and opens the chosen paths
4     server  `await_client` keeps frames on the stream; `complete_as_server` opens the
              paths when PATHS arrives
====  ======  ==========================================================================

Both sides feed the same hellos and findings to the same pure function (`Agreement.choose`), so they
choose the same paths. `dask_fabric.paths.disclosure` decides which facts a hello contains for a
peer on another host.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.comm.core import FatalCommClosedError

from dask_fabric import providers
from dask_fabric.comm.device.direct import Devices
from dask_fabric.comm.network import refusals, unix
from dask_fabric.comm.network.security import Scheme
from dask_fabric.config import Settings
from dask_fabric.engine.detach import detach
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
from dask_fabric.wire.authentication import Method
from dask_fabric.wire.handshake import Ended
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
    """The scheme insists on a path that this process cannot use; Dask does not try again.

    Attributes
    ----------
    reason : str
        The reason alone, without the message's address and advice.
    """

    reason: str = ""


async def prepare(scheme: Scheme, address: str, settings: Settings, host: str = "") -> None:
    """Have each path find and start its libraries; costs nothing if that was done before.

    Parameters
    ----------
    scheme : Scheme
    address : str
        The address to listen on or to connect to, with the scheme.
    settings : dask_fabric.config.Settings
    host : str
        The host that a listener is bound to.

    Raises
    ------
    SchemeUnavailableError
        The scheme insists on a path that cannot be used; the message has reason and remedy.
    """
    for provider, section, insists in _started_by(scheme, settings):
        reason = await provider.prepare(section, insists, host)
        if insists and reason:
            error = SchemeUnavailableError(
                f"cannot use {address}: {reason}. `dask fabric doctor --require {provider.name}` "
                "shows details; fabric:// uses the best path that both ends have"
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
    method: Method | None = None,
    is_remote: bool = False,
) -> Hello:
    """Make the hello that describes this process.

    Parameters
    ----------
    scheme : Scheme
    settings : dask_fabric.config.Settings
    encrypted : bool
        Whether the stream is encrypted: frames then stay on it.
    pid : int
        This process's id; an argument, so that a forked child does not reuse the cached hello.
    address : str
        For a Unix socket; see `Hello`.
    memory : tuple of str
        The kinds of memory that this process works with so far.
    method : Method, optional
        How it proves who it is.
    is_remote : bool
        Whether the ends of the connection have different addresses.
    """
    uses = _uses(scheme, settings, encrypted, is_remote)
    descriptions = tuple([one.describe(section, insists) for one, section, insists in uses.asked])
    methods, keys = ((), ()) if method is None else ((method.name,), method.fingerprints)
    return _make_hello(
        scheme, settings, encrypted, pid, address, memory, methods, keys, uses, descriptions
    )


def between_hosts(
    scheme: Scheme, settings: Settings, encrypted: bool
) -> Iterator[tuple[Provider, Any]]:
    """Give the paths that connections from other hosts may use, with their settings."""
    for provider, section, _ in _uses(scheme, settings, encrypted, True).asked:
        yield provider, section


@dataclass(frozen=True, eq=False)
class _Uses:
    """What the connections of one kind have in common.

    Attributes
    ----------
    asked : tuple
        The paths that may be used: the provider, its settings, and whether the scheme insists.
    ruled_out : dict of str to str
        The others, each with the reason.
    """

    asked: tuple[tuple[Provider, Any, bool], ...]
    ruled_out: Mapping[str, str]


@functools.lru_cache(maxsize=64)
def _uses(scheme: Scheme, settings: Settings, encrypted: bool, is_remote: bool) -> _Uses:
    only_stream = _only_stream(scheme, encrypted)

    def reason(provider: Provider, unwanted: str) -> str:
        if only_stream and not provider.extends_stream:
            return only_stream
        if unwanted:
            return unwanted
        if provider.between_hosts and not is_remote:
            return "the two processes are on one host"
        if provider.within_host and not boot_id():
            return f"{_BOOT_ID} cannot be read"
        return ""

    asked, ruled_out = [], {}
    for provider, insists, unwanted in _wanted(scheme, settings):
        if text := reason(provider, unwanted):
            ruled_out[provider.name] = text
        else:
            asked.append((provider, settings.of_path(provider.name), insists))
    return _Uses(tuple(asked), ruled_out)


@functools.lru_cache(maxsize=64)
def _started_by(scheme: Scheme, settings: Settings) -> tuple[tuple[Provider, Any, bool], ...]:
    """Give the paths that may have something to start; see `_Uses.asked`."""
    return tuple(
        (provider, settings.of_path(provider.name), insists)
        for provider, insists, unwanted in _wanted(scheme, settings)
        if insists or not unwanted
        if type(provider).prepare is not Provider.prepare
    )


def _wanted(scheme: Scheme, settings: Settings) -> Iterator[tuple[Provider, bool, str]]:
    """Give each path, whether the scheme insists on it, and why it is unwanted, or ""."""
    known = providers.found()
    is_only = any(one.scheme == scheme.name for one in known)
    for one in known:
        insists = one.scheme == scheme.name
        other = f"{scheme.prefix} uses another path only" if is_only and not insists else ""
        yield one, insists, other or one.unwanted(settings.of_path(one.name), insists)


# Cached, so everything that may change is an argument; descriptions compare by identity.
@functools.lru_cache(maxsize=256)
def _make_hello(
    scheme: Scheme,
    settings: Settings,
    encrypted: bool,
    pid: int,
    address: str,
    memory: tuple[str, ...],
    methods: tuple[str, ...],
    keys: tuple[str, ...],
    uses: _Uses,
    descriptions: tuple[Mapping[str, Any] | str, ...],
) -> Hello:
    limits = {
        "frames": settings.frame_count_limit,
        "header": settings.header_bytes_limit,
        "message": settings.message_bytes_limit,
    }
    stays_on_stream = bool(_only_stream(scheme, encrypted))
    names = [provider.name for provider, _, _ in uses.asked]
    by_name = dict(zip(names, descriptions, strict=True))
    described = {name: one for name, one in by_name.items() if not isinstance(one, str)}
    reasons = {name: one for name, one in by_name.items() if isinstance(one, str)}
    hello = Hello(
        scheme=scheme.name,
        pid=0 if stays_on_stream else pid,
        paths=(STREAM, *described),
        memory=memory,
        authentication=methods,
        keys=keys,
        # Even without GPU memory: it may get some later, and until then passes chunks on.
        features=() if settings.gpu_enabled is False else (CHUNKS,),
        limits=limits,
        address=address,
        boot="" if stays_on_stream else boot_id(),
        described=described,
    )
    return _refusing(hello, {**uses.ruled_out, **reasons})


def _only_stream(scheme: Scheme, encrypted: bool) -> str:
    if not scheme.fast:
        return f"{scheme.name}:// uses the stream only"
    return "the connection is encrypted, so its frames stay on the stream" if encrypted else ""


def _refusing(hello: Hello, reasons: Mapping[str, str]) -> Hello:
    """Add refused paths with their reasons, shortened to what a hello may contain."""
    reasons = {path: _as_name(reason) for path, reason in reasons.items()}
    return replace(hello, refused={**hello.refused, **reasons})


def _as_name(text: str) -> str:
    return one_line(text)[:NAME_LENGTH_LIMIT]


@functools.cache
def boot_id() -> str:
    """Give the boot id, which identifies the running system of this host; "" if unreadable."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class Negotiator:
    """One side's part in choosing the paths of one connection.

    Parameters
    ----------
    sock : socket.socket
        The socket of the connection.
    hello : Hello
        This process's hello; see `describe`.
    server_side : bool
        Whether this side accepted the connection.
    settings : dask_fabric.config.Settings

    Attributes
    ----------
    hello : Hello
        The hello for this peer.
    """

    def __init__(
        self, sock: socket.socket, hello: Hello, server_side: bool, settings: Settings
    ) -> None:
        self._sock = sock
        self._is_unix = sock.family == socket.AF_UNIX
        self._boot = hello.boot
        self._peer_side = "client" if server_side else "server"
        known = providers.by_name()
        # By path. Kept until the paths are chosen: the peer may still probe memory that they own.
        self._candidates: dict[str, Candidate] = {}
        changed = {}
        for name, description in hello.described.items():
            candidate = known[name].candidate(description, settings.of_path(name), sock)
            self._candidates[name] = candidate
            if candidate.description is not description:
                changed[name] = candidate.description
        if changed:
            hello = replace(hello, described={**hello.described, **changed})
        if not self._is_unix and not server_side:
            if any(known[name].needs_direct_connection for name in hello.described):
                hello = replace(hello, ends=_ends(sock.getsockname(), sock.getpeername()))
            hello = disclosure.of_client(hello)
        self.hello = hello
        # Snapshot of the device runtime that the hello describes.
        self._runtime = device.current() if device.CUDA in hello.memory else None
        self._agreed: Agreement | None = None  # by the hellos alone, without what probes found
        self._found: dict[str, str] = {}  # failed probes of the server: reasons by path
        self._peers: dict[str, Peer] = {}  # the peer, as each path sees it

    def refuse(self, client: Hello) -> str:
        """As a server, give the reason to refuse a client, or ""."""
        if client.joins:
            return _refuse_joining(client.joins)
        agreed = self._agree_as_server(client)
        for provider in agreed.insisted:
            if reason := agreed.objection(provider):
                return _unusable(provider, reason)
        return ""

    def answer(self, client: Hello) -> Hello:
        """As a server, probe paths and give the hello for this client, with those that failed."""
        wanted = self._agree_as_server(client).candidates
        answers = {one.name: self._candidates[one.name].answer() for one in wanted}
        found = self._find_out(wanted, client)
        direct_only = [one.name for one in wanted if one.needs_direct_connection]
        if direct_only and not self._is_direct(client):
            proxied = "a proxy or address translation (NAT) is between the two processes"
            found |= dict.fromkeys(direct_only, proxied)
        self.hello = self._hello_for(client)
        changed = {name: one for name, one in answers.items() if one is not None}
        if changed:
            self.hello = replace(self.hello, described={**self.hello.described, **changed})
        if found:
            self.hello = _refusing(self.hello, found)
            self._found = by_side("server", found)
        return self.hello

    def complete_as_client(self, channel: Channel) -> None:
        """As a client, probe what is left, announce the failures to the server, and choose."""
        agreed = agreement(self.hello, channel.peer)
        found = self._find_out(agreed.candidates, channel.peer)
        if agreed.candidates:
            channel.send_paths(encode_found(found))
        self._use(channel, agreed.choose(by_side("client", found)))
        for provider in agreed.insisted:
            if channel.choice.paths[HOST] != provider.name:
                text = _unusable(provider, channel.choice.refused[provider.name])
                raise RefusedError(text, error_record(text))

    def await_client(self, channel: Channel) -> bool:
        """As a server, use the stream until the client's PATHS record arrives, if one will."""
        waiting = dict.fromkeys(self._open_paths(), "it has not answered yet")
        agreed = self._agree_as_server(channel.peer)
        channel.choice = agreed.choose({**by_side("client", waiting), **self._found})
        if not waiting:
            _shorten(channel.handshake)
        return bool(waiting)

    def complete_as_server(self, channel: Channel, content: bytes) -> None:
        """As a server, choose as the client did, with the failures in its PATHS record.

        Raises
        ------
        ProtocolError
            The record is malformed, or none was expected.
        """
        if not self._open_paths():
            raise violation("paths that nobody asked for")
        found = by_side("client", decode_found(content))
        agreed = self._agree_as_server(channel.peer)
        self._use(channel, agreed.choose({**found, **self._found}))

    def _agree_as_server(self, client: Hello) -> Agreement:
        if self._agreed is None:
            self._agreed = agreement(client, self._hello_for(client))
        return self._agreed

    def _open_paths(self) -> list[str]:
        """Name the paths that the client still has to probe."""
        wanted = self._agreed.candidates if self._agreed else ()
        return [one.name for one in wanted if one.name not in self._found]

    def _hello_for(self, client: Hello) -> Hello:
        return disclosure.of_server(self.hello, client, self._is_unix)

    def _find_out(self, wanted: Iterable[Provider], peer: Hello) -> dict[str, str]:
        """Probe the paths that both hellos allow; give those that fail, with the reasons."""
        found = {}
        for one in wanted:
            if reason := self._candidates[one.name].probe(self._peer(peer, one.name)):
                found[one.name] = _as_name(reason)
        return found

    def _peer(self, peer: Hello, path: str) -> Peer:
        """Give the peer as one path sees it."""
        if not self._peers:
            peer = disclosure.deciphered(peer, self._boot, self._peer_side)
            # From the kernel, which reports 0 for a process in another pid namespace.
            kernel_pid = unix.peer_pid(self._sock) if self._is_unix else 0
            pid = kernel_pid if self._is_unix else peer.pid
            self._peers = {
                name: Peer(description, pid, kernel_pid)
                for name, description in peer.described.items()
            }
        return self._peers[path]

    def _is_direct(self, client: Hello) -> bool:
        """Whether no proxy is between the two, so that the client's end of stream is seen at once.

        A proxy may report it long after the client has freed its frames.
        """
        if self._is_unix:
            return True  # the kernel names the process, and the probe has read from that
        return client.ends == _ends(self._sock.getpeername(), self._sock.getsockname())

    def _use(self, channel: Channel, choice: Choice) -> None:
        """Open the chosen paths, in order of preference."""
        channel.choice = choice
        for name, memory in choice.opened.items():
            path = self._candidates[name].open(self._peer(channel.peer, name), memory)
            devices = None
            if device.CUDA in memory:
                assert self._runtime is not None  # this side's hello announced device memory
                devices = Devices(self._runtime)
            channel.use(path, devices)
            if not path.offers:
                title = providers.by_name()[name].title
                reason = f"{title} of this process cannot use the peer's description of it"
                warn = refusals.of(channel.loop).warn
                warn("paths could not be opened", _REFUSED, *channel.addresses(), reason)
                channel.choice = channel.choice.without(name, reason)
        _shorten(channel.handshake)


def _shorten(handshake: Ended) -> None:
    """Keep of the peer's hello what is needed after the choice of paths; connections are many.

    Peers of one release share it, though a hello with proofs is different for each connection.
    """
    hello = handshake.peer
    if not hello.joins:
        handshake.peer = _shared_hello(
            hello.scheme, hello.software, hello.memory, hello.features, hello.address
        )


@functools.lru_cache(maxsize=64)
def _shared_hello(
    scheme: str, software: str, memory: tuple, features: tuple, address: str
) -> Hello:
    return Hello(scheme, software, memory=memory, features=features, address=address)


def for_joining(hello: Hello, wish: Mapping[str, Any]) -> Hello:
    """Give the hello of a connection that is to join a comm, and so uses no path itself."""
    return replace(hello, paths=(STREAM,), described={}, refused={}, joins=wish)


def _refuse_joining(wish: Mapping[str, Any]) -> str:
    name = wish.get("path")
    provider = providers.by_name().get(name) if isinstance(name, str) else None
    return provider.refuse_joining(wish) if provider else "it joins a comm for an unknown path"


def join(channel: Channel) -> None:
    """As a server, add the connection of an open *channel* to the comm that the client names.

    Raises
    ------
    ChannelClosedError, UnavailableError
        The connection is lost, or cannot be used so.
    """
    wish = channel.peer.joins
    providers.by_name()[wish["path"]].joined(wish, detach(channel))


def is_remote(sock: socket.socket) -> bool:
    """Whether the ends of a connection have different addresses.

    Raises
    ------
    OSError
        The connection is gone already.
    """
    if sock.family == socket.AF_UNIX:
        return False
    return sock.getsockname()[0] != sock.getpeername()[0]


def _unusable(provider: Provider, reason: str) -> str:
    return f"{provider.scheme}:// cannot be used between the two processes: {reason}"


def _ends(*names: tuple) -> tuple[str, ...]:
    """Format socket names the same way on both sides, also for IPv4-mapped addresses."""
    hosts = (name[0].partition("%")[0].removeprefix("::ffff:") for name in names)
    return tuple(f"{host} {name[1]}" for host, name in zip(hosts, names, strict=True))

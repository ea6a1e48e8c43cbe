"""Listening: from a bound socket to comms handed to Dask's handler.

Theory of operation
-------------------
`FabricListener.start` binds one TCP socket per address family and, where the scheme allows it, an
abstract Unix socket beside each. The event loop watches them and calls `_accept`. An accepted
connection then passes four stages:

1. `_take` or `_take_unix`. With TLS, `Arrival` peeks at the first byte: a client without TLS is
   refused with an error that it can read. Unix sockets check the peer's user.
2. `_begin` makes the channel and a task for it, which runs `_serve`.
3. `_open` exchanges hellos; `_introduce` runs Dask's own handshake. Both have a time limit.
4. The comm goes to Dask's `comm_handler`, which may run as long as the comm lives.

Before stage 4 the peer is a stranger: its errors are logged through `Refusals`, which limits the
lines per minute. Until the hellos are exchanged a connection is in `_opening`, for `stop` to drop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import inspect
import logging
import os
import resource
import socket
import ssl
import sys
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import dask
from distributed.comm.addressing import parse_host_port, unparse_host_port
from distributed.comm.core import BaseListener, CommClosedError

from dask_fabric import config, providers
from dask_fabric.comm import runtime
from dask_fabric.comm.channels import negotiator
from dask_fabric.comm.channels.factory import make_channel, settle_addresses
from dask_fabric.comm.comm import FabricComm
from dask_fabric.comm.network import authentication, key_encryption, local_user, shared_key, unix
from dask_fabric.comm.network.addresses import (
    WILDCARD_HOSTS,
    advertised_host,
    format_address,
    host_of,
    is_loopback,
)
from dask_fabric.comm.network.binding import bind, bind_to_free
from dask_fabric.comm.network.first_byte import Arrival
from dask_fabric.comm.network.refusals import Refusals, describe
from dask_fabric.comm.network.security import (
    TLS_FIRST_BYTE,
    Scheme,
    explanation,
    just_left,
    refuse_plain_text,
    refuse_plain_text_with_key,
    tls_info,
)
from dask_fabric.comm.network.socket_options import tune
from dask_fabric.comm.servers import scheduler_host, server_of
from dask_fabric.errors import ConfigError, FabricError, ProtocolError
from dask_fabric.telemetry import heartbeat, prometheus, refused
from dask_fabric.telemetry.history import recording
from dask_fabric.wire.authentication import Keys

if TYPE_CHECKING:
    from dask_fabric.engine.channel import Channel

logger = logging.getLogger(__name__)

# The process or host is out of descriptors or memory; the connection stays in the backlog.
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_ACCEPT_PAUSE_SECONDS = 1.0
# Of the descriptors that the process may have, this part, or at least so many, is for other uses.
_SPARE_PART, _SPARE_LEAST = 32, 8
# With too many connections in the handshake: how long others wait, and from when on one is slow.
_CROWD_PAUSE_SECONDS = 0.05
_CROWD_PATIENCE_SECONDS = 1.0
_SHORT_PATIENCE_SECONDS = 0.25  # where few descriptors are left

_listeners: set[weakref.ref[FabricListener]] = set()


def _all_listeners() -> list[FabricListener]:
    """Give those of this process, whichever threads start some meanwhile."""
    return [listener for one in _listeners.copy() if (listener := one()) is not None]


def _after_fork_in_child() -> None:
    """Close the child's copies: a client that connects to one would never get an answer."""
    for listener in _all_listeners():
        listener._forked()
    _listeners.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class FabricListener(BaseListener):
    """Listens on one address and hands every connection to a handler as a comm.

    Parameters
    ----------
    scheme : Scheme
        The scheme of the address; it also says whether to encrypt.
    address : str
        ``host:port``, without scheme. No host means every interface, no port means any free port.
    comm_handler : callable
        Called with each comm after Dask's handshake; a function or a coroutine function. If it is
        a method of a worker or nanny, `contact_address` is on the interface that leads to that
        server's scheduler.
    deserialize, allow_offload : bool
        Passed on to the comms.
    default_host : str, optional
        The host to advertise when listening on every interface.
    default_port : int
        The port to use if *address* has none.
    **connection_args
        ``ssl_context`` and ``require_encryption`` are used, others ignored.

    Raises
    ------
    RuntimeError
        Encryption is required, and connections would not be encrypted.
    """

    def __init__(
        self,
        scheme: Scheme,
        address: str,
        comm_handler: Callable[[FabricComm], Awaitable[None] | None],
        deserialize: bool = True,
        allow_offload: bool = True,
        default_host: str | None = None,
        default_port: int = 0,
        **connection_args: Any,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.prefix = scheme.prefix
        self.ip, self.port = parse_host_port(address, default_port)
        self.comm_handler = comm_handler
        self.deserialize = deserialize
        self.allow_offload = allow_offload
        self.default_host = default_host
        settings = config.load()
        self._encryption = scheme.encryption(address, connection_args, settings)
        self._sockets: list[socket.socket] = []
        self._families: list[int] = []
        self._bound: tuple | None = None
        self._contact_host: str | None = None
        self._stopped = False
        self._tasks: set[asyncio.Task] = set()  # the loop itself holds them weakly
        self._forget_task = self._tasks.discard  # bound once: tasks are many
        # Arrivals, and channels in the handshake, with the time when they came; the oldest first.
        self._opening: dict[Any, float] = {}

    async def start(self) -> None:
        """Bind and listen.

        Raises
        ------
        OSError
            The address cannot be bound, for instance because the port is taken.
        ConfigError
            A setting is invalid, or the key of this process, or MUNGE, cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._refusals = Refusals(logger, self._loop)
        self._settings = runtime.settings()
        # A method that cannot be used fails here, and not with the first client.
        method = await authentication.prepare(self._settings)
        if self._encryption.by_key:
            assert isinstance(method, Keys)  # else `prepare` or `load` has raised an error
            key_encryption.server_context(method)
        encrypted = self._encryption.by_key or self._encryption.ssl_context is not None
        if encrypted:
            import dask_fabric.engine.tls_transport  # noqa: F401  # now: it may need descriptors
        uses_paths = self.scheme.fast and not self._encryption.within_host
        if uses_paths:
            # Finding and starting a library takes a second: do it before clients connect.
            address = f"{self.prefix}{self.ip}:{self.port}"
            await negotiator.prepare(self.scheme, address, self._settings, self.ip)
        server = server_of(self)
        limit_bytes, runs_tasks = runtime.memory_limit(server), hasattr(server, "executors")
        self._unclaimed_counts = [provider.unclaimed_count for provider in providers.found()]
        for provider in providers.found():
            settings = self._settings.of_path(provider.name)
            provider.serve(settings, limit_bytes, runs_tasks)
        if uses_paths:
            # From now on, not from the first client on, arrays lie where it can map them.
            negotiator.describe(self.scheme, self._settings, False, os.getpid(), "")
        backlog_count = int(dask.config.get("distributed.comm.socket-backlog"))
        self._handshake_limit = self._settings.handshake_count_limit
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if open_files == resource.RLIM_INFINITY:
            open_files = sys.maxsize
        self._handshake_limit = max(1, min(self._handshake_limit, open_files // 4))
        self._spare_count = max(_SPARE_LEAST, open_files // _SPARE_PART)
        self._is_short = False  # of descriptors: the spare ones are in use
        self._has_none_left = False  # also of these
        self._descriptor_limit = open_files - self._spare_count
        self._sockets = bind(self.ip, self.port, backlog_count)
        _listeners.add(weakref.ref(self, _listeners.discard))
        for sock in self._sockets:
            tune(sock)
            self._loop.add_reader(sock, self._accept, sock, self._take)
        self._bound = self._sockets[0].getsockname()
        self._families = [sock.family for sock in self._sockets]
        if uses_paths and self._settings.unix_sockets:
            self._listen_unix(backlog_count)
        for provider, section in negotiator.between_hosts(self.scheme, self._settings, encrypted):
            if places := self._listen_more(provider.more_hosts(section), backlog_count):
                provider.listens(self._bound_names(), places)
        runtime.watch_memory(self, server)
        heartbeat.watch(server)
        recording.watch(server, self._settings)
        prometheus.register()

    def _listen_unix(self, backlog_count: int) -> None:
        for sock, address in unix.bind_beside(self._sockets, backlog_count):
            take = functools.partial(self._take_unix, address)
            self._loop.add_reader(sock, self._accept, sock, take)
            # In front, to be closed first: its name must not outlive our claim to the port.
            self._sockets.insert(0, sock)

    def _listen_more(self, hosts: Sequence[str], backlog_count: int) -> list[tuple[str, int]]:
        """Listen on these addresses too, on the same port if it is free; give where."""
        host, port = self.get_host_port()
        own = [name[0] for name in self._bound_names()]
        places = []
        for other in hosts:
            family = socket.AF_INET6 if ":" in other else socket.AF_INET
            # Who binds to loopback wants no other host to reach the listener.
            if other in own or (is_loopback(host) and not is_loopback(other)):
                continue
            if host in WILDCARD_HOSTS and family in self._families:
                places.append((other, port))
                continue
            try:
                (sock,) = bind_to_free(other, port, backlog_count)
            except OSError as exc:
                logger.warning("%s cannot listen on %s too: %s", self.listen_address, other, exc)
                continue
            tune(sock)
            self._loop.add_reader(sock, self._accept, sock, self._take)
            self._sockets.append(sock)
            places.append((other, sock.getsockname()[1]))
        return places

    def _bound_names(self) -> list[tuple[str, int]]:
        """Give the hosts and ports that the sockets are bound to."""
        return [one.getsockname()[:2] for one in self._sockets if one.family != socket.AF_UNIX]

    def stop(self) -> None:
        """Stop listening, and drop the connections that are still in the handshake."""
        self._stopped = True
        runtime.unwatch_memory(self)
        for provider in providers.found():
            provider.listens(self._bound_names(), ())
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.remove_reader(sock)
            sock.close()
        self._drop_opening()
        self._refusals.close()

    def _forked(self) -> None:
        """In a forked child: close the sockets, but leave the parent's event loop alone."""
        self._stopped = True
        self._refusals.forked()
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            sock.close()
        opening, self._opening = self._opening, {}
        for connection in opening:
            if isinstance(connection, Arrival):  # a channel closes its own socket
                connection.forked()

    def abort_handshaking_comms(self) -> None:
        """Abort every comm that is still in Dask's handshake or ours."""
        super().abort_handshaking_comms()
        self._drop_opening()

    def _drop_opening(self) -> None:
        for connection in list(self._opening):
            if getattr(connection, "peer", None) is None:  # else the client is connected already
                self._opening.pop(connection, None)
                connection.abort()

    def get_host_port(self) -> tuple[str, int]:
        """Give the host and port that the listener is bound to."""
        if self._bound is None:
            raise ValueError("the listener has no address before it is started")
        return host_of(self._bound), self._bound[1]

    @property
    def listen_address(self) -> str:
        """The address that the listener is bound to; a wildcard is kept."""
        return self.prefix + unparse_host_port(*self.get_host_port())

    @property
    def contact_address(self) -> str:
        """The address under which others reach the listener."""
        host, port = self.get_host_port()
        if host in WILDCARD_HOSTS:
            host = self._contact_host = self._contact_host or self._find_contact_host()
        return self.prefix + unparse_host_port(host, port)

    def _find_contact_host(self) -> str:
        if self.default_host:
            return self.default_host
        return advertised_host(self._families, scheduler_host(server_of(self)))

    def _accept(self, listening: socket.socket, take: Callable) -> None:
        """Accept one connection; the loop calls this while the backlog is not empty."""
        if not authentication.is_recent(self._settings):
            self._loop.remove_reader(listening)
            self._hold_task(self._refresh(listening, take))
            return
        self._accept_one(listening, take)

    def _accept_one(self, listening: socket.socket, take: Callable) -> None:
        if not self._has_room():
            self._wait(listening, take, _CROWD_PAUSE_SECONDS)
            return
        try:
            sock, sockname = listening.accept()
        except OSError as exc:
            # Other errors need no log line: the connection was gone before it was accepted.
            if exc.errno in _OUT_OF_RESOURCES:
                self._is_short = self._has_none_left = exc.errno == errno.EMFILE
                self._pause(listening, take, exc)
            return
        # The system gives the lowest number that is free.
        self._is_short = sock.fileno() >= self._descriptor_limit
        self._has_none_left = False
        sock.setblocking(False)
        take(sock, sockname)

    def _has_room(self) -> bool:
        """Whether one more connection may be in the handshake; drops those that take long.

        All listeners of the event loop are counted together, and fewer may be if the process has
        few descriptors left.
        """
        patience_seconds = _CROWD_PATIENCE_SECONDS
        limit, reason = self._handshake_limit, "fabric.limits.handshakes in Dask's configuration"
        if self._is_short:
            patience_seconds = _SHORT_PATIENCE_SECONDS
            limit, reason = min(limit, self._spare_count // 2), "few open files are left: ulimit -n"
        listeners = [one for one in _all_listeners() if one._loop is self._loop]
        count = sum(len(one._opening) for one in listeners)
        for unclaimed_count in self._unclaimed_counts:
            count += unclaimed_count()
        if self._has_none_left:
            limit = max(1, min(limit, count))
        while count >= limit and (crowded := [one for one in listeners if one._opening]):
            listener = min(crowded, key=lambda one: next(iter(one._opening.values())))
            oldest, since = next(iter(listener._opening.items()))
            if self._loop.time() - since < patience_seconds:
                return False
            del listener._opening[oldest]
            oldest.abort(
                TimeoutError(
                    f"it was the oldest of {count} connections in the handshake ({reason})"
                )
            )
            count -= 1
        return True

    def _take(self, sock: socket.socket, sockname: tuple) -> None:
        """Begin to serve an accepted connection."""
        peer_addr = format_address(self.prefix, sockname)
        if self._settings.auth_local and local_user.is_of_another_user(sock):
            self._begin(sock, peer_addr, None, local_user.refuse_other_users)
            return
        if self._encryption.ssl_context is None and not self._encryption.by_key:
            self._begin(sock, peer_addr, None)
            return
        # A client without TLS gets an error that it can read, instead of a TLS alert.
        seconds = self._settings.handshake_timeout_seconds
        on_first_byte = functools.partial(self._take_first_byte, peer_addr)
        arrival = Arrival(self._loop, sock, seconds, on_first_byte)
        self._opening[arrival] = self._loop.time()

    def _take_unix(self, address: str, sock: socket.socket, name: bytes) -> None:
        """Begin to serve a connection accepted by the Unix socket beside *address*."""
        if not unix.is_welcome(sock, name, self._settings.auth_local):
            refused.add(refused.CONNECTION)
            logger.debug("%s: refused another user at the Unix socket", self.listen_address)
            sock.close()
            return
        unix.tune(sock)
        peer_addr = self.prefix + unix.client_address(address, name)
        refuse = functools.partial(unix.refuse_client, address)
        self._begin(sock, peer_addr, None, refuse, address)

    def _take_first_byte(
        self, peer_addr: str, arrival: Arrival, sock: socket.socket, first: bytes | OSError
    ) -> None:
        """Serve a client that begins with TLS; refuse one that does not."""
        self._opening.pop(arrival, None)
        if isinstance(first, OSError):
            sock.close()
            self._log_refusal(peer_addr, first, 0)
        elif first != TLS_FIRST_BYTE:
            by_key = self._encryption.by_key
            refuse = refuse_plain_text_with_key if by_key else refuse_plain_text
            self._begin(sock, peer_addr, None, refuse)
        else:
            self._begin(sock, peer_addr, self._tls_context)

    def _begin(
        self,
        sock: socket.socket,
        peer_addr: str,
        tls_context: Callable[[], ssl.SSLContext] | None,
        refuse: Callable | None = None,
        address: str = "",
    ) -> None:
        try:
            channel = make_channel(
                self.scheme,
                self._loop,
                sock,
                self._settings,
                tls_context() if tls_context else None,
                self._encryption.by_key,
                server_side=True,
                peer_address=peer_addr,
                refuse=refuse,
                address=address,
            )
        except OSError as exc:  # reset before it was accepted
            sock.close()
            self._log_refusal(peer_addr, exc, 0)
            return
        except FabricError as exc:  # the key file was spoiled meanwhile
            sock.close()
            self._refuse(peer_addr, exc)
            return
        self._opening[channel] = self._loop.time()
        self._hold_task(self._serve(channel, peer_addr))

    def _hold_task(self, coroutine: Coroutine) -> None:
        task = self._loop.create_task(coroutine)
        # In this order: an eager task may have ended by now.
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)

    def _tls_context(self) -> ssl.SSLContext:
        """Give the TLS context that Dask has given, or that of the key, which may be replaced."""
        if self._encryption.ssl_context is not None:
            return self._encryption.ssl_context
        keys = shared_key.current(self._settings)
        assert keys is not None  # else `current` has raised an error
        return key_encryption.server_context(keys)

    def _pause(self, listening: socket.socket, take: Callable, exc: OSError) -> None:
        self._refusals.warn(
            f"times {self.listen_address} could not accept connections",
            "%s cannot accept connections (%s); trying again soon. "
            "Raise the limit on open files (ulimit -n).",
            self.listen_address,
            exc,
        )
        is_crowd = any(one._opening for one in _all_listeners() if one._loop is self._loop)
        # Of a crowd, those that take long are dropped then.
        self._wait(listening, take, _CROWD_PAUSE_SECONDS if is_crowd else _ACCEPT_PAUSE_SECONDS)

    def _wait(self, listening: socket.socket, take: Callable, seconds: float) -> None:
        """Leave connections in the backlog for a while."""
        self._loop.remove_reader(listening)
        self._loop.call_later(seconds, self._resume, listening, take)

    async def _refresh(self, listening: socket.socket, take: Callable) -> None:
        """Leave connections in the backlog until it is known whether the key was replaced."""
        try:
            await authentication.prepare(self._settings)
        except ConfigError:
            pass  # `_begin` tells why
        finally:
            self._resume(listening, take)
        # Now: where each turn of the loop takes a second, it would be time to look again.
        if not self._stopped:
            self._accept_one(listening, take)

    def _resume(self, listening: socket.socket, take: Callable) -> None:
        if not self._stopped:
            self._loop.add_reader(listening, self._accept, listening, take)

    async def _serve(self, channel: Channel, peer_addr: str) -> None:
        """Serve one connection until its handler returns."""
        try:
            comm = await self._open(channel, peer_addr)
            if comm is None or not await self._introduce(comm):
                return
        finally:
            self._opening.pop(channel, None)
        del channel, peer_addr  # the handler runs as long as the comm lives: keep nothing else
        try:
            handled = self.comm_handler(comm)
            if inspect.isawaitable(handled):
                await handled
        except Exception as exc:  # the peer may have caused it, so log it with a limit
            text = "The handler of the connection from %s failed: %s"
            kind = "handlers of connections failed"
            self._refusals.warn(kind, text, comm.peer_address, describe(exc), exc=exc)
            comm.abort()

    async def _introduce(self, comm: FabricComm) -> bool:
        """Run Dask's own handshake; give whether it succeeded."""
        logger.debug("Incoming connection from %s to %s", comm.peer_address, comm.local_address)
        # Dask itself has no time limit for a silent client.
        timer = self._loop.call_later(self._settings.handshake_timeout_seconds, comm.abort)
        try:
            await self.on_connection(comm)
        except CommClosedError as exc:
            cause = exc.__cause__
            if isinstance(cause, FabricError) and (
                isinstance(cause, ProtocolError) or isinstance(cause.__cause__, TimeoutError)
            ):
                self._refuse(comm.peer_address, cause)
            else:
                logger.debug("Connection from %s closed before its handshake", comm.peer_address)
            return False
        except Exception as exc:
            self._refuse(comm.peer_address, exc)
            comm.abort()
            return False
        finally:
            timer.cancel()
        return True

    async def _open(self, channel: Channel, peer_addr: str) -> FabricComm | None:
        """Exchange hellos; give None after a failure, which is logged, and if no comm begins."""
        try:
            await channel.open(self._settings.handshake_timeout_seconds)
        except (FabricError, OSError) as exc:
            self._log_refusal(peer_addr, exc, channel.statistics()["bytes_received"])
            return None
        if self._stopped:
            channel.abort()
            return None
        if channel.peer.joins:
            self._join(channel, peer_addr)
            return None
        comm = FabricComm(
            channel,
            *settle_addresses(channel),
            self.deserialize,
            self._settings,
            tls_info(channel),
        )
        comm.allow_offload = self.allow_offload
        return comm

    def _join(self, channel: Channel, peer_addr: str) -> None:
        """Add a connection to the comm that it is for."""
        try:
            negotiator.join(channel)
        except (FabricError, OSError) as exc:
            channel.abort()
            self._refuse(peer_addr, exc)

    def _log_refusal(self, peer_addr: str, exc: Exception, received_bytes: int) -> None:
        if received_bytes == 0 and just_left(exc):
            # Health checks and port scans connect and leave: not worth a warning.
            logger.debug("%s connected to %s and left: %s", peer_addr, self.listen_address, exc)
        else:
            self._refuse(peer_addr, exc)

    def _refuse(self, peer_addr: str, exc: Exception) -> None:
        refused.add(refused.CONNECTION)
        text = "Listener on %s refused a connection from %s: %s"
        kind = f"connections to {self.listen_address} were refused"
        self._refusals.warn(
            kind, text, self.listen_address, peer_addr, explanation(exc, self._encryption.by_key)
        )

"""Connecting: from an address to an open comm.

Theory of operation
-------------------
`FabricConnector.connect` takes these steps:

1. Start the libraries of the paths (`prepare`) and resolve the host. An address that has failed for
   good before is tried again only after a pause (`Attempts`).
2. Unless the connection is encrypted by certificates, or within a host too by the shared key, dial
   the listener's Unix socket, if the target is this host.
   Any doubt (no such socket, another user's, no hello in time) falls back to TCP. A Unix socket
   that stayed silent is skipped for a minute: it must not use up Dask's connect timeout twice.
3. Else connect by TCP to the first address that answers ("happy eyeballs"), under TLS if there is
   an ``ssl_context``, or encryption by the shared key.
4. Exchange hellos and negotiate paths (`Channel.open`), and wrap the channel in a `FabricComm`.

A path that needs further connections to the same listener opens them later, by `_join`.

Errors are translated to Dask's own: `FatalCommClosedError` where a retry cannot help.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import functools
import logging
import math
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distributed.comm.addressing import parse_host_port
from distributed.comm.core import CommClosedError, Connector, FatalCommClosedError

from dask_fabric.comm import runtime
from dask_fabric.comm.channels.factory import make_channel, settle_addresses
from dask_fabric.comm.channels.negotiator import prepare
from dask_fabric.comm.comm import FabricComm
from dask_fabric.comm.network import authentication, key_encryption, local_user, unix
from dask_fabric.comm.network.addresses import Target, format_address, resolve
from dask_fabric.comm.network.attempts import Attempts
from dask_fabric.comm.network.security import Scheme, comm_error, tls_info
from dask_fabric.comm.network.socket_options import tune
from dask_fabric.config import Settings
from dask_fabric.engine.detach import detach
from dask_fabric.errors import FabricError, RefusedError
from dask_fabric.wire.authentication import Keys

if TYPE_CHECKING:
    from dask_fabric.engine.channel import Channel
    from dask_fabric.paths.joined import JoinedSocket

logger = logging.getLogger(__name__)

_IN_PROGRESS = frozenset((errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK, errno.EINTR))
# The next address is tried after this long without an answer, as RFC 8305 advises.
_STAGGER_SECONDS = 0.25
# Timeout for a server's hello on a Unix socket: well below a fifth of Dask's connect timeout.
_UNIX_PATIENCE_SECONDS = 2.0
_UNIX_PAUSE_SECONDS = 60.0
_ANSWERED_LIMIT = 256  # listeners to remember
# A connect cancelled earlier does not mark the server as silent.
_UNIX_SILENCE_SECONDS = 0.25


class FabricConnector(Connector):
    """Connects to addresses of one scheme.

    Parameters
    ----------
    scheme : Scheme
        The scheme of the addresses; it also says whether to encrypt.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.prefix = scheme.prefix
        self._attempts = Attempts()
        # Both by Unix socket: when to try a silent one again, and when one answered last.
        self._silent_until: dict[str, float] = {}
        self._answered_at: dict[str, float] = {}

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> FabricComm:
        """Connect to *address* (without its scheme) and shake hands.

        Parameters
        ----------
        address : str
            ``host:port``; the host is a name, an IPv4 address or an IPv6 address in brackets.
        deserialize : bool
            Passed on to the comm.
        **connection_args
            ``ssl_context``, ``require_encryption`` and ``server_hostname``; others are ignored.

        Raises
        ------
        OSError
            Nothing listens there, or the name is unknown; a retry may help.
        FatalCommClosedError
            Another program listens there, or the version or certificate does not fit; no retry
            will help.
        ConfigError
            A setting is invalid, or the key of this process, or MUNGE, cannot be used.
        RuntimeError
            Encryption is required, and this connection would not be encrypted.
        """
        settings = runtime.settings()
        encryption = self.scheme.encryption(address, connection_args, settings)
        ssl_context = encryption.ssl_context
        host, port = parse_host_port(address)
        peer_addr = self.prefix + address
        loop = asyncio.get_running_loop()
        # A method that cannot be used is no reason to try again.
        method = await authentication.prepare(settings)
        if encryption.by_key:
            assert isinstance(method, Keys)  # else `prepare` or `load` has raised an error
            ssl_context = key_encryption.client_context(method)
        uses_paths = self.scheme.fast and not encryption.within_host
        if uses_paths:
            await prepare(self.scheme, peer_addr, settings)
        try:
            if not 0 <= port < 1 << 16:
                raise ValueError(f"a port is from 0 to 65535, not {port}")
            targets = await resolve(loop, host, port)
        except (ValueError, OverflowError) as exc:  # UnicodeError is a ValueError
            raise OSError(f"cannot connect to {peer_addr}: invalid address: {exc}") from exc
        await self._attempts.pause(peer_addr)
        channel = dial = None
        if uses_paths and settings.unix_sockets:
            channel = await self._open_unix(loop, targets, settings, peer_addr)
        if channel is None:
            server_hostname = connection_args.get("server_hostname") or host
            if encryption.by_key:
                assert isinstance(method, Keys)
                server_hostname = key_encryption.server_name(method)
            channel = await self._open_tcp(
                loop, targets, settings, peer_addr, ssl_context, server_hostname, encryption.by_key
            )
            target = channel.transport.sock.family, channel.peer_sockname
            dial = functools.partial(
                self._join, target, settings, ssl_context, server_hostname, encryption.by_key
            )
        self._attempts.succeeded(peer_addr)
        comm = FabricComm(
            channel,
            *settle_addresses(channel),
            deserialize,
            settings,
            tls_info(channel),
        )
        comm.expect_handshake()
        if dial is not None:
            for path in channel.core.paths:
                comm.on_moved = path.use_dialer(dial) or comm.on_moved
        return comm

    async def _open_tcp(
        self,
        loop: asyncio.AbstractEventLoop,
        targets: Sequence[Target],
        settings: Settings,
        peer_addr: str,
        ssl_context: ssl.SSLContext | None,
        server_hostname: str,
        by_key: bool,
    ) -> Channel:
        """Give an open channel over TCP or TLS."""
        sock = await _connect_to_any(loop, targets)
        begin = loop.time()
        try:
            channel = make_channel(
                self.scheme,
                loop,
                sock,
                settings,
                ssl_context,
                by_key,
                server_side=False,
                peer_address=peer_addr,
                server_hostname=server_hostname,
            )
            await channel.open(settings.handshake_timeout_seconds)
            # Not before: until it has answered, the kernel may not know whose the server is.
            if settings.auth_local and local_user.is_of_another_user(channel.transport.sock):
                channel.abort()
                raise RefusedError(local_user.OTHER_SERVER)
        except (FabricError, OSError) as exc:
            sock.close()
            error = comm_error(peer_addr, exc, by_key)
            if isinstance(error, FatalCommClosedError) and await authentication.has_changed(
                settings
            ):
                error = CommClosedError(str(error))  # a retry may help
            error.__cause__ = exc
            self._attempts.failed(peer_addr, error)
            raise error from exc
        except BaseException:
            sock.close()
            self._attempts.silent(peer_addr, loop.time() - begin)
            raise
        return channel

    async def _join(
        self,
        target: Target,
        settings: Settings,
        ssl_context: ssl.SSLContext | None,
        server_hostname: str,
        by_key: bool,
        joins: Mapping[str, Any],
        way: tuple[int, tuple, str] | None = None,
    ) -> JoinedSocket:
        """Open one more connection to a listener, to join a comm with it.

        Parameters
        ----------
        target
            The family and address of the comm's own connection.
        way
            Another family and address of the listener, and the own address to connect from.

        Raises
        ------
        FabricError, OSError
            It cannot be opened, or the listener refuses it.
        """
        await authentication.prepare(settings)
        family, sockaddr, *source = way or target
        sock = await _connect_to(asyncio.get_running_loop(), family, sockaddr, *source)
        try:
            channel = make_channel(
                self.scheme,
                asyncio.get_running_loop(),
                sock,
                settings,
                ssl_context,
                by_key,
                server_side=False,
                peer_address=format_address(self.prefix, sockaddr),
                server_hostname=server_hostname,
                joins=joins,
            )
            await channel.open(settings.handshake_timeout_seconds)
            try:
                return detach(channel)
            except BaseException:
                channel.abort()
                raise
        except BaseException:
            sock.close()
            raise

    async def _open_unix(
        self,
        loop: asyncio.AbstractEventLoop,
        targets: Sequence[Target],
        settings: Settings,
        peer_addr: str,
    ) -> Channel | None:
        """Give an open channel over a Unix socket, or None to use TCP instead."""
        dialled = unix.dial(targets)
        if dialled is None:
            return None
        sock, target, listener = dialled
        if self._silent_until.get(listener, 0.0) > loop.time():
            sock.close()
            return None
        begin = loop.time()
        doubt = None
        try:
            channel = make_channel(
                self.scheme,
                loop,
                sock,
                settings,
                None,
                server_side=False,
                peer_address=peer_addr,
                refuse=functools.partial(unix.refuse_server, listener),
                address=target,
            )
            doubt = loop.call_later(_UNIX_PATIENCE_SECONDS, self._doubt, channel, listener, begin)
            await channel.open(settings.handshake_timeout_seconds)
        except (FabricError, OSError) as exc:
            sock.close()
            if isinstance(exc.__cause__, TimeoutError):
                self._pause_unix(listener, loop.time())
            logger.debug("Cannot use the Unix socket of %s; using TCP: %s", listener, exc)
            return None
        except asyncio.CancelledError:
            # Dask's timeout was shorter: its next attempt must not wait here again.
            silent = not self._has_answered(listener, begin)
            if silent and loop.time() - begin >= _UNIX_SILENCE_SECONDS:
                self._pause_unix(listener, loop.time())
            raise
        finally:
            if doubt is not None:
                doubt.cancel()
        self._answered_at.pop(listener, None)
        self._answered_at[listener] = loop.time()
        if len(self._answered_at) > _ANSWERED_LIMIT:
            self._answered_at.pop(next(iter(self._answered_at)))
        return channel

    def _pause_unix(self, listener: str, now: float) -> None:
        """Use TCP instead of this Unix socket for a while."""
        self._silent_until = {name: end for name, end in self._silent_until.items() if end > now}
        self._silent_until[listener] = now + _UNIX_PAUSE_SECONDS

    def _doubt(self, channel: Channel, listener: str, since: float) -> None:
        """Give up a Unix socket that does not answer, unless it answered others meanwhile."""
        # A server that has begun to answer is not silent, also if it then waits for others.
        if channel.closed or channel.statistics()["bytes_received"]:
            return
        if not self._has_answered(listener, since):
            channel.give_up(_UNIX_PATIENCE_SECONDS)
            return
        loop = channel.loop
        loop.call_later(_UNIX_PATIENCE_SECONDS, self._doubt, channel, listener, loop.time())

    def _has_answered(self, listener: str, since: float) -> bool:
        return self._answered_at.get(listener, -math.inf) >= since


async def _connect_to_any(
    loop: asyncio.AbstractEventLoop, targets: Sequence[Target]
) -> socket.socket:
    """Connect to the first target that answers; a silent one does not delay the next.

    Raises
    ------
    OSError
        The error of the last attempt.
    """
    if len(targets) == 1:
        return await _connect_to(loop, *targets[0])
    waiting = collections.deque(targets)
    attempts: set[asyncio.Task] = set()
    error: BaseException = OSError(errno.EADDRNOTAVAIL, "the host has no address to connect to")
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(loop.create_task(_connect_to(loop, *waiting.popleft())))
            patience = _STAGGER_SECONDS if waiting else None
            done, _ = await asyncio.wait(
                attempts, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                attempts.remove(attempt)
                failure = attempt.exception()
                if failure is None:
                    return attempt.result()
                error = failure
        raise error
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close_late)


def _close_late(attempt: asyncio.Task) -> None:
    """Close the connection of an attempt that succeeded after another."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _connect_to(
    loop: asyncio.AbstractEventLoop, family: int, sockaddr: tuple, source: str = ""
) -> socket.socket:
    """Connect, from the own address *source* if one is given."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if source:
            sock.bind((source, 0))
        code = sock.connect_ex(sockaddr)
        tune(sock)
        if code in _IN_PROGRESS:
            # Within a host the TCP handshake is over by now: a second call returns its result.
            code = sock.connect_ex(sockaddr)
            if code in _IN_PROGRESS:
                code = await _connected(loop, sock)
        if code and code != errno.EISCONN:
            raise OSError(code, f"{os.strerror(code)} ({sockaddr[0]} port {sockaddr[1]})")
    except BaseException:
        sock.close()
        raise
    return sock


async def _connected(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> int:
    """Wait for a connect in progress; give its errno, 0 for success."""
    writable = loop.create_future()
    loop.add_writer(sock, _wake, writable)
    try:
        await writable
    finally:
        loop.remove_writer(sock)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _wake(future: asyncio.Future) -> None:
    if not future.done():
        future.set_result(None)

"""The only place where channels are made, plain or under TLS."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dask_fabric.comm.channels.negotiator import Negotiator, describe, for_joining, is_remote
from dask_fabric.comm.network import authentication, refusals, unix
from dask_fabric.comm.network.addresses import format_address
from dask_fabric.comm.network.security import Scheme
from dask_fabric.config import Settings
from dask_fabric.engine.channel import Channel
from dask_fabric.engine.transport import PlainTransport, Transport
from dask_fabric.memory import device
from dask_fabric.wire.authentication import KEY_TLS, PLAIN, TLS
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.hello import Hello


def make_channel(
    scheme: Scheme,
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    settings: Settings,
    ssl_context: ssl.SSLContext | None,
    by_key: bool = False,
    *,
    server_side: bool,
    peer_address: str,
    server_hostname: str | None = None,
    refuse: Callable[[Hello], str | None] | None = None,
    address: str = "",
    joins: Mapping[str, Any] | None = None,
) -> Channel:
    """Make a channel: under TLS if there is a context, else plain.

    Parameters
    ----------
    scheme : Scheme
        The scheme of this side's address; its hello announces it.
    loop : asyncio.AbstractEventLoop
        The running loop.
    sock : socket.socket
        Connected and non-blocking; owned by the channel from now on.
    settings : dask_fabric.config.Settings
        The limits that the channel enforces.
    ssl_context : ssl.SSLContext or None
        None for plain text.
    by_key : bool
        Whether the TLS context is from the shared key.
    server_side : bool
        Whether this side accepted the connection.
    peer_address : str
        The address of the other end, with its scheme, as far as it is known yet.
    server_hostname : str, optional
        The name to check the server's TLS certificate against.
    refuse : callable, optional
        Takes the peer's hello and gives the reason to refuse it, or "".
    address : str, optional
        The address in the hello on a Unix socket; see `dask_fabric.wire.hello.Hello`.
    joins : mapping, optional
        If the connection is to join a comm: see `dask_fabric.wire.hello.Hello`.

    Raises
    ------
    OSError
        The connection is gone already.
    ConfigError
        The key of this process cannot be used.
    """
    encrypted = ssl_context is not None
    inside = PLAIN if ssl_context is None else KEY_TLS if by_key else TLS
    method = authentication.current(settings)
    kinds, remote = device.kinds(), is_remote(sock)
    hello = describe(scheme, settings, encrypted, os.getpid(), address, kinds, method, remote)
    if joins:
        hello = for_joining(hello, joins)
    negotiator = Negotiator(sock, hello, server_side, settings)
    if server_side:
        reasons = (refuse, negotiator.refuse) if refuse else (negotiator.refuse,)
        handshake = Handshake(
            negotiator.hello,
            True,
            functools.partial(_first_reason, reasons),
            negotiator.answer,
            method,
            inside,
        )
    else:
        handshake = Handshake(negotiator.hello, False, refuse, method=method, inside=inside)
    if ssl_context is None:
        transport: Transport = PlainTransport(sock, settings.stream_bulk_bytes)
    else:
        from dask_fabric.engine.tls_transport import tls_transport

        transport = tls_transport(
            sock, ssl_context, server_side, settings.stream_bulk_bytes, server_hostname
        )
    try:
        channel = Channel(loop, transport, handshake, settings, negotiator)
    except BaseException:
        transport.sock.close()  # under TLS not the caller's: that one was detached
        raise
    channel.log_warning = refusals.warn
    channel.name_ends = functools.partial(_ends, scheme.prefix, address, peer_address)
    return channel


def settle_addresses(channel: Channel) -> tuple[str, str]:
    """Give the addresses of an open channel, and store them: they are final now."""
    local, peer = channel.addresses()
    if channel.server_side:
        local = sys.intern(local)  # all comms of a listener share it
    channel.ends = local, peer
    channel.name_ends = None
    return channel.ends


def _ends(prefix: str, reached: str, peer_address: str, channel: Channel) -> tuple[str, str]:
    """Give the local and the peer's address; *reached* is the address of the Unix socket."""
    if isinstance(channel.local_sockname, tuple):  # TCP
        return format_address(prefix, channel.local_sockname), peer_address
    if not channel.server_side:
        return prefix + unix.client_address(reached, channel.local_sockname), peer_address
    if channel.peer is not None:
        reached = channel.peer.address  # checked by `unix.refuse_client`
    return prefix + reached, prefix + unix.client_address(reached, channel.peer_sockname)


def _first_reason(refusers: Iterable[Callable[[Hello], str | None]], hello: Hello) -> str:
    return next(filter(None, (refuse(hello) for refuse in refusers)), "")

"""Binding the sockets of a listener: every address of a host, on one port."""

from __future__ import annotations

import contextlib
import errno
import socket

_EPHEMERAL_PORT_ATTEMPT_COUNT = 5


def bind(host: str, port: int, backlog_count: int) -> list[socket.socket]:
    """Listen on every address of *host*, IPv4 first, with the same port for all.

    Parameters
    ----------
    host : str
        Address or name; empty means every interface, by IPv4 and IPv6.
    port : int
        0 means any free port.
    backlog_count : int
        How many connections may wait to be accepted.

    Raises
    ------
    OSError
        An address cannot be bound, or *host* is not known.

    Notes
    -----
    Like ``tornado.netutil.bind_sockets``, but closes its sockets if a later one fails. A port that
    is free for IPv4 is sometimes taken for IPv6; with *port* 0 another one is tried then.
    """
    for _ in range(_EPHEMERAL_PORT_ATTEMPT_COUNT - 1):
        try:
            return _bind_all(host, port, backlog_count)
        except OSError as exc:
            if port != 0 or exc.errno != errno.EADDRINUSE:
                raise
    return _bind_all(host, port, backlog_count)


def bind_to_free(host: str, port: int, backlog_count: int) -> list[socket.socket]:
    """As `bind`, but take any free port if this one is taken."""
    try:
        return bind(host, port, backlog_count)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
    return bind(host, 0, backlog_count)


def _bind_all(host: str, port: int, backlog_count: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    with contextlib.ExitStack() as on_failure:
        # IPv4 wins where both are bound, since defective IPv6 is common.
        for family, sockaddr in dict.fromkeys(sorted((info[0], info[4]) for info in found)):
            # One port for all, also if the system chose it.
            sockaddr = (sockaddr[0], port or _port_of(bound), *sockaddr[2:])
            sock = _bind_one(family, sockaddr, may_be_missing=host in ("", "localhost"))
            if sock is not None:
                on_failure.callback(sock.close)
                bound.append(sock)
        for sock in bound:
            sock.listen(backlog_count)
        on_failure.pop_all()
    if not bound:
        raise OSError(errno.EADDRNOTAVAIL, f"{host!r} has no address to listen on")
    return bound


def _port_of(bound: list[socket.socket]) -> int:
    return bound[0].getsockname()[1] if bound else 0


def _bind_one(family: int, sockaddr: tuple, *, may_be_missing: bool) -> socket.socket | None:
    """Bind a socket; give None if the host has no IPv6 and *may_be_missing*."""
    missing = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) if may_be_missing else ()
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:
        if family == socket.AF_INET6 and exc.errno in missing:
            return None
        raise
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
    except OSError as exc:
        sock.close()
        if family == socket.AF_INET6 and exc.errno in missing:
            return None
        raise
    return sock

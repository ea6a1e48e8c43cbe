"""Unix-domain sockets beside the TCP sockets of a host: their names, and who may use them.

Beside each TCP socket, a listener listens on an abstract Unix socket named after the TCP address.
A client on the same host uses it instead of TCP if the name exists and the listener's hello states
the same address. In any doubt TCP is used: nothing here makes a connection fail. See "Unix sockets
within a host" in ``docs/wire-protocol.md`` for what this proves, and what not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterable

from distributed.comm.addressing import parse_host_port, unparse_host_port

from dask_fabric.comm.network.addresses import (
    WILDCARD_HOSTS,
    Target,
    host_of,
    numeric_address,
)
from dask_fabric.paths.credentials import ROOT, is_trusted, peer_credentials
from dask_fabric.wire.hello import Hello

logger = logging.getLogger(__name__)

# Measured with frames of 1 to 100 MB: 4.7 GB/s, against 3.5 with the default of 208 KiB.
SEND_BUFFER_BYTES = 2 << 20
_NAME_PREFIX = b"\0dask-fabric/"
_WILDCARDS: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_WILDCARD_LISTENERS = ("0.0.0.0:", "[::]:")
_DISCARD_PORT = 9  # any: nothing is sent
# The name that the kernel gives to a socket bound without one; see unix(7), autobind.
_AUTOBOUND = re.compile(rb"\0([0-9a-f]{5})")
# Above all TCP ports, so that the two kinds never share an address.
_FIRST_PORT = 1 << 16
_BACKLOG_LEAST = 1 << 16


def address_of(sockname: tuple) -> str:
    """Write the name of a TCP socket as ``host:port``."""
    return unparse_host_port(host_of(sockname), sockname[1])


def bind_beside(
    listening: Iterable[socket.socket], backlog_count: int
) -> list[tuple[socket.socket, str]]:
    """Listen on a Unix socket beside each listening TCP socket, named after its address.

    Parameters
    ----------
    listening : iterable of socket.socket
        The TCP sockets.
    backlog_count : int
        How many connections may wait to be accepted.

    Returns
    -------
    list of (socket.socket, str)
        Each with the address, ``host:port``, of its TCP socket. Sockets that cannot be bound, for
        instance because the name is taken, are left out.
    """
    bound = []
    for beside in listening:
        address = address_of(beside.getsockname())
        sock = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.bind(_name(address))
            # Where this is full, a client cannot wait, as with TCP. The kernel lowers the number.
            sock.listen(max(backlog_count, _BACKLOG_LEAST))
        except OSError as exc:
            logger.debug("No Unix socket beside %s, only TCP: %s", address, exc)
            if sock is not None:
                sock.close()
        else:
            bound.append((sock, address))
    return bound


def dial(targets: Iterable[Target]) -> tuple[socket.socket, str, str] | None:
    """Connect to the Unix socket beside the first of *targets* that has one; never waits.

    Parameters
    ----------
    targets : iterable of (int, tuple)
        Address families and socket addresses, in the order in which TCP would try them.

    Returns
    -------
    (socket.socket, str, str) or None
        The connected socket, the target's address, and the address in the socket's name, which may
        be a wildcard. None if TCP should be used.
    """
    for family, sockaddr in targets:
        # Do not skip this target: TCP would try it first, and may reach another host.
        if not is_own(family, sockaddr):
            return None
        target = address_of(sockaddr)
        for listener in (target, unparse_host_port(_WILDCARDS[family], sockaddr[1])):
            sock = _connect(listener)
            if sock is not None:
                return sock, target, listener
    return None


def _connect(listener: str) -> socket.socket | None:
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return None
    try:
        sock.bind("")  # autobind: the listener sees a unique name
        sock.connect(_name(listener))
        if is_trusted(peer_uid(sock)):
            tune(sock)
            return sock
        logger.debug("The Unix socket of %s belongs to another user; using TCP", listener)
    except OSError:
        pass  # no such name, or its backlog is full: TCP can wait for a place
    sock.close()
    return None


def tune(sock: socket.socket) -> None:
    """Enlarge the send buffer beyond the default 208 KiB, as far as net.core.wmem_max allows."""
    # The kernel doubles the value, and reduces it to its limit; see socket(7).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES // 2)


def is_own(family: int, sockaddr: tuple) -> bool:
    """Whether a packet to *sockaddr* stays on this host: asks the routing table, sends nothing.

    Notes
    -----
    Of several addresses of an interface in one subnet, only the first is recognised.
    """
    host = sockaddr[0]
    if host in WILDCARD_HOSTS:  # the kernel treats them as loopback
        return False
    if family == socket.AF_INET and host.startswith("127."):
        return True
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, _DISCARD_PORT, *sockaddr[2:]))
            return host_of(probe.getsockname()) == host_of(sockaddr)
    except OSError:
        return False  # no route


def is_welcome(sock: socket.socket, name: object, strict: bool) -> bool:
    """Whether to accept a connection from *name*: autobound, and of this user or root.

    A process of root accepts every user, as over TCP, unless it is *strict*.
    """
    if not isinstance(name, bytes) or not _AUTOBOUND.fullmatch(name):
        return False
    with contextlib.suppress(OSError):
        return (os.geteuid() == ROOT and not strict) or is_trusted(peer_uid(sock))
    return False


def peer_uid(sock: socket.socket) -> int:
    """Give the user id of the process at the other end of a Unix socket."""
    return peer_credentials(sock)[1]


def peer_pid(sock: socket.socket) -> int:
    """Give the process id of the other end in this pid namespace; 0 if it is not visible here."""
    return peer_credentials(sock)[0]


def client_address(target: str, name: bytes) -> str:
    """Make an address for the connecting end: the host that it reached, and a port above TCP's.

    Parameters
    ----------
    target : str
        The ``host:port`` that the client reached.
    name : bytes
        The name of the client's socket, which the kernel chose: unique in its network namespace.
    """
    found = _AUTOBOUND.fullmatch(name)
    port = _FIRST_PORT + int(found[1], 16) if found else 0
    return f"{target.rpartition(':')[0]}:{port}"


def refuse_server(listener: str, hello: Hello) -> str:
    """Give the reason, or "", to refuse a server that was reached by the name of *listener*."""
    if hello.address == listener:
        return ""
    return f"this Unix socket is named for {listener}, not for {hello.address!r:.80}"


def refuse_client(listener: str, hello: Hello) -> str:
    """Give the reason, or "", to refuse a client: its hello must name a target of *listener*."""
    if _reaches(hello.address, listener):
        return ""
    return f"this Unix socket belongs to {listener}, not to {hello.address!r:.80}"


def _reaches(target: str, listener: str) -> bool:
    """Whether a TCP connection to *target*, an untrusted text, would reach *listener*."""
    if target == listener:
        return not listener.startswith(_WILDCARD_LISTENERS)
    host, port = parse_host_port(listener)
    if host not in WILDCARD_HOSTS:
        return False
    try:
        numeric = numeric_address(*parse_host_port(target))
    except (ValueError, OverflowError):
        return False
    if numeric is None or host != _WILDCARDS[numeric[0]] or numeric[1][1] != port:
        return False
    return address_of(numeric[1]) == target and is_own(*numeric)


def _name(address: str) -> bytes:
    return _NAME_PREFIX + address.encode()

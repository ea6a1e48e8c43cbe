"""Addresses: text to socket addresses and back, and which of this host's own to advertise.

Nothing here blocks on the network, except functions that look up host names; they say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable

import psutil
from distributed.comm.addressing import unparse_host_port

Target = tuple[int, tuple]  # address family and socket address

_NUMERIC_FLAGS = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
# The hosts of distributed's get_ip. Never contacted: a UDP connect only asks the routing table.
_ELSEWHERE: dict[int, str] = {socket.AF_INET: "8.8.8.8", socket.AF_INET6: "2001:4860:4860::8888"}
WILDCARD_HOSTS = frozenset(("", "0.0.0.0", "::"))


def host_of(sockname: tuple) -> str:
    """Give the host of a socket's name, with the interface if the address needs one.

    Parameters
    ----------
    sockname : tuple
        The result of ``getsockname()`` or ``getpeername()`` of an IPv4 or IPv6 socket.
    """
    host = sockname[0]
    if len(sockname) == 4 and sockname[3] and "%" not in host:
        with contextlib.suppress(OSError):  # the interface may be gone
            return f"{host}%{socket.if_indextoname(sockname[3])}"
    return host


def format_address(prefix: str, sockname: tuple) -> str:
    """Write a socket's name as an address, such as ``fabric://[::1]:8786``."""
    if len(sockname) == 2:
        return f"{prefix}{sockname[0]}:{sockname[1]}"
    return prefix + unparse_host_port(host_of(sockname), sockname[1])


def numeric_address(host: str, port: int) -> Target | None:
    """Give ``(family, sockaddr)`` of a numeric IPv4 or IPv6 *host*, or None if it is a name."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        if ":" not in host:
            return None
    else:
        return socket.AF_INET, (host, port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=_NUMERIC_FLAGS)
    except socket.gaierror:
        return None
    return found[0][0], found[0][4]


async def resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Target]:
    """Give every ``(family, sockaddr)`` of *host*, without a thread if *host* is numeric.

    An empty *host* means this host, as in distributed.

    Raises
    ------
    OSError
        The name is not known (``socket.gaierror``).
    """
    numeric = numeric_address(host, port)
    if numeric is not None:
        return [numeric]
    found = await loop.getaddrinfo(host or "localhost", port, type=socket.SOCK_STREAM)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def resolve_blocking(host: str) -> str:
    """Give the IP address of *host*, preferably IPv4. Blocks if *host* is a name.

    Raises
    ------
    OSError
        The name is not known (``socket.gaierror``).
    """
    if numeric_address(host, 0) is not None:
        return host
    found = socket.getaddrinfo(host or "localhost", 0, type=socket.SOCK_STREAM)
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    return host_of(found[0][4])


def route_source(host: str, families: Iterable[int] = tuple(_ELSEWHERE)) -> str | None:
    """Give this host's address on the route to *host*, or None without a route.

    Sends nothing: it connects a UDP socket and asks for its name. Blocks if *host* is a name.

    Parameters
    ----------
    host : str
        IPv4 or IPv6 address, or a host name.
    families : iterable of int
        Address families to try, in order of preference.
    """
    for family in families:
        with contextlib.suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(host, 9, family, socket.SOCK_DGRAM)
            for _, kind, protocol, _, sockaddr in found:
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(sockaddr)
                    return host_of(probe.getsockname())
    return None


def advertised_host(families: Iterable[int], scheduler_host: str | None = None) -> str:
    """Choose the address under which others can reach a socket that listens everywhere.

    Parameters
    ----------
    families : iterable of int
        Address families that it listens on, the preferred one first.
    scheduler_host : str, optional
        The scheduler that the server will register with: the address of the interface that leads
        there is preferred.

    Notes
    -----
    distributed considers the scheduler for the schemes ``tcp`` and ``tls`` only. Without a
    scheduler the result is that of ``distributed.utils.get_ip`` (the interface of the default
    route, else the address of the host's own name), unless that is loopback and others exist.
    """
    families = tuple(families)
    if scheduler_host:
        source = route_source(scheduler_host, families)
        if source is not None:
            return source
    for candidates in (_default_route, _own_name, _interfaces):
        for family in families:
            for host in candidates(family):
                if not is_loopback(host):
                    return host
    return "127.0.0.1" if families[0] == socket.AF_INET else "::1"


def _default_route(family: int) -> list[str]:
    source = route_source(_ELSEWHERE[family], (family,))
    return [] if source is None or source in WILDCARD_HOSTS else [source]


def _own_name(family: int) -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), 0, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [host_of(info[4]) for info in found]


def _interfaces(family: int) -> list[str]:
    """List the addresses of the interfaces that are up, the most suitable first."""
    status = psutil.net_if_stats()
    found = [
        (_is_link_local(address.address), _is_virtual(name), address.address)
        for name, addresses in psutil.net_if_addrs().items()
        if name in status and status[name].isup
        for address in addresses
        if address.family == family
    ]
    return [host for _, _, host in sorted(found, key=lambda entry: entry[:2])]


def _is_virtual(interface: str) -> bool:
    """Whether this is a bridge of containers or virtual machines, and not a network card."""
    return not os.path.exists(f"/sys/class/net/{interface}/device")


def is_loopback(host: str) -> bool:
    """Whether only this host can reach that address."""
    return host.startswith("127.") or host == "::1"


def _is_link_local(host: str) -> bool:
    return host.lower().startswith(("fe80:", "169.254."))

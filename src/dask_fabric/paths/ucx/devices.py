"""Network devices that UCX is kept to where a listener is bound to one address.

UCX's TCP listens on every interface that it may use, without authentication or encryption. A user
who binds a listener to one address does not expect another port elsewhere.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import psutil

TCP = "tcp"
_IP = (socket.AF_INET, socket.AF_INET6)
# Transports without a network: what NET_DEVICES does not concern.
_LOCAL = ("self", "posix", "sysv", "xpmem", "cma", "knem", "cuda", "gdr_copy", "rocm", "ze_")


def kept_to(host: str, transports: Iterable[str]) -> dict[str, str]:
    """Give the settings of UCX that keep its TCP to the interface of *host*.

    Parameters
    ----------
    host : str
        What a listener is bound to, an address or a name; a wildcard, or nothing, keeps all.
    transports : iterable of str
        Those of the library, with devices, such as ``tcp/eth0``.

    Returns
    -------
    dict of str to str
        Without ``UCX_``. On a loopback address networks of RDMA are left out too: whoever may
        connect to that is on this host.
    """
    addresses = _addresses(host)
    if not addresses or any(address.is_unspecified for address in addresses):
        return {}
    is_loopback = all(address.is_loopback for address in addresses)
    interfaces = _interfaces(addresses)
    devices = [name.partition("/") for name in transports if not name.startswith(_LOCAL)]
    kept = [
        device
        for name, _, device in devices
        if (device in interfaces if name == TCP else not is_loopback)
    ]
    if len(kept) == len(devices):
        return {}
    if kept:
        return {"NET_DEVICES": ",".join(dict.fromkeys(kept))}
    return {"TLS": "^" + ",".join(dict.fromkeys(name for name, _, _ in devices))}


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM)
    except OSError:
        return []  # the listener says so
    return [_address(str(info[4][0])) for info in found] if host else []


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text.partition("%")[0])


def _interfaces(
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> set[str]:
    """Name the interfaces that have one of *addresses*; each loopback address is the loopback's."""
    wants_loopback = any(address.is_loopback for address in addresses)
    return {
        name
        for name, entries in psutil.net_if_addrs().items()
        for own in (_address(entry.address) for entry in entries if entry.family in _IP)
        if own in addresses or (wants_loopback and own.is_loopback)
    }

"""Restricting UCX's network devices if a listener is bound to one address.

UCX's TCP transport listens on every interface that it may use, without authentication or
encryption. A user who binds a listener to one address does not expect open ports elsewhere.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import psutil

TCP = "tcp"
_IP = (socket.AF_INET, socket.AF_INET6)
# Transports without a network, to which NET_DEVICES does not apply.
_LOCAL = ("self", "posix", "sysv", "xpmem", "cma", "knem", "cuda", "gdr_copy", "rocm", "ze_")


def kept_to(host: str, transports: Iterable[str]) -> dict[str, str]:
    """Give the settings that restrict UCX's TCP to the interface of *host*.

    Parameters
    ----------
    host : str
        The address or name that a listener is bound to; a wildcard, or "", restricts nothing.
    transports : iterable of str
        The library's transports with devices, such as ``tcp/eth0``.

    Returns
    -------
    dict of str to str
        Names without ``UCX_``, and values. For a loopback address RDMA is excluded too: all peers
        are on this host.
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
        return []  # binding the listener reports the error
    return [_address(str(info[4][0])) for info in found] if host else []


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text.partition("%")[0])


def _interfaces(
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> set[str]:
    """Name the interfaces with one of *addresses*; any loopback address matches the loopback."""
    wants_loopback = any(address.is_loopback for address in addresses)
    return {
        name
        for name, entries in psutil.net_if_addrs().items()
        for own in (_address(entry.address) for entry in entries if entry.family in _IP)
        if own in addresses or (wants_loopback and own.is_loopback)
    }

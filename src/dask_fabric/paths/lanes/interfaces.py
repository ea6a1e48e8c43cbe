"""Several interfaces of a host: where lanes can be reached, and how they get there.

A server that was told to use further interfaces listens on them too, and tells clients where. A
client dials only what lies in the network of an interface that it was told to use itself, from
there. So no server can have it connect to anything else.
"""

from __future__ import annotations

import functools
import ipaddress
import operator
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psutil

WAYS_LIMIT = 7  # beside the comm's own
INTERFACES_LIMIT = 8
_KEPT_SECONDS = 60.0
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Own(NamedTuple):
    """An address of this host, and the name of its interface."""

    name: str
    address: Interface


class Way(NamedTuple):
    """An address to connect to, other than the comm's own, and the one to connect from."""

    family: int
    sockaddr: tuple
    source: str


def addresses(names: Sequence[str]) -> list[Own]:
    """Give the addresses of these interfaces, with their networks; an unknown one has none.

    The first of each interface come first, and one of each network is enough. They are looked up
    once a minute.
    """
    return _addresses(tuple(names), int(time.monotonic() / _KEPT_SECONDS)) if names else []


@functools.lru_cache(maxsize=4)
def _addresses(names: tuple[str, ...], minute: int) -> list[Own]:
    every = psutil.net_if_addrs()
    found = []
    for name in names:
        by_network: dict[object, Interface] = {}
        for one in every.get(name, ()):
            if one.family in _FAMILIES and one.netmask and "%" not in one.address:
                address = ipaddress.ip_interface(f"{one.address}/{_prefix(one.netmask)}")
                by_network.setdefault(address.network, address)
        found += [(rank, Own(name, one)) for rank, one in enumerate(by_network.values())]
    return [own for _, own in sorted(found, key=operator.itemgetter(0))]


def _prefix(netmask: str) -> int:
    return bin(int(ipaddress.ip_address(netmask))).count("1")


def hosts(names: Sequence[str]) -> list[str]:
    """Give the addresses that a server listens on for lanes, beside its own."""
    return [str(own.address.ip) for own in addresses(names)][:WAYS_LIMIT]


def is_told(told: object) -> bool:
    """Whether that is what a server may tell: a list of pairs of an IP address and a port."""
    return (
        isinstance(told, (list, tuple))
        and len(told) <= WAYS_LIMIT
        and all(
            isinstance(one, (list, tuple))
            and len(one) == 2
            and isinstance(one[0], str)
            and len(one[0]) <= 45
            and type(one[1]) is int
            and 0 < one[1] < 1 << 16
            for one in told
        )
    )


def ways(told: Iterable[Sequence], names: Sequence[str], here: str, there: str) -> list[Way]:
    """Give the ways that a client has to what the server told, except its own.

    They are shared among the interfaces that lead there. An interface that has IPv4 and IPv6 is
    used by one of them, or it would count twice.

    Parameters
    ----------
    told
        See `is_told`.
    names
        The interfaces that this process is to use.
    here, there
        The addresses of client and server on the comm's own connection.
    """
    own = addresses(names)
    of_comm = [one for one in own if str(one.address.ip) == here]
    versions = {one.name: one.address.version for one in of_comm}
    used = Counter([*versions])
    found = []
    for host, port in told:
        address = _parsed(host)
        if address is None or str(address) == there:
            continue
        version = address.version
        leading = [
            one
            for one in own
            if address in one.address.network and versions.get(one.name, version) == version
        ]
        if not leading:
            continue
        chosen = min(leading, key=lambda one: used[one.name])
        used[chosen.name] += 1
        versions[chosen.name] = version
        source = str(chosen.address.ip)
        if version == 4:
            found.append(Way(socket.AF_INET, (str(address), port), source))
        else:
            found.append(Way(socket.AF_INET6, (str(address), port, 0, 0), source))
    return found


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an address; one with a zone has none, because it may hold any text."""
    try:
        return None if "%" in host else ipaddress.ip_address(host)
    except ValueError:
        return None


def as_names(value: object) -> tuple[str, ...]:
    """Read ``fabric.lanes.interfaces``: a list of names, or one text with commas between them."""
    if isinstance(value, str):
        # Brackets: Dask leaves `[ib0, ib1]` in an environment variable as it is.
        value = value.strip().removeprefix("[").removesuffix("]")
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if not isinstance(value, (list, tuple)) or len(value) > INTERFACES_LIMIT:
        raise ValueError(value)
    if not all(map(_is_name, value)):
        raise ValueError(value)
    return tuple(dict.fromkeys(value))


def _is_name(value: object) -> bool:
    """Whether Linux could call an interface so."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and 0 < len(value) < 16
        and not re.search(r"[\s/]", value)
    )

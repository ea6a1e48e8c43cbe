"""Network interfaces of this host."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dask_fabric.comm.network.addresses import advertised_host
from dask_fabric.gpu.files import read_text
from dask_fabric.gpu.pci import Place, place_of

_LOOPBACK, _INFINIBAND = "772", "32"  # kinds of hardware, see netdevice(7)


@dataclass(frozen=True)
class Interface:
    """One network interface; a speed of None is unknown."""

    name: str
    kind: str
    up: bool
    addresses: tuple[str, ...]
    advertised: bool
    speed_mbit: int | None
    mtu_bytes: int
    place: Place | None


def inspect_interfaces(
    root: Path = Path("/"),
    addresses: Mapping[str, Sequence[Any]] | None = None,
    states: Mapping[str, Any] | None = None,
    advertised: str | None = None,
) -> tuple[Interface, ...]:
    """List the network interfaces, those that are up first.

    Parameters
    ----------
    root : Path
        Where ``sys`` is mounted.
    addresses, states : mapping, optional
        The results of ``psutil.net_if_addrs`` and ``psutil.net_if_stats``, by default.
    advertised : str, optional
        The address that a server without ``--host`` and ``--interface`` advertises.
    """
    addresses = psutil.net_if_addrs() if addresses is None else addresses
    states = psutil.net_if_stats() if states is None else states
    advertised = advertised_host((socket.AF_INET,)) if advertised is None else advertised
    found = [
        _interface(name, state, addresses.get(name, ()), advertised, root)
        for name, state in states.items()
    ]
    return tuple(sorted(found, key=lambda interface: not interface.up))


def _interface(
    name: str, state: Any, addresses: Sequence[Any], advertised: str, root: Path
) -> Interface:
    folder = root / "sys/class/net" / name
    families = (socket.AF_INET, socket.AF_INET6)
    own = tuple(entry.address for entry in addresses if entry.family in families)
    return Interface(
        name=name,
        kind=_kind(folder),
        up=state.isup,
        addresses=own,
        advertised=advertised in own,
        speed_mbit=state.speed if 0 < state.speed < 2**31 else None,
        mtu_bytes=state.mtu,
        place=place_of(folder / "device", root),
    )


def _kind(folder: Path) -> str:
    hardware = read_text(folder / "type")
    if hardware in (_LOOPBACK, _INFINIBAND):
        return "loopback" if hardware == _LOOPBACK else "InfiniBand"
    # Bridges of containers and virtual machines have no device.
    return "network card" if (folder / "device").exists() else "virtual"

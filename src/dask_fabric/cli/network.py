"""Network interfaces and RDMA devices of this host."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dask_fabric.cli.files import names_in, read_text
from dask_fabric.cli.pci import Place, place_of
from dask_fabric.comm.addressing import advertised_host

_LOOPBACK, _INFINIBAND = "772", "32"  # kinds of hardware, see netdevice(7)


@dataclass(frozen=True)
class Interface:
    """One network interface; no speed is an unknown speed."""

    name: str
    kind: str
    up: bool
    addresses: tuple[str, ...]
    advertised: bool
    speed_mbit: int | None
    mtu_bytes: int
    place: Place | None


@dataclass(frozen=True)
class RdmaPort:
    """One port of an RDMA device, in the kernel's words; None is unknown."""

    number: int
    state: str | None
    physical_state: str | None
    rate: str | None
    link_layer: str | None


@dataclass(frozen=True)
class RdmaDevice:
    """One InfiniBand, RoCE or other RDMA device."""

    name: str
    firmware: str | None
    ports: tuple[RdmaPort, ...]
    interfaces: tuple[str, ...]
    verbs: str | None
    may_use_verbs: bool
    place: Place | None

    @property
    def active(self) -> bool:
        """Whether it has a port that can carry data."""
        return any(port.state == "ACTIVE" for port in self.ports)


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
        What ``psutil.net_if_addrs`` and ``psutil.net_if_stats`` give.
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


def inspect_rdma(root: Path = Path("/")) -> tuple[RdmaDevice, ...]:
    """List the RDMA devices that the kernel knows."""
    devices = root / "sys/class/infiniband"
    verbs = _verbs(root)
    return tuple(
        RdmaDevice(
            name=name,
            firmware=read_text(devices / name / "fw_ver") or None,
            ports=_ports(devices / name / "ports"),
            interfaces=tuple(names_in(devices / name / "device/net")),
            verbs=verbs.get(name),
            may_use_verbs=_may_use(root, verbs.get(name)),
            place=place_of(devices / name / "device", root),
        )
        for name in names_in(devices)
    )


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


def _ports(folder: Path) -> tuple[RdmaPort, ...]:
    return tuple(
        RdmaPort(
            number=int(name),
            state=_word(read_text(folder / name / "state")),
            physical_state=_word(read_text(folder / name / "phys_state")),
            rate=read_text(folder / name / "rate"),
            link_layer=read_text(folder / name / "link_layer"),
        )
        for name in names_in(folder)
        if name.isdecimal()
    )


def _word(text: str | None) -> str | None:
    """Give ``ACTIVE`` of ``4: ACTIVE``."""
    return None if text is None else text.rpartition(":")[2].strip()


def _verbs(root: Path) -> dict[str, str]:
    """Give the special file by which a program uses each RDMA device, by the device's name."""
    folder = root / "sys/class/infiniband_verbs"
    found = {read_text(folder / name / "ibdev"): name for name in names_in(folder)}
    return {device: f"/dev/infiniband/{name}" for device, name in found.items() if device}


def _may_use(root: Path, verbs: str | None) -> bool:
    return verbs is not None and os.access(root / verbs.lstrip("/"), os.R_OK | os.W_OK)

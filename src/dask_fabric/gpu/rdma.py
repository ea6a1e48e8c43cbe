"""RDMA devices of this host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dask_fabric.gpu.files import names_in, read_text
from dask_fabric.gpu.pci import Place, place_of


@dataclass(frozen=True)
class RdmaPort:
    """One port of an RDMA device, in the kernel's words; None means unknown."""

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
        """Whether one of its ports can carry data."""
        return any(port.state == "ACTIVE" for port in self.ports)


def inspect_rdma(root: Path = Path("/")) -> tuple[RdmaDevice, ...]:
    """List the RDMA devices of the kernel."""
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
    """Give the device file of each RDMA device, by the device's name."""
    folder = root / "sys/class/infiniband_verbs"
    found = {read_text(folder / name / "ibdev"): name for name in names_in(folder)}
    return {device: f"/dev/infiniband/{name}" for device, name in found.items() if device}


def _may_use(root: Path, verbs: str | None) -> bool:
    return verbs is not None and os.access(root / verbs.lstrip("/"), os.R_OK | os.W_OK)

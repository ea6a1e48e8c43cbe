"""Places of devices on the PCI bus, and the distance between two of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dask_fabric.gpu.files import read_int, read_text

# The levels of `nvidia-smi topo` in plain words, the nearest first.
NEARNESS = (
    "same PCIe switch",
    "same PCIe root",
    "same NUMA node",
    "other NUMA node",
    "unknown",
)


@dataclass(frozen=True)
class Place:
    """The place of a device on the PCI bus.

    Attributes
    ----------
    address : str
        Such as ``0000:17:00.0``.
    bridges : tuple of str
        The bridges above the device, from the root of the bus.
    numa_node : int or None
        The nearest NUMA node.
    link, best_link : str or None
        Current and maximum speed and width of its PCIe link.
    """

    address: str
    bridges: tuple[str, ...]
    numa_node: int | None
    link: str | None
    best_link: str | None


def place_of(device: Path, root: Path = Path("/")) -> Place | None:
    """Give the place of a device by its folder in ``sys``, or None if it is not on PCI.

    Parameters
    ----------
    device : Path
        Such as ``/sys/bus/pci/devices/0000:17:00.0`` or ``/sys/class/net/eth0/device``.
    root : Path
        Where ``sys`` is mounted.
    """
    try:
        parts = Path(os.path.realpath(device)).relative_to(os.path.realpath(root)).parts
    except ValueError:
        return None
    addresses = [part for part in parts if re.fullmatch(r"[\da-f]{4,}:[\da-f]{2}:.*", part)]
    if not addresses or not device.exists():
        return None
    # In a virtual machine a network card may be a child of its PCI device (virtio).
    last = parts.index(addresses[-1])
    folder = Path(os.path.realpath(root), *parts[: last + 1])
    node = read_int(folder / "numa_node")
    return Place(
        address=addresses[-1],
        bridges=tuple(part for part in parts[:last] if part.startswith("pci") or part in addresses),
        numa_node=None if node is None or node < 0 else node,
        link=_link(folder, "current"),
        best_link=_link(folder, "max"),
    )


def place_at(address: str, root: Path = Path("/")) -> Place | None:
    """Give the place at an address in a driver's notation, such as ``00000000:17:00.0``."""
    domain, _, rest = address.lower().partition(":")
    # NVIDIA's driver writes eight digits of the domain, sys four.
    return place_of(root / "sys/bus/pci/devices" / f"{domain[-4:]}:{rest}", root)


def nearness(one: Place | None, other: Place | None) -> str:
    """Give the distance of two devices, as one of `NEARNESS`."""
    if one is None or other is None:
        return "unknown"
    if one.bridges[:2] == other.bridges[:2] and len(one.bridges) > 1:
        return "same PCIe switch"
    if one.bridges[:1] == other.bridges[:1]:
        return "same PCIe root"
    if one.numa_node is None or other.numa_node is None:
        return "unknown"
    return "same NUMA node" if one.numa_node == other.numa_node else "other NUMA node"


def nearest(
    place: Place | None, devices: Iterable[tuple[str, Place | None]]
) -> tuple[tuple[str, ...], str]:
    """Name the devices nearest to a place, and their distance."""
    by_rank = [(NEARNESS.index(nearness(place, other)), name) for name, other in devices]
    best = min((rank for rank, _ in by_rank), default=len(NEARNESS) - 1)
    if NEARNESS[best] == "unknown":
        return (), NEARNESS[best]
    return tuple(name for rank, name in by_rank if rank == best), NEARNESS[best]


def _link(folder: Path, which: str) -> str | None:
    speed = re.match(r"[\d.]+ GT/s", read_text(folder / f"{which}_link_speed") or "")
    width = read_int(folder / f"{which}_link_width")
    return f"{speed[0]} x{width}" if speed and width else None

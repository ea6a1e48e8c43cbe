"""Which of a host's network cards a process uses: libfabric calls each of them a domain."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dask_fabric.errors import UnavailableError


@dataclass(frozen=True)
class Domain:
    """One card, or network interface, that a provider can use.

    Attributes
    ----------
    provider : str
    name : str
        As libfabric calls it, such as ``cxi0``, ``mlx5_0`` or ``eth0``.
    pci : str
        Its address on the PCI bus, such as ``0000:17:00.0``; "" if it has none.
    """

    provider: str
    name: str
    pci: str


def pick(
    found: Sequence[Domain],
    wanted: str | None = None,
    cpus: Collection[int] | None = None,
    number: int | None = None,
    root: Path = Path("/"),
) -> Domain:
    """Choose a domain: the named one, else one near the CPUs of this process.

    Of several that are equally near, different processes take different ones. Domains that are no
    cards are taken in libfabric's order.

    Parameters
    ----------
    found : sequence of Domain
        Those of the provider, in libfabric's order; not empty.
    wanted : str, optional
        ``fabric.ofi.domain``.
    cpus : collection of int, optional
        Where the process may run; by default where this one may.
    number : int, optional
        Tells processes apart; by default the process id.
    root : Path
        Where ``sys`` is mounted.

    Raises
    ------
    UnavailableError
        There is none of that name.
    """
    if wanted is not None:
        named = [one for one in found if one.name == wanted]
        if not named:
            names = ", ".join(dict.fromkeys(one.name for one in found))
            raise UnavailableError(
                f"fabric.ofi.domain is {wanted}, and libfabric's provider {found[0].provider} has "
                f"only {names} here"
            )
        return named[0]
    near = nearest(found, os.sched_getaffinity(0) if cpus is None else cpus, root)
    return near[(os.getpid() if number is None else number) % len(near)] if near else found[0]


def nearest(found: Sequence[Domain], cpus: Collection[int], root: Path) -> list[Domain]:
    """Give the cards on the NUMA nodes of these CPUs, or all cards if there are none."""
    cards = list({one.pci: one for one in found if one.pci}.values())
    nodes = set(_nodes_of(cpus, root))
    return [one for one in cards if _node_of(one, root) in nodes] or cards


def _node_of(card: Domain, root: Path) -> int:
    try:
        return int((root / "sys/bus/pci/devices" / card.pci / "numa_node").read_text())
    except (OSError, ValueError):
        return -1


def _nodes_of(cpus: Collection[int], root: Path) -> Iterator[int]:
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        if any((folder / f"cpu{cpu}").exists() for cpu in cpus):
            yield int(folder.name.removeprefix("node"))

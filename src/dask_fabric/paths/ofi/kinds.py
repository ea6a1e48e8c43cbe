"""The providers of libfabric that are used, in order of preference, and what each needs.

What is said of cxi, efa, opx, psm3 and verbs is read off their manuals (fi_cxi(7), fi_efa(7) and so
on, of libfabric 1.15 to 2.6) and was not tried on such hardware. tcp, shm and sockets were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """A provider.

    Attributes
    ----------
    name : str
        As libfabric calls it (``prov_name``).
    network : str
        What it is for; "" for those in software, which are used where told only.
    device : callable
        Whether one of this host's devices is for it, by the root of its file system.
    auto : bool
        Whether such a device is enough to use it. InfiniBand is left to UCX.
    within_host : bool
        Whether it joins only processes of one host.
    same_version : bool
        Whether both ends need the same libfabric: others fail or hang (tried for rxm and shm).
    variables : mapping of str to str
        Set while it starts, unless they are set already.
    needs : str
        What to know of its memory registration, progress, and limits; for readers.
    """

    name: str
    network: str = ""
    device: Callable[[Path], bool] = lambda root: False
    auto: bool = True
    within_host: bool = False
    same_version: bool = False
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)
    needs: str = ""


def _has_cxi(root: Path) -> bool:
    return bool(_listed(root / "sys/class/cxi"))


def _has_driver(*drivers: str) -> Callable[[Path], bool]:
    """Make a test for RDMA devices with one of these drivers."""

    def has(root: Path) -> bool:
        return any(driver in drivers for driver in _drivers(root))

    return has


def _has_other_verbs(root: Path) -> bool:
    return any(driver not in ("efa", "hfi1") for driver in _drivers(root))


def _drivers(root: Path) -> list[str]:
    """Name the drivers of this host's RDMA devices; "" for one whose driver is not shown."""
    devices = root / "sys/class/infiniband"
    return [
        os.path.basename(os.path.realpath(link)) if os.path.islink(link) else ""
        for link in (devices / name / "device/driver" for name in _listed(devices))
    ]


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


KINDS = (
    Kind(
        "cxi",
        "HPE Slingshot",
        _has_cxi,
        variables={
            # A closed region is closed for the peers as well, also with the cache of registrations.
            "FI_CXI_MR_MATCH_EVENTS": "1",
            "FI_CXI_OPTIMIZED_MRS": "0",
            # Else the cache patches mmap and munmap in libc, under which threads crash.
            "FI_MR_CACHE_MONITOR": "userfaultfd",
            "CXI_FORK_SAFE": "1",
            "CXI_FORK_SAFE_HP": "1",
        },
        needs="keys of the provider, regions bound to the endpoint, messages up to 4 GiB; reads by "
        "the NIC; both ends in one VNI (SLINGSHOT_VNIS)",
    ),
    Kind(
        "efa",
        "AWS EFA",
        _has_driver("efa"),
        # With shared memory it has no descriptor to wait for; all memory is registered by us.
        variables={"FI_EFA_ENABLE_SHM_TRANSFER": "0", "FI_MR_CACHE_MONITOR": "disabled"},
        needs="keys of the provider, pointers as addresses; reads by the device from p4d on, with "
        "API 1.18; a descriptor to wait for since 2.6",
    ),
    Kind(
        "opx",
        "Omni-Path",
        _has_driver("hfi1"),
        needs="made for messages: reads are emulated; no descriptor to wait for",
    ),
    Kind(
        "psm3",
        "Omni-Path and Ethernet by PSM3",
        _has_driver("hfi1"),
        needs="made for messages: reads are emulated; messages up to 4 GiB",
    ),
    Kind(
        "verbs;ofi_rxm",
        "InfiniBand and RoCE",
        _has_other_verbs,
        auto=False,
        same_version=True,
        variables={
            "FI_OFI_RXM_BUFFER_SIZE": "4096",
            "FI_MR_CACHE_MONITOR": "disabled",
            "RDMAV_FORK_SAFE": "1",
        },
        needs="keys of the provider, pointers as addresses, destinations registered; 70 to 130 MB "
        "of buffers",
    ),
    Kind("tcp", needs="registers nothing; a descriptor to wait for"),
    Kind(
        "tcp;ofi_rxm",
        same_version=True,
        variables={"FI_OFI_RXM_BUFFER_SIZE": "4096"},
        needs="as tcp, with 70 to 130 MB of buffers",
    ),
    Kind("net", needs="the tcp of 1.17: its progress thread spins while something is on its way"),
    Kind(
        "shm",
        within_host=True,
        same_version=True,
        needs="pointers as addresses, no check of keys, no descriptor to wait for",
    ),
    Kind("sockets", needs="deprecated; slower than tcp"),
)
BY_NAME: Mapping[str, Kind] = {kind.name: kind for kind in KINDS}


def on_this_host(root: Path = Path("/")) -> tuple[Kind, ...]:
    """Give the providers for which this host has devices, in order of preference.

    Parameters
    ----------
    root : Path
        Where ``sys`` is mounted.
    """
    return tuple(kind for kind in KINDS if kind.network and kind.device(root))

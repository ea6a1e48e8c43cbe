"""Seats: the environment, CPUs and network devices for a worker on each GPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dask_fabric import config, providers
from dask_fabric.errors import UnavailableError
from dask_fabric.gpu import nvml, visible
from dask_fabric.gpu.pci import nearest, place_at
from dask_fabric.gpu.rdma import RdmaDevice, inspect_rdma
from dask_fabric.gpu.survey import inspect_gpus

ORDER = "CUDA_DEVICE_ORDER"
_NEAR = ("same PCIe switch", "same PCIe root", "same NUMA node")


@dataclass(frozen=True)
class Seat:
    """The place of one worker.

    Attributes
    ----------
    device : dask_fabric.gpu.nvml.Device
        The GPU that it computes on.
    environment : tuple of (str, str)
        Variables of the worker's process.
    cores : tuple of int
        The CPUs to run on; empty means no restriction.
    nics : tuple of str
        The RDMA devices nearest to the GPU; empty if all are equally near.
    """

    device: nvml.Device
    environment: tuple[tuple[str, str], ...]
    cores: tuple[int, ...]
    nics: tuple[str, ...]

    def __str__(self) -> str:
        cores = f"{len(self.cores)} CPUs" if self.cores else "all CPUs"
        return f"GPU {self.device.visible_name} ({self.device.model}), {cores}" + (
            f", {', '.join(self.nics)}" if self.nics else ""
        )


def find_seats(
    named: str | int | Iterable[str | int] | None = None,
    environment: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
) -> tuple[tuple[Seat, ...], str]:
    """Give a seat for each GPU that this process may use, or the reason why there is none.

    Parameters
    ----------
    named : str, int or iterable, optional
        Overrides ``CUDA_VISIBLE_DEVICES`` in the environment.
    environment : mapping
        The environment of this process.
    root : Path
        Where ``proc`` and ``sys`` are mounted.

    Raises
    ------
    UnavailableError
        GPUs are present or named, but cannot be used; the message gives a remedy.
    """
    given = environment.get(visible.VARIABLE) if named is None else named
    names = None if given is None else visible.names_of(given)
    if names == ():
        return (), f"{visible.VARIABLE} names none"
    try:
        devices = nvml.list_devices(names)
    except nvml.NoDriverError as exc:
        if names is None and not any(_is_usable_nvidia(root)):
            return (), str(exc)
        raise UnavailableError(
            f"{exc}, but there are GPUs here or {visible.VARIABLE} names some. "
            "`pip install nvidia-ml-py`, and `nvidia-smi` must work; or set "
            f"{visible.VARIABLE}= (empty) for workers without a GPU"
        ) from exc
    rdma = [device for device in inspect_rdma(root) if device.active and device.may_use_verbs]
    seats = tuple(_seat(devices, index, rdma, environment, root) for index in range(len(devices)))
    return seats, "" if seats else "NVIDIA's driver reports none"


def _is_usable_nvidia(root: Path) -> Iterable[bool]:
    return (gpu.usable and gpu.uuid is not None for gpu in inspect_gpus(root))


def _seat(
    devices: Sequence[nvml.Device],
    index: int,
    rdma: Sequence[RdmaDevice],
    environment: Mapping[str, str],
    root: Path,
) -> Seat:
    device = devices[index]
    nics = _near_nics(device, rdma, root)
    variables = {
        visible.VARIABLE: visible.turned([one.visible_name for one in devices], index),
        # By default CUDA counts the fastest GPU first, so its indices differ from the driver's.
        ORDER: environment.get(ORDER, "PCI_BUS_ID"),
    }
    ports = tuple(_ports(nics))
    for provider in providers.found() if ports else ():
        section = config.load().of_path(provider.name)
        variables.update(provider.device_environment(ports, section, environment))
    return Seat(
        device=device,
        environment=tuple(variables.items()),
        cores=tuple(sorted(os.sched_getaffinity(0) & set(device.cores))),
        nics=tuple(nic.name for nic in nics),
    )


def _near_nics(
    device: nvml.Device, rdma: Sequence[RdmaDevice], root: Path
) -> tuple[RdmaDevice, ...]:
    """Give the RDMA devices to use; none if all are equally near, or distances are unknown."""
    place = place_at(device.address, root) if device.address else None
    names, nearness = nearest(place, [(nic.name, nic.place) for nic in rdma])
    if nearness not in _NEAR or len(names) == len(rdma):
        return ()
    return tuple(nic for nic in rdma if nic.name in names)


def _ports(nics: Iterable[RdmaDevice]) -> Iterable[str]:
    return (
        f"{nic.name}:{port.number}" for nic in nics for port in nic.ports if port.state == "ACTIVE"
    )

"""The NVIDIA GPUs that a process may use, from their driver by nvidia-ml-py."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask_fabric.errors import UnavailableError

_CPU_WORDS = 64  # room for the driver's mask of CPUs, in words of 64 bits
_CPUS_PER_WORD = 64


@dataclass(frozen=True)
class Device:
    """A GPU, or an instance of a partitioned GPU (MIG); None means unknown.

    Attributes
    ----------
    visible_name : str
        Its name in ``CUDA_VISIBLE_DEVICES``: an index or a UUID.
    uuid : str
        In full, such as ``GPU-9baca7f5-...`` or ``MIG-41b3359c-...``.
    address : str or None
        On the PCI bus, in the driver's notation.
    cores : tuple of int
        The nearest CPUs; empty if the driver does not report them.
    """

    visible_name: str
    uuid: str
    model: str
    memory_bytes: int | None
    address: str | None
    cores: tuple[int, ...] = ()


class NoDriverError(UnavailableError):
    """GPUs cannot be listed here: nvidia-ml-py is not installed, or finds no driver."""


def list_devices(names: Sequence[str] | None = None) -> tuple[Device, ...]:
    """List the named devices, or all; a partitioned GPU is listed as its instances.

    Parameters
    ----------
    names : sequence of str, optional
        Indices, in the order of the PCI bus (as in ``nvidia-smi``), or UUIDs.

    Raises
    ------
    NoDriverError
        The driver is not available.
    UnavailableError
        There is no such device.
    """
    with _driver() as nvml:
        gpus = list(_gpus(nvml))
    if names is None:
        return tuple(device for gpu, parts in gpus for device in _usable(gpu, parts))
    found = tuple(_find(name, gpus) for name in names)
    for device in found:
        if sum(device.uuid == other.uuid for other in found) > 1:
            raise UnavailableError(
                f"CUDA_VISIBLE_DEVICES names {device.uuid} twice: by index and by UUID"
            )
    return found


def own_memory_bytes(uuid: str) -> int | None:
    """Give the memory of a device that this process uses, or None if unknown.

    In a container the driver may report the process ids of the host.
    """
    with contextlib.suppress(UnavailableError), _driver() as nvml:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                return process.usedGpuMemory
    return None


@contextlib.contextmanager
def _driver() -> Iterator[Any]:
    """Give the initialized module, and translate its errors to ours."""
    try:
        import pynvml
    except ImportError as exc:
        raise NoDriverError("nvidia-ml-py is not installed") from exc
    # Raised for functions that an older driver lacks; old packages do not define it.
    mismatch = getattr(pynvml, "NVMLLibraryMismatchError", pynvml.NVMLError)
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, mismatch) as exc:
        raise NoDriverError(f"NVIDIA's driver is not available: {exc}") from exc
    try:
        yield pynvml
    except (pynvml.NVMLError, mismatch) as exc:
        raise UnavailableError(f"NVIDIA's driver does not describe a GPU: {exc}") from exc
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _gpus(nvml: Any) -> Iterator[tuple[Device, list[Device] | None]]:
    """Yield every GPU with its instances, or with None if it is not partitioned."""
    is_whole = True
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except (nvml.NVMLError_NoPermission, nvml.NVMLError_GpuIsLost):
            # Another job's GPU, or a broken one: CUDA does not count it, so from here on its
            # indices differ from the driver's.
            is_whole = False
            continue
        name = str(index) if is_whole else _text(nvml.nvmlDeviceGetUUID(handle))
        gpu = _device(nvml, handle, handle, name)
        mode = _optional(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])  # noqa: B023
        yield gpu, list(_instances(nvml, handle)) if mode else None


def _instances(nvml: Any, gpu: Any) -> Iterator[Device]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except nvml.NVMLError:
            continue  # this slot is free
        yield _device(nvml, handle, gpu, _text(nvml.nvmlDeviceGetUUID(handle)))


def _device(nvml: Any, handle: Any, gpu: Any, name: str) -> Device:
    """Describe a device; PCI address and CPUs are those of its GPU."""
    return Device(
        visible_name=name,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        model=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=_optional(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
        address=_optional(nvml, lambda: _text(nvml.nvmlDeviceGetPciInfo(gpu).busId)),
        cores=_optional(nvml, lambda: _cpus(nvml.nvmlDeviceGetCpuAffinity(gpu, _CPU_WORDS))) or (),
    )


def _usable(gpu: Device, instances: list[Device] | None) -> list[Device]:
    return [gpu] if instances is None else instances


def _find(name: str, gpus: Sequence[tuple[Device, list[Device] | None]]) -> Device:
    everything = [device for gpu, parts in gpus for device in (gpu, *(parts or ()))]
    if name.isdecimal():
        found = [gpu for gpu, _ in gpus if gpu.visible_name == str(int(name))]
    else:
        found = [device for device in everything if device.uuid.startswith(name)]
    if len(found) != 1:
        known = ", ".join(f"{device.visible_name} ({device.uuid})" for device in everything)
        raise UnavailableError(
            f"CUDA_VISIBLE_DEVICES names {name}, which is {'several GPUs' if found else 'no GPU'} "
            f"of this host; its GPUs are {known or 'none'}"
        )
    (device,) = found
    # The full UUID: not all readers of the variable understand a shortened one.
    return device if name.isdecimal() else replace(device, visible_name=device.uuid)


def _cpus(words: Sequence[int]) -> tuple[int, ...]:
    """Give the numbers of the CPUs whose bits are set."""
    bits = sum(word << (_CPUS_PER_WORD * place) for place, word in enumerate(words))
    return tuple(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def _optional(nvml: Any, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except nvml.NVMLError:  # usually NVMLError_NotSupported
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

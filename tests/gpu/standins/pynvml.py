"""A stand-in of nvidia-ml-py: GPUs as the JSON in the environment describes them.

Each GPU has ``uuid``, ``bus``, ``cpus``, and perhaps ``name``, ``memory``, ``used``, ``own`` and
``mig``: a list of UUIDs, with null where there is no instance; ``error`` is what asking for it
raises, and ``old`` that its driver is.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

VARIABLE = "DASK_FABRIC_TEST_GPUS"
NVML_DEVICE_MIG_DISABLE, NVML_DEVICE_MIG_ENABLE = 0, 1
_BITS = 64


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


class NVMLError_Unknown(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_NotFound(NVMLError):
    pass


class NVMLError_NoPermission(NVMLError):
    pass


class NVMLError_GpuIsLost(NVMLError):
    pass


class NVMLLibraryMismatchError(Exception):
    """No error of NVML, as in nvidia-ml-py."""


open_count = 0


def nvmlInit():
    global open_count
    if VARIABLE not in os.environ:
        raise NVMLError_LibraryNotFound("NVML Shared Library Not Found")
    open_count += 1


def nvmlShutdown():
    global open_count
    open_count -= 1


def _gpus():
    if not open_count:
        raise NVMLError("Uninitialized")
    return json.loads(os.environ[VARIABLE])


def nvmlSystemGetDriverVersion():
    return "580.00"


def nvmlDeviceGetCount():
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index):
    gpu = _gpus()[index]
    if "error" in gpu:
        raise globals()[f"NVMLError_{gpu['error']}"]("")
    return gpu


def nvmlDeviceGetHandleByUUID(uuid):
    for gpu in _gpus():
        for handle in (gpu, *_instances(gpu)):
            if handle and handle["uuid"].encode() == uuid:
                return handle
    raise NVMLError_NotFound("Not Found")


def _instances(gpu):
    return [
        uuid and {**gpu, "uuid": uuid, "memory": gpu.get("memory", 0) // 2, "instance": True}
        for uuid in gpu.get("mig", ())
    ]


def nvmlDeviceGetUUID(handle):
    return handle["uuid"]


def nvmlDeviceGetName(handle):
    return handle.get("name", "NVIDIA Stand-in").encode()  # as old versions of nvidia-ml-py


def nvmlDeviceGetMemoryInfo(handle):
    if "memory" not in handle:
        raise NVMLError_NotSupported("Not Supported")
    return SimpleNamespace(total=handle["memory"], used=handle.get("used", 0))


def nvmlDeviceGetUtilizationRates(handle):
    return SimpleNamespace(gpu=handle.get("utilization", 0))


def nvmlDeviceGetPciInfo(handle):
    if "instance" in handle or "bus" not in handle:
        raise NVMLError_NotSupported("Not Supported")
    return SimpleNamespace(busId=handle["bus"])


def nvmlDeviceGetCpuAffinity(handle, count):
    if "instance" in handle or "cpus" not in handle:
        raise NVMLError_NotSupported("Not Supported")
    bits = sum(1 << cpu for cpu in handle["cpus"])
    return [bits >> (_BITS * place) & (1 << _BITS) - 1 for place in range(count)]


def nvmlDeviceGetMigMode(handle):
    if "mig" not in handle:
        raise NVMLError_NotSupported("Not Supported")
    return [NVML_DEVICE_MIG_ENABLE, NVML_DEVICE_MIG_ENABLE]


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return len(handle["mig"])


def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
    found = _instances(handle)[index]
    if not found:
        raise NVMLError_NotFound("Not Found")
    return found


def nvmlDeviceGetComputeRunningProcesses(handle):
    if "old" in handle:
        raise NVMLLibraryMismatchError("pyNVML version does not match the NVML lib version")
    mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=handle.get("own"))
    others = SimpleNamespace(pid=1, usedGpuMemory=99)
    return [others, mine] if "own" in handle else [others]

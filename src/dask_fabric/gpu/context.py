"""The CUDA context of this process, by the driver's own library, without any framework.

It is the primary context, which CuPy, PyTorch and Numba use too.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import uuid
from typing import Any

from dask_fabric.errors import UnavailableError

logger = logging.getLogger(__name__)

_LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_UUID_BYTES = 16


def has_context() -> bool:
    """Whether this process has a CUDA context on a visible GPU; creates none."""
    try:
        driver = _Driver()
    except UnavailableError:
        return False
    return any(driver.is_active(device) for device in driver.devices())


def make_context(expected_uuid: str) -> None:
    """Create the context on the first visible GPU, current in this thread, for good.

    Parameters
    ----------
    expected_uuid : str
        The UUID of the GPU or MIG instance that this must be.

    Raises
    ------
    UnavailableError
        CUDA does not work here, or its first GPU is another one.
    """
    driver = _Driver()
    devices = driver.devices()
    if not devices:
        raise UnavailableError("CUDA sees no GPU in this process: see CUDA_VISIBLE_DEVICES")
    found = driver.uuid_of(devices[0])
    if found is not None and found != _hexadecimal(expected_uuid):
        raise UnavailableError(
            f"the first GPU that CUDA sees in this worker is {uuid.UUID(found)} and not "
            f"{expected_uuid}: set CUDA_DEVICE_ORDER=PCI_BUS_ID, and let nothing that is imported "
            "before the worker starts use CUDA"
        )
    for device in devices:
        if driver.is_active(device):
            logger.warning(
                "an imported module created a CUDA context before the worker started, on GPU %d of "
                "those visible here",
                device,
            )
    driver.enter(devices[0])


class _Driver:
    """The functions of the driver that are needed here; an error status raises."""

    def __init__(self) -> None:
        self._library = _load()
        self._call("cuInit", 0)

    def devices(self) -> list[int]:
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return [self._device(ordinal) for ordinal in range(count.value)]

    def uuid_of(self, device: int) -> str | None:
        """Give the UUID as hexadecimal digits; None if the driver is too old to report it."""
        content = (ctypes.c_ubyte * _UUID_BYTES)()
        if not hasattr(self._library, "cuDeviceGetUuid_v2"):
            return None
        self._call("cuDeviceGetUuid_v2", ctypes.byref(content), device)  # of a MIG instance too
        return bytes(content).hex()

    def is_active(self, device: int) -> bool:
        flags, active = ctypes.c_uint(), ctypes.c_int()
        self._call("cuDevicePrimaryCtxGetState", device, ctypes.byref(flags), ctypes.byref(active))
        return bool(active.value)

    def enter(self, device: int) -> None:
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def _device(self, ordinal: int) -> int:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
        return device.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status == _NO_DEVICE and name == "cuInit":
            raise UnavailableError("CUDA sees no GPU in this process: see CUDA_VISIBLE_DEVICES")
        if status:
            raise UnavailableError(
                f"{name} of CUDA's driver failed with status {status}; `nvidia-smi` may show why"
            )


@functools.cache
def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as exc:
        raise UnavailableError(
            f"NVIDIA's driver is missing: {exc}. In a container: docker run --gpus all"
        ) from exc


def _hexadecimal(name: str) -> str:
    """Give the digits of ``GPU-9baca7f5-0f2f-...``."""
    return name.partition("-")[2].replace("-", "").lower()

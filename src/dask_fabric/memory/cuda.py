"""Device memory by CuPy. Imported, like CuPy, only in processes that use such memory.

Nothing here creates a CUDA context before the first frame is copied or allocated.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from dask_fabric.errors import UnavailableError
from dask_fabric.memory.device import Span

# One GPU per process, as in dask-cuda: the first in CUDA_VISIBLE_DEVICES.
_DEVICE = 0
_HOST_REGISTER_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


def open_runtime(insist: bool = False) -> CudaRuntime | None:
    """Make the runtime of this process, or give None if nothing in it uses a GPU.

    Parameters
    ----------
    insist : bool
        Make it in any case.

    Raises
    ------
    UnavailableError
        There is no CuPy, or no GPU.
    """
    if not insist and not _is_in_use():
        return None
    try:
        import cupy
    except ImportError as error:
        raise UnavailableError(f"GPU memory needs CuPy, which is missing: {error}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:  # no driver, or no GPU
        raise UnavailableError(f"CuPy finds no GPU: {error}") from error
    if not count:
        raise UnavailableError("CuPy finds no GPU")
    return CudaRuntime(cupy)


def _is_in_use() -> bool:
    """Whether a library for GPUs is imported, or PyTorch has begun to use a GPU."""
    if any(map(_is_imported, ("cupy", "rmm", "numba.cuda"))):
        return True
    torch_cuda = sys.modules.get("torch.cuda")
    is_initialized = getattr(torch_cuda, "is_initialized", None)  # not while it is being imported
    return is_initialized is not None and is_initialized()


def _is_imported(name: str) -> bool:
    """Whether a module is fully imported. If not, importing CuPy would wait for another thread."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)


class _Copy:
    """A copy on a CUDA stream: done when the event recorded behind it is."""

    def __init__(self, event: Any, *owners: Any) -> None:
        self._event = event
        self._owners = owners

    def wait(self) -> None:
        self._event.synchronize()
        self._owners = ()


class CudaRuntime:
    """`dask_fabric.memory.device.Runtime` over CuPy.

    Parameters
    ----------
    cupy : module

    Notes
    -----
    An array does not know the stream that computes it: the ``stream`` of CuPy's interface is the
    current one of the calling thread, and PyTorch's has none. So `await_producers` waits for the
    whole device, in a thread, until the kernels enqueued so far have finished.
    """

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._streams: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def span_of(self, frame: Any) -> Span | None:
        interface = _interface_of(frame)
        if interface is None:
            return None
        itemsize = np.dtype(interface["typestr"]).itemsize
        shape = tuple(interface["shape"])
        if not _is_contiguous(shape, interface.get("strides"), itemsize):
            return None
        address = interface["data"][0] or 0
        nbytes = math.prod(shape) * itemsize
        return Span(address, nbytes, self._device_of(frame, address) if nbytes else _DEVICE)

    def _device_of(self, frame: Any, address: int) -> int:
        if isinstance(frame, self._cupy.ndarray):
            return frame.device.id
        return self._cupy.cuda.runtime.pointerGetAttributes(address).device

    def allocate(self, nbytes: int) -> Any:
        cuda = self._cupy.cuda
        try:
            # On the null stream: libraries that know no other stream can use this memory.
            with cuda.Device(_DEVICE), cuda.Stream.null:
                if self._uses_rmm():
                    return sys.modules["rmm"].DeviceBuffer(size=nbytes)
                return self._cupy.empty(nbytes, np.uint8)
        except cuda.runtime.CUDARuntimeError as error:
            # Pools raise MemoryError; CuPy's allocators without a pool raise CUDA's error.
            if error.status != _OUT_OF_MEMORY:
                raise
            raise MemoryError(f"the GPU cannot allocate {nbytes} bytes: {error}") from error

    def _uses_rmm(self) -> bool:
        """Whether RMM is in use: CuPy allocates by it, or its memory resource was set."""
        rmm = sys.modules.get("rmm")
        if rmm is None:
            return False
        allocator = self._cupy.cuda.get_allocator()
        if (getattr(allocator, "__module__", None) or "").partition(".")[0] == "rmm":
            return True
        return type(rmm.mr.get_current_device_resource()) is not rmm.mr.CudaMemoryResource

    def await_producers(self, frames: Iterable[Any]) -> None:
        spans = filter(None, map(self.span_of, frames))
        for number in {span.device for span in spans if span.nbytes}:
            self._cupy.cuda.Device(number).synchronize()

    def copy_to_host(self, span: Span, offset: int, host_memory: Any) -> _Copy:
        host = np.frombuffer(host_memory, np.uint8)
        kind = self._cupy.cuda.runtime.memcpyDeviceToHost
        return self._copy(host.ctypes.data, span.address + offset, host, kind, span.device)

    def copy_to_device(self, host_memory: Any, span: Span, offset: int) -> _Copy:
        host = np.frombuffer(host_memory, np.uint8)
        kind = self._cupy.cuda.runtime.memcpyHostToDevice
        return self._copy(span.address + offset, host.ctypes.data, host, kind, span.device)

    def _copy(self, target: int, source: int, host: np.ndarray, kind: int, device: int) -> _Copy:
        cuda = self._cupy.cuda
        with cuda.Device(device):
            stream = self._stream_of(device, kind)
            cuda.runtime.memcpyAsync(target, source, host.nbytes, kind, stream.ptr)
            event = cuda.Event(block=True, disable_timing=True)
            event.record(stream)
        return _Copy(event, host)

    def _stream_of(self, device: int, kind: int) -> Any:
        """Give our own non-blocking stream of the current device.

        There is one for each direction, since a GPU can copy both ways at once.
        """
        with self._lock:
            if (device, kind) not in self._streams:
                self._streams[device, kind] = self._cupy.cuda.Stream(non_blocking=True)
            return self._streams[device, kind]

    def pin(self, address: int, nbytes: int) -> None:
        cuda = self._cupy.cuda
        try:
            with cuda.Device(_DEVICE):
                cuda.runtime.hostRegister(address, nbytes, _HOST_REGISTER_PORTABLE)
        except cuda.runtime.CUDARuntimeError as error:
            raise MemoryError(f"CUDA cannot pin {nbytes} bytes: {error}") from error

    def unpin(self, address: int) -> None:
        self._cupy.cuda.runtime.hostUnregister(address)

    def context_setter(self) -> tuple[int, int]:
        driver = ctypes.CDLL("libcuda.so.1")
        number, context = ctypes.c_int(), ctypes.c_void_p()
        _check(driver.cuDeviceGet(ctypes.byref(number), _DEVICE), "cuDeviceGet")
        # The primary context, which CUDA's runtime and CuPy use; retained until the process ends.
        retained = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), number)
        _check(retained, "cuDevicePrimaryCtxRetain")
        function = ctypes.cast(driver.cuCtxSetCurrent, ctypes.c_void_p)
        assert function.value is not None and context.value is not None  # not NULL
        return function.value, context.value

    def describe(self) -> Mapping[str, Any]:
        return {
            "cupy": self._cupy.__version__,
            "device_count": self._cupy.cuda.runtime.getDeviceCount(),
            "allocator": "rmm" if self._uses_rmm() else "cupy",
        }


def _check(result: int, call: str) -> None:
    if result:
        raise UnavailableError(f"{call} of the CUDA driver failed with error {result}")


def _interface_of(frame: Any) -> Mapping[str, Any] | None:
    try:
        return frame.__cuda_array_interface__
    except (AttributeError, RuntimeError, TypeError):
        # PyTorch's attribute raises for tensors that are on the host, require grad, or are sparse.
        return None


def _is_contiguous(shape: tuple[int, ...], strides: Any, itemsize: int) -> bool:
    """Whether the elements are dense, in C or Fortran order."""
    if strides is None or 0 in shape:
        return True
    axes = [(n, step) for n, step in zip(shape, strides, strict=True) if n != 1]
    return _is_dense(reversed(axes), itemsize) or _is_dense(axes, itemsize)


def _is_dense(axes: Iterable[tuple[int, int]], itemsize: int) -> bool:
    expected = itemsize
    for count, step in axes:
        if step != expected:
            return False
        expected *= count
    return True

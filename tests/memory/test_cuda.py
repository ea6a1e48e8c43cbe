"""The runtime over CuPy, with a stand-in for CuPy: it receives the right calls.

Tests with CUDA need a GPU: see ``docs/gpu.md``.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from typing import ClassVar

import numpy as np
import pytest

from dask_fabric.errors import UnavailableError
from dask_fabric.memory import cuda
from dask_fabric.memory.device import Span


class FakeDevice(contextlib.nullcontext):
    synchronized: ClassVar[list] = []

    def __init__(self, number):
        super().__init__()
        self.number = self.id = number

    def synchronize(self):
        self.synchronized.append(self.number)


class FakeStream(contextlib.nullcontext):
    made: ClassVar[list] = []
    null: ClassVar[FakeStream]

    def __init__(self, non_blocking=False):
        super().__init__()
        self.ptr = 7
        self.made.append(non_blocking)


class FakeEvent:
    def __init__(self, block=False, disable_timing=False):
        self.stream, self.waits = None, 0

    def record(self, stream):
        self.stream = stream

    def synchronize(self):
        assert self.stream is not None
        self.waits += 1


class CUDARuntimeError(RuntimeError):
    status = 2  # cudaErrorMemoryAllocation


class FakeArray:
    """A CuPy array, whose memory can be read here."""

    def __init__(self, values, number=0):
        self.values = values
        self.device = FakeDevice(number)

    @property
    def __cuda_array_interface__(self):
        return {**self.values.__array_interface__, "version": 3, "stream": 1}


@pytest.fixture
def cupy(monkeypatch):
    """A stand-in for CuPy in `sys.modules`; ``cupy.done`` has the calls."""
    done = []
    FakeDevice.synchronized, FakeStream.made = [], []

    def memcpy_async(target, source, nbytes, kind, stream):
        done.append(("copy", nbytes, kind, stream))
        ctypes.memmove(target, source, nbytes)

    def host_register(address, nbytes, flags):
        if nbytes > 1 << 20:
            raise CUDARuntimeError("cudaErrorMemoryAllocation")
        done.append(("pin", address, nbytes, flags))

    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 2,
        memcpyAsync=memcpy_async,
        memcpyDeviceToHost=2,
        memcpyHostToDevice=1,
        hostRegister=host_register,
        hostUnregister=lambda address: done.append(("unpin", address)),
        pointerGetAttributes=lambda address: types.SimpleNamespace(device=1),
    )
    module = types.ModuleType("cupy")
    module.__version__ = "13"
    module.ndarray = FakeArray
    module.empty = lambda count, dtype: FakeArray(np.empty(count, dtype))
    module.cuda = types.SimpleNamespace(
        runtime=runtime, Device=FakeDevice, Stream=FakeStream, Event=FakeEvent,
        get_allocator=lambda: print,
    )  # fmt: skip
    FakeStream.null = FakeStream()
    FakeStream.made.clear()
    module.done = done
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def remove(monkeypatch, *names):
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_it_is_made_where_cupy_is_imported(cupy):
    assert isinstance(cuda.open_runtime(), cuda.CudaRuntime)
    assert FakeStream.made == [] and cupy.done == []  # no context


def test_without_cupy_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(UnavailableError, match="CuPy, which is missing"):
        cuda.open_runtime(insist=True)


@pytest.mark.parametrize("count", [0, CUDARuntimeError("cudaErrorNoDevice")])
def test_without_a_gpu_there_is_none(cupy, count):
    def get_device_count():
        if count:
            raise count
        return 0

    cupy.cuda.runtime.getDeviceCount = get_device_count
    with pytest.raises(UnavailableError, match="no GPU"):
        cuda.open_runtime()


@pytest.mark.parametrize("is_initialized", [False, True, None])
def test_torch_counts_once_it_uses_a_gpu(cupy, monkeypatch, is_initialized):
    remove(monkeypatch, "rmm", "numba.cuda")
    monkeypatch.setitem(sys.modules, "torch.cuda", types.ModuleType("torch.cuda"))
    if is_initialized is not None:  # else it is being imported
        sys.modules["torch.cuda"].is_initialized = lambda: is_initialized
    remove(monkeypatch, "cupy")
    assert not cuda._is_in_use() if not is_initialized else cuda._is_in_use()


def test_a_library_that_is_being_imported_is_not_waited_for(cupy, monkeypatch):
    remove(monkeypatch, "rmm", "numba.cuda", "torch.cuda")
    cupy.__spec__ = types.SimpleNamespace(_initializing=True)
    assert cuda.open_runtime() is None
    cupy.__spec__ = types.SimpleNamespace(_initializing=False)
    assert isinstance(cuda.open_runtime(), cuda.CudaRuntime)


MATRIX = np.arange(24.0).reshape(4, 6)
CONTIGUOUS = {
    "C": MATRIX,
    "F": np.asfortranarray(MATRIX),
    "rows": MATRIX[1:3],
    "one column": MATRIX[:1, 2:5],
    "axis of length 1": np.zeros((3, 1, 4))[:, ::5],
    "number": np.array(3.5),
    "bytes": np.arange(5, dtype="u1"),
}
SCATTERED = {
    "columns": MATRIX[:, 1:3],
    "step": np.arange(10)[::2],
    "backwards": np.arange(10)[::-1],
    "transposed cube": np.zeros((2, 3, 4)).transpose(1, 0, 2),
    "broadcast": np.broadcast_to(np.arange(3), (2, 3)),
}


@pytest.mark.parametrize("values", CONTIGUOUS.values(), ids=CONTIGUOUS.keys())
def test_contiguous_memory_is_a_span(cupy, values):
    span = cuda.open_runtime().span_of(FakeArray(values, number=1))
    assert span == Span(values.ctypes.data, values.nbytes, 1)


@pytest.mark.parametrize("values", SCATTERED.values(), ids=SCATTERED.keys())
def test_scattered_memory_is_none(cupy, values):
    assert cuda.open_runtime().span_of(FakeArray(values)) is None


def test_memory_of_other_libraries_is_a_span_too(cupy):
    values = np.arange(5)
    other = types.SimpleNamespace(__cuda_array_interface__=values.__array_interface__)
    assert cuda.open_runtime().span_of(other) == Span(values.ctypes.data, 40, 1)
    empty = {"shape": (0, 3), "typestr": "<f8", "data": (None, False), "version": 3}
    other = types.SimpleNamespace(__cuda_array_interface__=empty)
    assert cuda.open_runtime().span_of(other) == Span(0, 0, 0)


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_what_has_no_device_memory_is_none(cupy, error):
    class Tensor:
        @property
        def __cuda_array_interface__(self):
            raise error("not on a GPU, or it wants a gradient")

    runtime = cuda.open_runtime()
    assert runtime.span_of(Tensor()) is None
    assert runtime.span_of(b"host") is None


def test_copies_go_by_a_stream_of_ours_and_are_waited_for_by_their_event(cupy):
    runtime = cuda.open_runtime()
    frame = runtime.allocate(10)
    span = runtime.span_of(frame)
    copies = [runtime.copy_to_device(b"abcd", span, 3), runtime.copy_to_device(b"", span, 0)]
    host = bytearray(2)
    copies.append(runtime.copy_to_host(span, 4, host))
    for copy in copies:
        copy.wait()
        assert copy._event.waits == 1 and copy._event.stream.ptr == 7
    assert bytes(frame.values[3:7]) == b"abcd" and host == b"bc"
    assert cupy.done == [("copy", 4, 1, 7), ("copy", 0, 1, 7), ("copy", 2, 2, 7)]
    assert FakeStream.made == [True, True]  # one each way, and no other stream waits for them


def test_each_device_of_the_frames_is_waited_for_once(cupy):
    arrays = [FakeArray(np.arange(3), number) for number in (1, 0, 1)]
    cuda.open_runtime().await_producers([*arrays, FakeArray(np.zeros(0), 5)])
    assert sorted(FakeDevice.synchronized) == [0, 1]


def test_pinning(cupy):
    runtime = cuda.open_runtime()
    runtime.pin(4096, 100)
    runtime.unpin(4096)
    assert cupy.done == [("pin", 4096, 100, 1), ("unpin", 4096)]
    with pytest.raises(MemoryError, match="cannot pin 2097152 bytes"):
        runtime.pin(4096, 2 << 20)


class DeviceBuffer:
    def __init__(self, size):
        self.size = size


class CudaMemoryResource:
    pass


class PoolMemoryResource:
    pass


def rmm_allocator():
    pass


rmm_allocator.__module__ = "rmm.allocators.cupy"


@pytest.mark.parametrize(
    ("resource", "allocator", "expected"),
    [
        (CudaMemoryResource, print, FakeArray),  # imported, and no more
        (PoolMemoryResource, print, DeviceBuffer),
        (CudaMemoryResource, rmm_allocator, DeviceBuffer),
    ],
)
def test_rmm_allocates_where_it_is_configured(cupy, monkeypatch, resource, allocator, expected):
    rmm = types.ModuleType("rmm")
    rmm.DeviceBuffer = DeviceBuffer
    rmm.mr = types.SimpleNamespace(
        CudaMemoryResource=CudaMemoryResource, get_current_device_resource=resource
    )
    monkeypatch.setitem(sys.modules, "rmm", rmm)
    cupy.cuda.get_allocator = lambda: allocator
    runtime = cuda.open_runtime()
    assert type(runtime.allocate(10)) is expected
    assert runtime.describe()["allocator"] == ("rmm" if expected is DeviceBuffer else "cupy")


def test_allocators_without_a_pool_have_an_error_of_their_own(cupy):
    """Of `cupy.cuda.malloc_async`, `malloc_managed`, and none at all."""

    def empty(count, dtype):
        raise error

    cupy.empty = empty
    runtime = cuda.open_runtime()
    error = CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
    with pytest.raises(MemoryError, match="cannot allocate 1000 bytes: cudaErrorMemoryAllocation"):
        runtime.allocate(1000)
    error.status = 700
    with pytest.raises(CUDARuntimeError):
        runtime.allocate(1000)


@pytest.mark.parametrize("failing", ["", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_thread_without_python_is_bound_by_the_driver(cupy, monkeypatch, failing):
    class Function:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def __call__(self, target, _):
            target._obj.value = self.value
            return 999 if self.name == failing else 0

    driver = types.SimpleNamespace(
        cuDeviceGet=Function("cuDeviceGet", 5),
        cuDevicePrimaryCtxRetain=Function("cuDevicePrimaryCtxRetain", 0xC0DE),
        cuCtxSetCurrent=ctypes.CDLL(None).abs,
    )
    monkeypatch.setattr(cuda.ctypes, "CDLL", {"libcuda.so.1": driver}.__getitem__)
    runtime = cuda.open_runtime()
    if failing:
        message = f"{failing} of the CUDA driver failed with error 999"
        with pytest.raises(UnavailableError, match=message):
            runtime.context_setter()
        return
    function, context = runtime.context_setter()
    assert context == 0xC0DE
    assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(function)(-3) == 3

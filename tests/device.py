"""A stand-in for a GPU: memory that only its runtime can read, and kernels that run late.

Device memory is ordinary memory here, at an address that `Array` exposes as CuPy's arrays do.
Kernels run only when somebody waits for them, in the order in which they were enqueued, and so do
copies. If the code forgets to wait, the bytes are wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
from dataclasses import replace
from unittest import mock

import dask
import numpy as np
from distributed.protocol.cuda import cuda_deserialize, cuda_serialize

from dask_fabric.memory.device import Span, current
from dask_fabric.paths.ucx import local as ucx_local
from dask_fabric.paths.ucx import provider as ucx_provider

GARBAGE = 0xDB


class Memory:
    """Memory of the device, freed with this object."""

    def __init__(self, runtime: StandIn, nbytes: int) -> None:
        self.runtime = runtime
        self.nbytes = nbytes
        self.bytes = np.full(nbytes, GARBAGE, np.uint8)

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data


class Array:
    """An array like CuPy's: it has no buffer, but an interface to its memory."""

    def __init__(self, memory, shape, dtype, strides=None, offset=0) -> None:
        self.memory = memory
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.strides = tuple(strides or _c_strides(self.shape, self.dtype.itemsize))
        self.offset = offset

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "strides": self.strides,
            "data": (self.memory.address + self.offset if self.nbytes else 0, False),
            "stream": 1,
        }

    def view(self) -> np.ndarray:
        """Give the memory as it is now; for the device only."""
        return np.ndarray(self.shape, self.dtype, self.memory.bytes.data, self.offset, self.strides)

    def __getitem__(self, index) -> Array:
        part = self.view()[index]
        offset = part.__array_interface__["data"][0] - self.memory.address
        return Array(self.memory, part.shape, part.dtype, part.strides, offset)

    def contiguous(self) -> Array:
        """Copy to memory in C order; it runs later, like all kernels."""
        copy = Array(Memory(self.memory.runtime, self.nbytes), self.shape, self.dtype)
        self.memory.runtime.enqueue(lambda: np.copyto(copy.view(), self.view()))
        return copy

    def get(self) -> np.ndarray:
        """Wait for the device, and copy to the host."""
        self.memory.runtime.synchronize()
        return self.view().copy(order="K")


def _c_strides(shape: tuple[int, ...], itemsize: int) -> list[int]:
    return [itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def check_arrived(got: Array, values: np.ndarray) -> None:
    """Check that *got* is an array of the device with the content and layout of *values*."""
    assert type(got) is Array
    assert (got.shape, got.dtype, got.strides) == (values.shape, values.dtype, values.strides)
    np.testing.assert_array_equal(got.get(), values)


def make_array(values) -> Array:
    """Compute an array on the device of this process, as a task does."""
    return current().array(values)


class Copy:
    def __init__(self, runtime, move) -> None:
        self.runtime, self.move = runtime, move

    def wait(self) -> None:
        move, self.move = self.move, None
        assert self.runtime.may_end.wait(10)
        if move is not None:
            move()
        self.runtime.check_thread("waited for a copy")


class StandIn:
    """`dask_fabric.memory.device.Runtime` without a device.

    Attributes
    ----------
    capacity_bytes : int or None
        How much can be allocated; None: any amount.
    pinned : dict of int to int
        Pinned host memory: its bytes, by address.
    """

    def __init__(self) -> None:
        self.capacity_bytes: int | None = None
        self.allocation_count = 0
        self.awaited_count = 0
        self.copied_bytes: list[int] = []
        self.pinned: dict[int, int] = {}
        self.loop_thread: int | None = None
        self.blocked_loop: list[str] = []
        self.error: Exception | None = None
        self.may_end = threading.Event()  # what copies wait for
        self.may_end.set()
        self._work: list = []
        self._lock = threading.RLock()

    # ---- the part of an array library

    def array(self, values, order="K") -> Array:
        """Compute an array; it is complete only after a wait for the device."""
        values = np.array(values, order=order)
        array = Array(Memory(self, values.nbytes), values.shape, values.dtype, values.strides)
        self.enqueue(lambda: np.copyto(array.view(), values))
        return array

    def enqueue(self, kernel) -> None:
        with self._lock:
            self._work.append(kernel)

    def synchronize(self) -> None:
        with self._lock:
            work, self._work = self._work, []
            for kernel in work:
                kernel()

    def hold_copies(self) -> None:
        """Hold copies back until `may_end` is set."""
        self.may_end.clear()

    def watch_loop(self) -> None:
        """Record from now on what blocks this thread."""
        self.loop_thread = threading.get_ident()

    def check_thread(self, what: str) -> None:
        if threading.get_ident() == self.loop_thread:
            self.blocked_loop.append(what)

    # ---- the interface

    def span_of(self, frame) -> Span | None:
        interface = getattr(frame, "__cuda_array_interface__", None)
        if interface is None:
            return None
        view = frame.view()
        if not (view.flags.c_contiguous or view.flags.f_contiguous):
            return None
        return Span(interface["data"][0], frame.nbytes, 0)

    def allocate(self, nbytes: int) -> Array:
        if self.capacity_bytes is not None and nbytes > self.capacity_bytes:
            raise MemoryError(f"the device has no {nbytes} bytes")
        self.allocation_count += 1
        array = Array(Memory(self, nbytes), (nbytes,), np.uint8)
        # A kernel of the memory's previous owner.
        self.enqueue(lambda: array.view().fill(GARBAGE))
        return array

    def await_producers(self, frames) -> None:
        assert all(self.span_of(frame) is not None for frame in frames)
        self.check_thread("waited for producers")
        if self.error is not None:
            raise self.error
        self.awaited_count += 1
        self.synchronize()

    def copy_to_host(self, span: Span, offset: int, host_memory) -> Copy:
        host = np.frombuffer(host_memory, np.uint8)
        return self._copy(host.ctypes.data, span.address + offset, span, offset, host)

    def copy_to_device(self, host_memory, span: Span, offset: int) -> Copy:
        host = np.frombuffer(host_memory, np.uint8)
        return self._copy(span.address + offset, host.ctypes.data, span, offset, host)

    def _copy(self, target, source, span, offset, host) -> Copy:
        assert offset >= 0 and offset + host.nbytes <= span.nbytes
        self.copied_bytes.append(host.nbytes)
        return Copy(self, lambda: ctypes.memmove(target, source, host.nbytes))

    def pin(self, address: int, nbytes: int) -> None:
        for other, size in self.pinned.items():
            assert address + nbytes <= other or other + size <= address, "pinned twice"
        self.pinned[address] = nbytes

    def unpin(self, address: int) -> None:
        del self.pinned[address]

    def context_setter(self) -> tuple[int, int]:
        return 0, 0

    def describe(self) -> dict:
        return {"stand-in": True}


@cuda_serialize.register(Array)
def serialize_array(array):
    """Serialize like distributed's own serializer of CuPy's arrays."""
    flags = array.view().flags
    if not (flags.c_contiguous or flags.f_contiguous):
        array = array.contiguous()
    header = array.__cuda_array_interface__.copy()
    header["strides"] = tuple(array.strides)
    return header, [Array(array.memory, (array.nbytes,), np.uint8, (1,), array.offset)]


@cuda_deserialize.register(Array)
def deserialize_array(header, frames):
    (frame,) = frames
    assert isinstance(frame, Array), f"a {type(frame).__name__} is no memory of the device"
    return Array(frame.memory, header["shape"], header["typestr"], header["strides"], frame.offset)


@contextlib.contextmanager
def direct_path():
    """Make UCX announce that it moves device memory; it can move that of the stand-in."""
    real = ucx_local.local_ucx

    def told(settings, insists, **how):
        local, reason = real(settings, insists, **how)
        return local and replace(local, transports=(*local.transports, "cuda_copy")), reason

    with (
        mock.patch.object(ucx_local, "local_ucx", told),
        mock.patch.dict(ucx_provider.MEMORY_TYPES, cuda=0),  # host memory: UCX itself moves it here
        dask.config.set({"fabric.ucx.enabled": True}),
    ):
        yield

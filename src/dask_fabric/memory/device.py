"""GPU memory: the small interface `Runtime`, and the runtime that is in use.

This module does not use CUDA. `dask_fabric.memory.cuda` implements the interface, and is imported
only once this process uses device memory anyway.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from dask_fabric.errors import UnavailableError
from dask_fabric.memory import files, pool

logger = logging.getLogger(__name__)

HOST = "host"
CUDA = "cuda"
# A process that has imported none of these has no device memory to send.
_HOLDERS = frozenset({"cupy", "rmm", "torch", "numba.cuda"})
_ONLY_HOST = (memoryview, bytes, bytearray)


class Span(NamedTuple):
    """Contiguous memory of a device: its address, its size, and the device's number."""

    address: int
    nbytes: int
    device: int


class StagedFrame(np.ndarray):
    """A frame that belongs on a device, but is in host memory for now: a 1-d array of bytes.

    The type is kept when the frame is forwarded: the next receiver may have a device.
    """

    @classmethod
    def over(cls, memory: Any) -> StagedFrame:
        """Make a frame over a buffer, which it keeps alive."""
        return np.frombuffer(memory, np.uint8).view(cls)


class Copy(Protocol):
    """A copy in progress."""

    def wait(self) -> None:
        """Block, without the GIL, until the copy is done; raise if it failed. May be repeated."""


class Runtime(Protocol):
    """The operations that we need of CUDA. All methods may be called in any thread."""

    def span_of(self, frame: Any) -> Span | None:
        """Give the memory of a frame; None unless it is contiguous device memory.

        Never blocks, and is cheap for host memory.
        """

    def allocate(self, nbytes: int) -> Any:
        """Allocate a frame of device memory, by the allocator that this process uses.

        It is a one-dimensional array of bytes on the current device. Kernels enqueued by the
        previous owner may still write to it: call `await_producers` before it is written.

        Raises
        ------
        MemoryError
            The device has not enough free memory; the message names the size.
        """

    def await_producers(self, frames: Iterable[Any]) -> None:
        """Block, without the GIL, until all kernels enqueued for *frames* have finished.

        This covers all streams, and takes as long as the device needs: not for an event loop.
        """

    def copy_to_host(self, span: Span, offset: int, host_memory: Any) -> Copy:
        """Begin to fill *host_memory* (a writeable buffer) from *offset* of device memory on.

        The caller keeps both alive until the copy is done.
        """

    def copy_to_device(self, host_memory: Any, span: Span, offset: int) -> Copy:
        """Begin to write *host_memory* (a buffer) to device memory from *offset* on.

        The caller keeps both alive until the copy is done.
        """

    def pin(self, address: int, nbytes: int) -> None:
        """Pin host memory, so that the device copies to and from it directly.

        Raises
        ------
        MemoryError
            The memory cannot be pinned.
        """

    def unpin(self, address: int) -> None:
        """Undo `pin`."""

    def context_setter(self) -> tuple[int, int]:
        """Give a C function that binds a native thread to this process's device.

        Returns
        -------
        (int, int)
            Addresses of a C function, ``int f(void *)``, which returns 0, and of its argument;
            both 0 if there is nothing to do.
        """

    def describe(self) -> Mapping[str, Any]:
        """Give names, versions and figures for reports."""


# None if there is none, or none was looked for yet.
_runtime: Runtime | None = None
# Whether `_runtime` is final. If not, importing one of `_HOLDERS` may still change it.
_is_settled = False
_enabled: bool | None = None
_lock = threading.RLock()


def current() -> Runtime | None:
    """Give the runtime of this process; None if it does not use device memory (yet)."""
    if _is_settled:
        return _runtime
    if not _enabled and sys.modules.keys().isdisjoint(_HOLDERS):
        return None
    with _lock:
        return _runtime if _is_settled else _look()


def kinds() -> tuple[str, ...]:
    """Name the kinds of memory that frames of this process may be in."""
    return (HOST,) if current() is None else (HOST, CUDA)


def span_of(frame: Any) -> Span | None:
    """Give the device memory of a frame; None if it is in host memory."""
    if isinstance(frame, _ONLY_HOST):
        return None
    runtime = current()
    return None if runtime is None else runtime.span_of(frame)


def known_span(runtime: Runtime, frame: Any) -> Span:
    """Give the device memory of a frame that is known to be on a device."""
    span = runtime.span_of(frame)
    assert span is not None
    return span


def belongs_on_device(frame: Any) -> bool:
    """Whether a frame is in device memory, or is to be uploaded there."""
    if isinstance(frame, _ONLY_HOST):
        return False
    return isinstance(frame, StagedFrame) or span_of(frame) is not None


def install(runtime: Runtime | None) -> None:
    """Use this runtime from now on; None means no device memory."""
    _settle(runtime, True)


def configure(enabled: bool | None) -> None:
    """Decide whether device memory is used.

    Parameters
    ----------
    enabled : bool or None
        None: once this process has imported a library for it. True: from now on.
    """
    global _enabled
    with _lock:
        if enabled is not _enabled:
            _enabled = enabled
            _settle(None, enabled is False)


def _look() -> Runtime | None:
    from dask_fabric.memory import cuda

    try:
        runtime = cuda.open_runtime(insist=bool(_enabled))
    except Exception as error:  # a broken installation may raise anything
        log = logger.warning if _enabled else logger.info
        is_odd = not isinstance(error, UnavailableError)
        log("This process cannot use GPU memory: %s", error, exc_info=is_odd)
        install(None)
        return None
    if runtime is not None:
        install(runtime)
    return runtime


def _settle(runtime: Runtime | None, is_settled: bool) -> None:
    global _runtime, _is_settled
    with _lock:
        _is_settled = False  # first: `current` reads both without the lock
        _runtime = runtime
        _is_settled = is_settled
        files.pause(runtime is not None)  # memory that peers map cannot be pinned
        if runtime is not None:
            pool.trim()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    if _runtime is not None:  # CUDA does not survive a fork
        install(None)


os.register_at_fork(after_in_child=_after_fork_in_child)

"""The pool of device memory of a GPU worker: CuPy's, or RMM's."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from dask.utils import format_bytes

from dask_fabric.config import Settings
from dask_fabric.config.table import ALLOCATORS
from dask_fabric.errors import UnavailableError

logger = logging.getLogger(__name__)

CUPY, RMM = ALLOCATORS
_ALIGNMENT_BYTES = 512  # CuPy rounds to 512, RMM to 256


@dataclass(frozen=True)
class Pool:
    """The device memory that a worker reserves.

    Attributes
    ----------
    allocator : str
        ``cupy`` or ``rmm``.
    size : int, float or None
        In bytes, or as a fraction of the device's memory; None reserves nothing.
    """

    allocator: str
    size: int | float | None

    @classmethod
    def configured(cls, settings: Settings) -> Pool:
        """Give the pool that ``fabric.gpu`` specifies."""
        return cls(settings.gpu_allocator, settings.gpu_pool_size)

    def size_bytes(self, memory_bytes: int | None) -> int | None:
        """Give the size on a device with this much memory."""
        size = self.size
        if isinstance(size, float):
            if memory_bytes is None:
                raise UnavailableError(
                    f"fabric.gpu.pool is {size}, a fraction of the GPU's memory, but the driver "
                    "does not report its size; give the pool's size in bytes"
                )
            size = int(size * memory_bytes)
        return None if size is None else size // _ALIGNMENT_BYTES * _ALIGNMENT_BYTES

    def set_up(self, memory_bytes: int | None) -> None:
        """Make CuPy allocate from this pool, in this process; needs the CUDA context.

        Does nothing without CuPy and without a size.

        Raises
        ------
        UnavailableError
            The package is missing, or the device has not enough free memory.
        """
        size_bytes = self.size_bytes(memory_bytes)
        if self.allocator == RMM:
            _set_up_rmm(size_bytes)
        elif size_bytes:
            _set_up_cupy(size_bytes)
        elif find_spec("cupy"):
            _import_cupy()


def usage_bytes() -> tuple[int | None, int | None]:
    """Give the used and the total bytes of CuPy's pool; None without CuPy."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return None, None
    pool = cupy.get_default_memory_pool()
    return pool.used_bytes(), pool.total_bytes()


def _set_up_cupy(size_bytes: int) -> None:
    cupy = _import("cupy", "pip install cupy-cuda13x, or cupy-cuda12x")
    with _explained(size_bytes):
        # Freed at once, but the pool keeps it.
        cupy.get_default_memory_pool().malloc(size_bytes)


def _import_cupy() -> None:
    """Import CuPy, without which a process announces no device memory; failure is not fatal."""
    try:
        importlib.import_module("cupy")
    except Exception as exc:  # a broken installation may raise anything
        logger.warning("this worker cannot send or receive GPU memory: CuPy fails: %s", exc)


def _set_up_rmm(size_bytes: int | None) -> None:
    rmm = _import("rmm", "pip install rmm-cu13, or rmm-cu12; or set fabric.gpu.allocator: cupy")
    if size_bytes:
        with _explained(size_bytes):
            rmm.reinitialize(pool_allocator=True, initial_pool_size=size_bytes)
    if find_spec("cupy"):
        import cupy
        from rmm.allocators.cupy import rmm_cupy_allocator

        cupy.cuda.set_allocator(rmm_cupy_allocator)


@contextlib.contextmanager
def _explained(size_bytes: int) -> Iterator[None]:
    try:
        yield
    except MemoryError as exc:  # raised by CuPy and RMM
        raise UnavailableError(
            f"the GPU cannot provide {format_bytes(size_bytes)} for the pool of this worker: lower "
            f"fabric.gpu.pool ({exc})"
        ) from exc


def _import(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise UnavailableError(
            f"fabric.gpu specifies a pool of {name}, which cannot be imported ({exc}): {remedy}"
        ) from exc

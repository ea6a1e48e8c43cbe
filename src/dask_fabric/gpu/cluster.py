"""A cluster on this host, with a worker for each GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from distributed import LocalCluster, Worker

from dask_fabric.gpu.launch import Nannies, pool_of
from dask_fabric.gpu.seats import find_seats

logger = logging.getLogger(__name__)


class LocalFabricCluster(LocalCluster):
    """A ``LocalCluster`` on ``fabric://`` with one worker for each GPU of this host.

    Each worker sees its own GPU first (``CUDA_VISIBLE_DEVICES``), runs on the CPUs near it, has
    the Dask resource ``GPU``, and reports its GPU's memory in its metrics. Without a GPU this is an
    ordinary ``LocalCluster``; `no_gpu_reason` gives the reason.

    Parameters
    ----------
    n_workers : int, optional
        By default one for each GPU; with more, some share a GPU.
    threads_per_worker : int, optional
        By default 1 if there are GPUs.
    CUDA_VISIBLE_DEVICES : str, int or iterable, optional
        The GPUs to use: indices in the order of ``nvidia-smi``, or UUIDs of GPUs or MIG instances.
        By default the value in the environment.
    cupy_pool_size, rmm_pool_size : int, float or str, optional
        Device memory that each worker reserves when it starts, in bytes or as a fraction of its
        GPU's memory, for CuPy's or RMM's pool; overrides ``fabric.gpu.pool``.
    protocol : str
    **options
        As in ``LocalCluster``.

    Attributes
    ----------
    seats : tuple of dask_fabric.gpu.seats.Seat
        The seats of the GPUs.
    no_gpu_reason : str
        Empty if there are GPUs.

    Raises
    ------
    dask_fabric.errors.UnavailableError
        GPUs are present or named, but cannot be used; the message gives a remedy.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        *,
        CUDA_VISIBLE_DEVICES: str | int | Iterable[str | int] | None = None,
        cupy_pool_size: str | float | None = None,
        rmm_pool_size: str | float | None = None,
        protocol: str = "fabric",
        **options: Any,
    ) -> None:
        pool = pool_of(cupy_pool_size, rmm_pool_size)
        self.seats, self.no_gpu_reason = find_seats(CUDA_VISIBLE_DEVICES)
        if self.seats:
            _check(options)
            n_workers = len(self.seats) if n_workers is None else n_workers
            threads_per_worker = threads_per_worker or 1
            options["worker_class"] = Nannies(self.seats, pool, options.get("worker_class"))
            options["processes"] = True
        else:
            logger.info("no GPU here (%s): starting CPU workers", self.no_gpu_reason)
        super().__init__(
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            protocol=protocol,
            **options,
        )


def _check(options: dict[str, Any]) -> None:
    if options.get("processes") is False:
        raise ValueError("processes=False is not possible with GPUs: each needs its own process")
    worker_class = options.get("worker_class")
    if worker_class is not None and not issubclass(worker_class, Worker):
        raise TypeError(f"worker_class is {worker_class!r}; expected a subclass of Worker")

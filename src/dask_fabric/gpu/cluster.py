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
    the Dask resource ``GPU`` and tells of its GPU in its metrics. Without a GPU it is a
    ``LocalCluster`` as any other; `no_gpu_reason` says why.

    Parameters
    ----------
    n_workers : int, optional
        One for each GPU; with more, some share a GPU.
    threads_per_worker : int, optional
        With GPUs 1.
    CUDA_VISIBLE_DEVICES : str, int or iterable, optional
        The GPUs to use: indices as ``nvidia-smi`` counts, or UUIDs of GPUs or MIG instances.
        The environment's where left out.
    cupy_pool_size, rmm_pool_size : int, float or str, optional
        Device memory that each worker sets aside when it starts, in bytes or as a fraction of its
        GPU's memory, for CuPy's pool or one of RMM; instead of ``fabric.gpu.pool``.
    protocol : str
    **options
        As of ``LocalCluster``.

    Attributes
    ----------
    seats : tuple of dask_fabric.gpu.seats.Seat
        Of the GPUs.
    no_gpu_reason : str
        Empty where there are GPUs.

    Raises
    ------
    dask_fabric.errors.UnavailableError
        GPUs are there, or named, that cannot be used; the message says what to do.
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
            logger.info("no GPU here (%s): workers for CPUs", self.no_gpu_reason)
        super().__init__(
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            protocol=protocol,
            **options,
        )


def _check(options: dict[str, Any]) -> None:
    if options.get("processes") is False:
        raise ValueError("processes=False with GPUs: each needs a worker process of its own")
    worker_class = options.get("worker_class")
    if worker_class is not None and not issubclass(worker_class, Worker):
        raise TypeError(f"worker_class is {worker_class!r}; expected a subclass of Worker")

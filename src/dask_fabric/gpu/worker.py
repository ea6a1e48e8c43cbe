"""Preparing the process of a GPU worker, before Dask's worker is made in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from distributed.diagnostics import nvml as dask_nvml
from distributed.worker import DEFAULT_METRICS, DEFAULT_STARTUP_INFORMATION, Worker

from dask_fabric.gpu import nvml, sizes
from dask_fabric.gpu.allocator import Pool, usage_bytes
from dask_fabric.gpu.context import make_context
from dask_fabric.gpu.seats import Seat

logger = logging.getLogger(__name__)

METRIC = "gpu-process"
STARTUP = "gpu-seat"


def make_worker(
    worker_class: type[Worker], seat: Seat, pool: Pool, *arguments: Any, **options: Any
) -> Worker:
    """Prepare this process for its GPU, and make the worker; used as a nanny's worker class.

    A worker listens before it runs plugins and preloads, and that may start the library of a path.
    The context must exist before such a library starts.

    Parameters
    ----------
    worker_class : type
        Called with *arguments* and *options*.
    seat : Seat
    pool : Pool

    Raises
    ------
    dask_fabric.errors.UnavailableError
        The GPU cannot be used; the message gives the reason.
    """
    stay_on(seat.cores)
    make_context(seat.device.uuid)
    pool.set_up(seat.device.memory_bytes)
    sizes.register()
    dask_nvml.init_once()  # else the process's first worker lacks Dask's GPU metrics
    options["metrics"] = {
        **_given(options, "metrics", DEFAULT_METRICS),
        METRIC: partial(tell_usage, seat),
    }
    startup = _given(options, "startup_information", DEFAULT_STARTUP_INFORMATION)
    options["startup_information"] = {**startup, STARTUP: partial(tell_seat, seat)}
    return worker_class(*arguments, **options)


def stay_on(cores: tuple[int, ...]) -> None:
    """Bind all current and future threads of this process to these CPUs; empty means no change.

    Numerical libraries have started threads already, which ``sched_setaffinity(0)`` would not
    affect.
    """
    if not cores:
        return
    try:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread), cores)
    except OSError as exc:  # a container may forbid it
        logger.warning("this worker is not bound to the CPUs near its GPU: %s", exc)


async def tell_usage(seat: Seat, worker: Worker) -> dict[str, int | None]:
    """Give a metric: GPU memory that this process uses, and CuPy's pool; None means unknown.

    Dask's own metric ``gpu`` has memory and utilization of the whole device.
    """
    used, held = usage_bytes()
    # In a thread: the driver may take milliseconds.
    own = await asyncio.to_thread(nvml.own_memory_bytes, seat.device.uuid)
    return {"memory-used": own, "pool-used": used, "pool-total": held}


def tell_seat(seat: Seat, worker: Worker) -> dict[str, Any]:
    """Give startup information: the worker's seat."""
    return {
        "uuid": seat.device.uuid,
        "model": seat.device.model,
        "cores": list(seat.cores),
        "nics": list(seat.nics),
    }


def _given(options: Mapping[str, Any], name: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
    found = options.get(name)
    return default if found is None else found

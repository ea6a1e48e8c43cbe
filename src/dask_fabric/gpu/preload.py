"""A preload for workers that others start on GPUs, such as dask-cuda: makes the CUDA context.

It does so when it is imported, since a worker listens, and so may start UCX, before it calls what
is in its preloads. Workers of dask-fabric's own do not need it.
"""

from __future__ import annotations

import os

from dask_fabric.errors import UnavailableError
from dask_fabric.gpu import context, nvml, visible


def _first_device() -> nvml.Device:
    given = os.environ.get(visible.VARIABLE)
    devices = nvml.list_devices(None if given is None else visible.names_of(given))
    if not devices:
        raise UnavailableError(f"{visible.VARIABLE} names no GPU for this worker")
    return devices[0]


context.make_context(_first_device().uuid)

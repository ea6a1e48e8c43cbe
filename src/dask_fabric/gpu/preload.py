"""A preload for workers that others start on GPUs, such as dask-cuda: makes the CUDA context.

It does so when it is imported, since a worker listens, and so may start UCX, before ``dask_setup``
is called. Commands import the preloads of their workers too, to see their options: there, in a
process that is nobody's child, nothing is made. Workers of dask-fabric's own do not need it.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from typing import Any

from dask_fabric.errors import UnavailableError
from dask_fabric.gpu import context, nvml, visible


@functools.cache
def make_context() -> None:
    """Make it on the first GPU that the environment names."""
    given = os.environ.get(visible.VARIABLE)
    devices = nvml.list_devices(None if given is None else visible.names_of(given))
    if not devices:
        raise UnavailableError(f"{visible.VARIABLE} names no GPU for this worker")
    context.make_context(devices[0].uuid)


def dask_setup(worker: Any) -> None:
    """Make it now in a worker without a nanny."""
    make_context()


if multiprocessing.parent_process() is not None:
    make_context()

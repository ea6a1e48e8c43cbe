"""A preload that creates the CUDA context, for GPU workers of other tools such as dask-cuda.

The context is created at import, because a worker listens before ``dask_setup`` is called, and that
may start the library of a path. Commands import the preloads of their workers too, to read their
options: they have no parent process, and there nothing is created. dask-fabric's own workers do not
need it.
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
    """Create the context on the first GPU that the environment names."""
    given = os.environ.get(visible.VARIABLE)
    devices = nvml.list_devices(None if given is None else visible.names_of(given))
    if not devices:
        raise UnavailableError(f"{visible.VARIABLE} names no GPU for this worker")
    context.make_context(devices[0].uuid)


def dask_setup(worker: Any) -> None:
    """Create the context in a worker without a nanny."""
    make_context()


if multiprocessing.parent_process() is not None:
    make_context()

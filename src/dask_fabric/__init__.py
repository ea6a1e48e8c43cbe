"""A communication backend for Dask ``distributed``, chosen by ``protocol="fabric"``."""

from importlib.metadata import version
from typing import Any

__version__ = version("dask-fabric")


def statistics() -> dict[str, Any]:
    """Tell what the comms of this process have moved, and by which paths.

    ``Client.run(dask_fabric.statistics)`` asks every worker.

    Returns
    -------
    dict
        ``comms``: for each open comm what its ``statistics()`` gives; ``closed``: how many were
        closed, and the sum of their traffic by path; ``pool``, ``engine``, ``ucx`` (None where
        it does not run) and ``gpu`` (None where no device memory is used): their own figures.
    """
    from dask_fabric.comm.statistics import of_process

    return of_process()

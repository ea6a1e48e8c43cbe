"""A communication backend for Dask ``distributed``, chosen by ``protocol="fabric"``."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_fabric.gpu.cluster import LocalFabricCluster as LocalFabricCluster

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


def __getattr__(name: str) -> Any:
    if name == "LocalFabricCluster":  # it brings distributed with it
        from dask_fabric.gpu.cluster import LocalFabricCluster

        return LocalFabricCluster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""A communication backend for Dask ``distributed``, chosen by ``protocol="fabric"``."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_fabric.gpu.cluster import LocalFabricCluster as LocalFabricCluster

__version__ = version("dask-fabric")


def statistics(client: Any = None) -> Any:
    """Tell what comms have moved, by which paths, and what they waited for.

    Parameters
    ----------
    client : distributed.Client, optional
        Of the cluster whose processes are asked; without it, only this process is.

    Returns
    -------
    dict, or pandas.DataFrame where there is a client
        Of this process. ``comms``: for each open comm what its ``statistics()`` gives; ``closed``:
        how many were closed, and the sum of their traffic by path; ``peers``: the sums of open and
        closed comms by peer and path; ``pool``, ``engine``, ``gpu`` (None where no
        device memory is used) and each path by its name (such as ``ucx``; None where it does not
        run, or counts nothing): their own figures.

        Of a cluster: a row for each process (workers, scheduler and client), peer and path. With
        an asynchronous client it is to be awaited.

    Raises
    ------
    ImportError
        The table needs pandas.
    """
    if client is not None:
        from dask_fabric.telemetry.cluster.dataframe import of_cluster

        return of_cluster(client)
    from dask_fabric.telemetry.registry import of_process

    return of_process()


def __getattr__(name: str) -> Any:
    if name == "LocalFabricCluster":  # it brings distributed with it
        from dask_fabric.gpu.cluster import LocalFabricCluster

        return LocalFabricCluster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""A communication backend for Dask ``distributed``, chosen by ``protocol="fabric"``."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_fabric.gpu.cluster import LocalFabricCluster as LocalFabricCluster

__version__ = version("dask-fabric")


def statistics(client: Any = None) -> Any:
    """Report the traffic of comms by path, and the time that they waited.

    Parameters
    ----------
    client : distributed.Client, optional
        A client of the cluster to report on. Without it, the report covers this process.

    Returns
    -------
    dict, or pandas.DataFrame with a client
        Without a client, a dict of this process. ``comms``: the ``statistics()`` of each open comm;
        ``closed``: the number of closed comms, and their traffic by path; ``peers``: the sums of
        open and closed comms by peer and path; ``pool``, ``engine``, ``gpu`` (None if no device
        memory is used) and each path by its name (such as ``ucx``; None if it does not run, or
        counts nothing): their own figures.

        With a client, a row for each process (workers, scheduler and client), peer and path. The
        result of an asynchronous client must be awaited.

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

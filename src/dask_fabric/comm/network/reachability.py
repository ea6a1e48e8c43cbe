"""Whether a scheduler answers at an address, and if not, why, in one line."""

from __future__ import annotations

from importlib.metadata import entry_points

from distributed.comm import connect
from distributed.comm.registry import get_backend
from distributed.security import Security

from dask_fabric.wire.text import one_line


async def reach(address: str, patience_seconds: float) -> None:
    """Connect and close again, or raise: a `Client` that cannot connect leaves tasks behind.

    Parameters
    ----------
    address : str
        The address of a scheduler, with any scheme that Dask knows.
    patience_seconds : float
        The timeout for a scheduler that does not answer.
    """
    for entry_point in entry_points(group="distributed.comm.backends"):
        if entry_point.value.startswith("dask_fabric."):
            get_backend(entry_point.name)  # for an unknown scheme Dask lists those it has loaded
    arguments = Security().get_connection_args("client")
    comm = await connect(address, patience_seconds, **arguments)
    comm.abort()


def explain(error: BaseException) -> str:
    """Say in one line why something failed."""
    # Dask's own error only says how long it tried.
    while type(error) is OSError and error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return one_line(str(error)) or error.__class__.__name__

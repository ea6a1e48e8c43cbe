"""Whether anybody is at an address, and in one line why not."""

from __future__ import annotations

from distributed.comm import connect
from distributed.security import Security

from dask_fabric.wire.text import printable


async def reach(address: str, patience_seconds: float) -> None:
    """Fail at once where nobody is: a client that cannot connect leaves a lot behind.

    Parameters
    ----------
    address : str
        Of a scheduler, with any scheme that Dask knows.
    patience_seconds : float
        For one that does not answer.
    """
    arguments = Security().get_connection_args("client")
    comm = await connect(address, patience_seconds, **arguments)
    comm.abort()


def explain(error: BaseException) -> str:
    """Say in one line why something failed."""
    # Dask's own error only says how long it tried.
    while type(error) is OSError and error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return printable(str(error)) or error.__class__.__name__

"""The worker, nanny or scheduler of Dask to which a listener belongs."""

from __future__ import annotations

from typing import Any

from distributed.comm.addressing import get_address_host
from distributed.nanny import Nanny
from distributed.worker import Worker


def server_of(listener: Any) -> Any:
    """Give the worker, nanny or scheduler that listens, or None."""
    server = getattr(listener.comm_handler, "__self__", None)
    if server is not None:
        return server
    # The handler may have been wrapped, but every server knows its listeners.
    for candidate in (*Worker._instances, *Nanny._instances):
        if any(known is listener for known in getattr(candidate, "listeners", ())):
            return candidate
    return None


def scheduler_host(server: Any) -> str | None:
    """Give the host of the scheduler that *server* registers with, or None."""
    address = getattr(getattr(server, "scheduler", None), "address", None)
    if not isinstance(address, str):
        return None
    try:
        return get_address_host(address)
    except ValueError:
        return None  # an address without a host

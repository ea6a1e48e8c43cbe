"""A short summary of a process's traffic, which its worker sends with every heartbeat."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

from distributed.scheduler import Scheduler
from distributed.worker import Worker

from dask_fabric.telemetry import registry

METRIC = "fabric"
# Unlike `Client.run`, whoever asks by it leaves no line in the log.
OPERATION = "fabric_figures"
# Heartbeats are sent about once per second and forwarded to clients, so this bounds their size: a
# few KiB in a large cluster.
PEER_LIMIT = 32
# Distinguishes containers with the same host name, whose processes have the same pid.
_TOKEN = secrets.token_hex(4)


def watch(server: Any) -> None:
    """Have a worker add the summary to its heartbeats, and tell all its figures when asked.

    Parameters
    ----------
    server : object
        The server that listens; a scheduler tells its figures too.
    """
    if isinstance(server, Worker):
        server.metrics.setdefault(METRIC, summary)
    if isinstance(server, (Worker, Scheduler)):
        server.handlers.setdefault(OPERATION, registry.rows)


def summary(worker: Any = None) -> dict[str, Any]:
    """Give the figures of this process for the dashboard.

    Parameters
    ----------
    worker : distributed.Worker
        Passed by Dask, and ignored: the figures cover the whole process.

    Returns
    -------
    dict
        ``process``: a name that workers of one process share; ``peers``: a list of tuples of peer,
        path, and the values of `dask_fabric.wire.metrics.Metrics.brief`.
    """
    found = registry.totals(PEER_LIMIT)
    return {
        "process": f"{socket.gethostname()}:{os.getpid()}:{_TOKEN}",
        "peers": [
            (peer, path, *brief)
            for (peer, path), figures in found.items()
            if any(brief := figures.brief())
        ],
    }

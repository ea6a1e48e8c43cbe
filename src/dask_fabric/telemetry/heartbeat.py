"""A short summary of a process's traffic, which its worker sends with every heartbeat."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

from distributed.worker import Worker

from dask_fabric.telemetry import registry

METRIC = "fabric"
# Heartbeats are sent about once per second and forwarded to clients, so this bounds their size: a
# few KiB in a large cluster.
PEER_LIMIT = 32
# Distinguishes containers with the same host name, whose processes have the same pid.
_TOKEN = secrets.token_hex(4)


def watch(server: Any) -> None:
    """If *server* is a worker, add the summary to its heartbeats (``Worker.metrics``).

    Parameters
    ----------
    server : object
        The server that listens.
    """
    if isinstance(server, Worker):
        server.metrics.setdefault(METRIC, summary)


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

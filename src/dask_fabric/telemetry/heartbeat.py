"""A short summary of a process's figures, which its worker sends with every heartbeat."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

from distributed.worker import Worker

from dask_fabric.telemetry import registry

METRIC = "fabric"
# It is sent every second or so, and passed on to clients: some KiB for a worker of a large cluster.
PEER_LIMIT = 32
# Containers may have one host name, and the same number for their processes.
_TOKEN = secrets.token_hex(4)


def watch(server: Any) -> None:
    """Let *server*, if it is a worker, report with its heartbeats (``Worker.metrics``).

    Parameters
    ----------
    server : object
        Whatever listens.
    """
    if isinstance(server, Worker):
        server.metrics.setdefault(METRIC, summary)


def summary(worker: Any = None) -> dict[str, Any]:
    """Give what the dashboard shows of this process.

    Parameters
    ----------
    worker : distributed.Worker
        As Dask passes it; the figures are of the whole process.

    Returns
    -------
    dict
        ``process``: a name that workers of one process share; ``peers``: a list of the peer, the
        path, and what `dask_fabric.wire.metrics.Metrics.brief` gives.
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

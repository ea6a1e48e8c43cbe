"""A preload for workers of ``dask fabric worker``: control-C is for the command alone.

A terminal sends it to all processes of the command. Workers that took it too would end in the
middle of their work, and not when their nanny closes them.
"""

from __future__ import annotations

import multiprocessing
import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Ignore SIGINT in the process of a nanny's worker, whose event loop is in the main thread."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

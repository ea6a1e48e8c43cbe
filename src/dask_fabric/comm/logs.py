"""The log lines of dask-fabric look like Dask's: with time, logger and level, at Dask's level."""

from __future__ import annotations

import logging


def log_as_dask() -> None:
    """Give our logger the handlers and the level of Dask's, unless somebody has configured it.

    Dask configures those loggers alone that its configuration names under ``logging``. Whoever
    names ``dask_fabric`` there, or configures logging without Dask, is left alone.
    """
    ours, dasks = logging.getLogger("dask_fabric"), logging.getLogger("distributed")
    if ours.handlers or ours.level != logging.NOTSET or not dasks.handlers:
        return
    ours.setLevel(dasks.level)
    ours.propagate = dasks.propagate
    for handler in dasks.handlers:
        ours.addHandler(handler)

"""Process-wide state of all comms, set up from the configuration: the engine and the pool."""

from __future__ import annotations

import os
from typing import Any

from dask_fabric import config, providers
from dask_fabric.config import Settings
from dask_fabric.jobs import native
from dask_fabric.memory import device, pool

_applied: Settings | None = None
# RSS above which the pool keeps no idle memory, by listener of the server with the limit.
_pressure_limits_bytes: dict[Any, int] = {}


def _after_fork_in_child() -> None:
    global _applied
    _applied = None  # settings that a path passed to the kernel do not survive a fork


os.register_at_fork(after_in_child=_after_fork_in_child)


def settings() -> Settings:
    """Give the current settings, after applying them to the engine and the pool.

    Raises
    ------
    ConfigError
        A value is invalid; the message names its key.
    """
    global _applied
    current = config.load()
    if current is not _applied:
        native.configure(current.engine_thread_count)
        pool.configure(
            max_idle_bytes=current.pool_max_idle_bytes,
            idle_seconds=current.pool_idle_timeout_seconds,
        )
        device.configure(current.gpu_enabled)
        for provider in providers.found():
            provider.configure(current.of_path(provider.name))
        _applied = current
    return current


def memory_limit(server: Any) -> int:
    """Give the memory limit of a worker in bytes; 0 if there is none, or for another server."""
    return getattr(getattr(server, "memory_manager", None), "memory_limit", None) or 0


def watch_memory(listener: Any, server: Any) -> None:
    """Have the pool keep no idle memory while the process is above a worker's memory target.

    Parameters
    ----------
    listener : object
        The limit holds until `unwatch_memory` is called with the same listener.
    server : object
        The server that listens; only a worker has a memory limit with a target.
    """
    manager = getattr(server, "memory_manager", None)
    limit = memory_limit(server)
    fraction = getattr(manager, "memory_target_fraction", None) or getattr(
        manager, "memory_spill_fraction", None
    )
    if limit and fraction:
        _pressure_limits_bytes[listener] = int(limit * fraction)
        _set_pressure_limit()


def unwatch_memory(listener: Any) -> None:
    """Remove the limit that belongs to *listener*, if there is one."""
    if _pressure_limits_bytes.pop(listener, None) is not None:
        _set_pressure_limit()


def _set_pressure_limit() -> None:
    pool.set_pressure_limit(min(_pressure_limits_bytes.values(), default=0))

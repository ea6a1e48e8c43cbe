"""Process-wide state of all comms, set up from the configuration: the engine and the pool."""

from __future__ import annotations

import os
from typing import Any

from dask_fabric import config, providers
from dask_fabric.config import Settings
from dask_fabric.jobs import completions, native
from dask_fabric.memory import admission, device, pool

_applied: Settings | None = None
# By listener of the server with the limits: the RSS above which the pool keeps no idle memory, and
# the RSS above which large messages wait; 0 for none.
_limits_bytes: dict[Any, tuple[int, int]] = {}


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
        completions.configure(current.queued_total_bytes_limit)
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
    """Hold this process to a worker's memory limit.

    Above the worker's target the pool keeps no idle memory. Above the limit at which it pauses,
    large messages wait.

    Parameters
    ----------
    listener : object
        The limits hold until `unwatch_memory` is called with the same listener.
    server : object
        The server that listens; only a worker has a memory limit.
    """
    manager = getattr(server, "memory_manager", None)
    limit = memory_limit(server)
    target = getattr(manager, "memory_target_fraction", None) or getattr(
        manager, "memory_spill_fraction", None
    )
    pause = getattr(manager, "memory_pause_fraction", None)
    if limit and (target or pause):
        _limits_bytes[listener] = int(limit * (target or 0)), int(limit * (pause or 0))
        _set_limits()


def unwatch_memory(listener: Any) -> None:
    """Remove the limits that belong to *listener*, if there are any."""
    if _limits_bytes.pop(listener, None) is not None:
        _set_limits()


def _set_limits() -> None:
    known = _limits_bytes.values()
    pool.set_pressure_limit(min((low for low, _ in known if low), default=0))
    admission.set_limit(min((high for _, high in known if high), default=0))

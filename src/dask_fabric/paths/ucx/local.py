"""UCX in this process: found and started once, for the first listener or connection."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_fabric.errors import FabricError, UnavailableError
from dask_fabric.memory import device
from dask_fabric.paths.starts import Start, Starts
from dask_fabric.paths.ucx import core as ucx
from dask_fabric.paths.ucx import worker as ucx_worker
from dask_fabric.paths.ucx.candidates import is_wanted, look
from dask_fabric.paths.ucx.devices import kept_to
from dask_fabric.paths.ucx.library import choose
from dask_fabric.wire.hello import TEXT_BYTES_LIMIT

logger = logging.getLogger(__name__)

_NAMES_LIMIT = 64
_RETRY_SECONDS = 10.0  # after a start that failed for a transient reason
_Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)  # compared by identity: there is one while UCX runs
class LocalUCX:
    """The facts about this process's UCX that its hello announces.

    Attributes
    ----------
    version : str
    address : bytes
        The address of the worker.
    transports : tuple of str
        Names, without devices.
    scope : dict of str to str
        Which processes it can share memory with; see `memory_scope`.
    """

    version: str
    address: bytes
    transports: tuple[str, ...]
    scope: Mapping[str, str]


_bound: device.Runtime | None = None  # whose context was passed to UCX
_Found = tuple[LocalUCX | None, str]  # UCX, or None and the reason


_starts = Starts("fabric-find-ucx")  # by the settings that a start depends on


def local_ucx(settings: Any, insists: bool, *, wait: bool = True) -> _Found:
    """Give this process's UCX, started now if necessary, or None and the reason.

    Parameters
    ----------
    settings : named tuple
        The settings under ``fabric.ucx``.
    insists : bool
        Whether the scheme is ``fabric+ucx``: then UCX is wanted on every host.
    wait : bool
        Whether to wait for a start in progress. Not in an event loop: await `find` before.
    """
    wanted, reason = _is_wanted(settings.enabled, insists)
    if not wanted:
        return None, reason
    future = _start(settings, "").future
    if not wait and not future.done():
        return None, "UCX is being started"
    local, reason = future.result()
    if local is not None:
        if not ucx_worker.is_running():
            return None, "UCX belongs to the parent of this forked process"
        reason = _bind_device()  # the process may have begun to use a device since the start
    return (None, reason) if reason else (local, "")


def _bind_device() -> str:
    """Pass the device's context to UCX, if a device is in use; give the reason for a failure.

    UCX looks for the context when it starts, so this is called before.
    """
    global _bound
    runtime = device.current()
    if runtime is None or runtime is _bound:
        return ""
    try:
        ucx_worker.bind(*runtime.context_setter())
    except (UnavailableError, OSError) as exc:
        return f"cannot create a context on the GPU (is it full, or in exclusive use?): {exc}"
    _bound = runtime
    return ""


async def find(settings: Any, insists: bool, bound: str = "") -> None:
    """Start UCX without blocking the event loop, so that `local_ucx` need not wait.

    Probing libraries can take seconds, and a start takes tens of milliseconds. Costs nothing if it
    was done before.

    Parameters
    ----------
    settings, insists
        As for `local_ucx`.
    bound : str
        The host that a listener is bound to; if this call starts UCX, its TCP is restricted to it.
    """
    if _is_wanted(settings.enabled, insists)[0]:
        future = _start(settings, bound).future
        if not future.done():
            await asyncio.wrap_future(future)


def unwanted(settings: Any, insists: bool) -> str:
    """Give the reason why UCX is not wanted in this process, or ""."""
    wanted, reason = _is_wanted(settings.enabled, insists)
    return "" if wanted else reason


@functools.lru_cache(maxsize=8)
def _is_wanted(enabled: bool | None, insists: bool) -> tuple[bool, str]:
    wanted, reason = is_wanted(enabled, look())
    return wanted or (insists and enabled is None), reason


def _start(settings: Any, bound: str) -> Start:
    """Give the start with these settings; begin one in a thread if there is none yet."""
    key = settings.library, settings.options
    return _starts.begin(key, lambda start: _run(start, *key, bound))


def _run(start: Start, library: str | None, options: _Options, bound: str) -> _Found:
    try:
        return _started(start, library, options, bound)
    except Exception as exc:
        is_bug = not isinstance(exc, (FabricError, OSError))
        logger.warning("UCX cannot be used: %s", exc, exc_info=is_bug)
        return None, str(exc)


def _started(start: Start, library: str | None, options: _Options, bound: str) -> _Found:
    chosen = choose(library, options)
    if chosen.library is None:
        return None, chosen.reason
    reason = _bind_device()
    if reason:
        start.retry_at = time.monotonic() + _RETRY_SECONDS
        return None, reason
    is_chosen = "NET_DEVICES" in dict(options) or "UCX_NET_DEVICES" in os.environ
    kept = {} if is_chosen else kept_to(bound, chosen.library.transports)
    ucx.start(chosen.library, options, kept)
    address = ucx.address()
    if len(address) > TEXT_BYTES_LIMIT:
        return None, (
            f"the address of UCX's worker has {len(address)} bytes, more than the "
            f"{TEXT_BYTES_LIMIT} that fit into a hello: name fewer devices or transports in "
            "fabric.ucx.options (NET_DEVICES, TLS)"
        )
    names = dict.fromkeys(name.partition("/")[0] for name in chosen.library.transports)
    version = ".".join(map(str, ucx.version()))
    return LocalUCX(version, address, tuple(names)[:_NAMES_LIMIT], memory_scope()), ""


def memory_scope() -> dict[str, str]:
    """Give the namespaces and user that processes must share to share memory through UCX.

    UCX finds a peer's memory by its process id or in its IPC namespace, checks that the process id
    exists, and only the same user may map the memory. Empty if the namespaces cannot be read.
    """
    try:
        links = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "pid", "user")}
    except OSError:
        return {}
    return {**links, "user": f"{os.geteuid()} of {links['user']}"}

"""UCX of this process: found and started once, when the first listener or connection asks."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dask_fabric.errors import FabricError, UnavailableError
from dask_fabric.memory import device
from dask_fabric.paths.ucx import core as ucx
from dask_fabric.paths.ucx import worker as ucx_worker
from dask_fabric.paths.ucx.candidates import is_wanted, look
from dask_fabric.paths.ucx.devices import kept_to
from dask_fabric.paths.ucx.library import choose
from dask_fabric.wire.hello import TEXT_BYTES_LIMIT

logger = logging.getLogger(__name__)

_NAMES_LIMIT = 64
_RETRY_SECONDS = 10.0  # after a start that failed for a reason which may pass
_Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)  # one object stays the same for as long as UCX runs
class LocalUCX:
    """What this process says of its UCX.

    Attributes
    ----------
    version : str
    address : bytes
        Of the worker.
    transports : tuple of str
        Names, without devices.
    scope : dict of str to str
        With whom it can share memory: see `memory_scope`.
    """

    version: str
    address: bytes
    transports: tuple[str, ...]
    scope: Mapping[str, str]


_bound: device.Runtime | None = None  # whose context UCX was told of
_Found = tuple[LocalUCX | None, str]  # or the reason why there is none


class _Start:
    """Finding and starting UCX, under way in a thread or done.

    Attributes
    ----------
    future : concurrent.futures.Future
        Of what `local_ucx` gives.
    retry_at : float
        When a start that failed may be tried again; infinity where that is no use.
    """

    def __init__(self) -> None:
        self.future: Future[_Found] = Future()
        self.future.set_running_or_notify_cancel()  # who waits for it cannot cancel it for others
        self.retry_at = math.inf

    def is_outdated(self) -> bool:
        return self.future.done() and time.monotonic() >= self.retry_at


# By the settings that they depend on.
_starts: dict[tuple[str | None, _Options], _Start] = {}


def _after_fork_in_child() -> None:
    """Forget what is under way: a forked child has none of the threads that start UCX."""
    global _starts
    _starts = {key: start for key, start in _starts.items() if start.future.done()}


os.register_at_fork(after_in_child=_after_fork_in_child)


def local_ucx(settings: Any, insists: bool, *, wait: bool = True) -> _Found:
    """Give this process's UCX, started now if need be, or the reason why there is none.

    Parameters
    ----------
    settings : named tuple
        Those of ``fabric.ucx``.
    insists : bool
        Whether the scheme is ``fabric+ucx``: then it is wanted on every host.
    wait : bool
        For a start that is under way. An event loop must not: it awaits `find` before, and what is
        not there by then is not used.
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
        reason = _bind_device()  # which this process may work with since
    return (None, reason) if reason else (local, "")


def _bind_device() -> str:
    """Have UCX find the context of the device, if one is worked with; or say why it cannot.

    Before UCX starts, where that has not been yet: it looks for the context.
    """
    global _bound
    runtime = device.current()
    if runtime is None or runtime is _bound:
        return ""
    try:
        ucx_worker.bind(*runtime.context_setter())
    except (UnavailableError, OSError) as exc:
        return f"no context of the GPU can be made (is it full, or another's?): {exc}"
    _bound = runtime
    return ""


async def find(settings: Any, insists: bool, bound: str = "") -> None:
    """Let `local_ucx` find at once what it starts; costs nothing when that was done before.

    To look for a library takes as long as the slowest that hangs, and to start it tens of
    milliseconds: not in the event loop.

    Parameters
    ----------
    settings, insists
        As for `local_ucx`.
    bound : str
        The host that a listener is bound to: whoever starts UCX then keeps its TCP to that, too.
    """
    if _is_wanted(settings.enabled, insists)[0]:
        future = _start(settings, bound).future
        if not future.done():
            await asyncio.wrap_future(future)


@functools.lru_cache(maxsize=8)
def _is_wanted(enabled: bool | None, insists: bool) -> tuple[bool, str]:
    wanted, reason = is_wanted(enabled, look())
    return wanted or (insists and enabled is None), reason


def _start(settings: Any, bound: str) -> _Start:
    """Give the start by these settings, begun now by a thread if there is none yet."""
    key = settings.library, settings.options
    known = _starts.get(key)
    if known is not None and not known.is_outdated():
        return known
    new = _starts[key] = _Start()
    # No thread of an executor: at its exit the process would wait for it.
    arguments = new, *key, bound
    threading.Thread(target=_run, args=arguments, name="fabric-find-ucx", daemon=True).start()
    return new


def _run(start: _Start, library: str | None, options: _Options, bound: str) -> None:
    try:
        found = _started(start, library, options, bound)
    except Exception as exc:
        is_bug = not isinstance(exc, (FabricError, OSError))
        logger.warning("UCX cannot be used: %s", exc, exc_info=is_bug)
        found = None, str(exc)
    start.future.set_result(found)


def _started(start: _Start, library: str | None, options: _Options, bound: str) -> _Found:
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
            f"{TEXT_BYTES_LIMIT} that a hello holds: name fewer devices or transports in "
            "fabric.ucx.options (NET_DEVICES, TLS)"
        )
    names = dict.fromkeys(name.partition("/")[0] for name in chosen.library.transports)
    version = ".".join(map(str, ucx.version()))
    return LocalUCX(version, address, tuple(names)[:_NAMES_LIMIT], memory_scope()), ""


def memory_scope() -> dict[str, str]:
    """Tell what processes that share memory through UCX have in common, for each key of a hello.

    UCX finds a peer's memory by its process id or in its IPC namespace, looks in any case whether
    the process id lives, and the memory is its user's alone. Nothing where that cannot be read.
    """
    try:
        links = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "pid", "user")}
    except OSError:
        return {}
    return {**links, "user": f"{os.geteuid()} of {links['user']}"}

"""UCX of this process: found and started once, when the first comm asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from distributed.comm.core import FatalCommClosedError

from dask_fabric.config import Settings
from dask_fabric.errors import FabricError, UnavailableError
from dask_fabric.memory import device
from dask_fabric.paths import ucx, ucx_worker
from dask_fabric.paths.ucx_candidates import is_wanted, look
from dask_fabric.paths.ucx_library import Choice, choose
from dask_fabric.wire.hello import TEXT_BYTES_LIMIT

logger = logging.getLogger(__name__)

_NAMES_LIMIT = 64
_Options = tuple[tuple[str, str], ...]

# Under way or done, by the settings that they depend on.
_searches: dict[tuple[str | None, _Options], Future[Choice]] = {}
# A forked child has none of the threads that search.
os.register_at_fork(after_in_child=_searches.clear)


@dataclass(frozen=True)
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


def local_ucx(settings: Settings, insists: bool) -> tuple[LocalUCX | None, str]:
    """Give this process's UCX, started now if need be, or the reason why there is none.

    In an event loop, await `find` before.

    Parameters
    ----------
    settings : dask_fabric.config.Settings
    insists : bool
        Whether the scheme is ``fabric+ucx``: then it is wanted on every host.
    """
    wanted, reason = _is_wanted(settings.ucx_enabled, insists)
    if not wanted:
        return None, reason
    runtime = device.current()
    if runtime is not None:
        # Before UCX starts, where that has not been yet: it looks for the device's context.
        try:
            ucx_worker.bind(*runtime.context_setter())
        except (UnavailableError, OSError) as exc:
            return None, f"no context of the GPU can be made (is it full, or another's?): {exc}"
    local, reason = _started(settings.ucx_library, settings.ucx_options)
    if local is not None and not ucx_worker.is_running():
        return None, "UCX belongs to the parent of this forked process"
    return local, reason


class SchemeUnavailableError(UnavailableError, FatalCommClosedError):
    """The scheme is known, but nothing can be sent by it; Dask does not try again.

    Attributes
    ----------
    reason : str
        Without the address and the advice that the message has.
    """

    reason: str = ""


async def find(address: str, settings: Settings, insists: bool) -> None:
    """Let `local_ucx` find at once what it looks for; costs nothing when that was done before.

    To look for a library takes as long as the slowest that hangs: not in the event loop.

    Parameters
    ----------
    address : str
        To listen on or to connect to.
    settings, insists
        As for `local_ucx`.

    Raises
    ------
    SchemeUnavailableError
        The scheme insists on UCX, and there is none: with the reason and the remedy.
    """
    if _is_wanted(settings.ucx_enabled, insists)[0]:
        search = _search(settings.ucx_library, settings.ucx_options)
        if not search.done():
            with contextlib.suppress(FabricError):  # `local_ucx` tells
                await asyncio.wrap_future(search)
    if insists:
        _check_available(address, settings)


def _check_available(address: str, settings: Settings) -> None:
    local, reason = local_ucx(settings, insists=True)
    if local is None:
        error = SchemeUnavailableError(
            f"cannot use {address}: {reason}. `dask fabric doctor --require ucx` tells more; "
            "fabric:// takes the best path that both ends have"
        )
        error.reason = reason
        raise error


@functools.lru_cache(maxsize=8)
def _is_wanted(enabled: bool | None, insists: bool) -> tuple[bool, str]:
    wanted, reason = is_wanted(enabled, look())
    return wanted or (insists and enabled is None), reason


def _search(library: str | None, options: _Options) -> Future[Choice]:
    """Give the search by these settings, begun now by a thread if there is none yet."""
    known = _searches.get((library, options))
    if known is not None:
        return known
    new = Future()
    new.set_running_or_notify_cancel()  # who waits for it cannot cancel it for others
    search = _searches.setdefault((library, options), new)
    if search is new:
        # No thread of an executor: at its exit the process would wait for it.
        arguments = new, library, options
        threading.Thread(target=_run, args=arguments, name="fabric-find-ucx", daemon=True).start()
    return search


def _run(search: Future[Choice], library: str | None, options: _Options) -> None:
    try:
        search.set_result(choose(library, options))
    except BaseException as exc:
        search.set_exception(exc)


@functools.lru_cache(maxsize=8)
def _started(library: str | None, options: _Options) -> tuple[LocalUCX | None, str]:
    try:
        chosen = _search(library, options).result()
        if chosen.library is None:
            return None, chosen.reason
        ucx.start(chosen.library, options)
    except FabricError as exc:
        logger.warning("UCX cannot be used: %s", exc)
        return None, str(exc)
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

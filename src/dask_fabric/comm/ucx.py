"""UCX of this process: found and started once, when the first comm asks for it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from distributed.comm.core import FatalCommClosedError

from dask_fabric.config import Settings
from dask_fabric.errors import FabricError, UnavailableError
from dask_fabric.memory import device
from dask_fabric.paths import ucx, ucx_worker
from dask_fabric.paths.ucx_candidates import is_wanted, look
from dask_fabric.paths.ucx_library import choose
from dask_fabric.wire.hello import TEXT_BYTES_LIMIT

logger = logging.getLogger(__name__)

_NAMES_LIMIT = 64


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

    Parameters
    ----------
    settings : dask_fabric.config.Settings
    insists : bool
        Whether the scheme is ``fabric+ucx``: then it is wanted on every host.
    """
    host = look()
    wanted, reason = is_wanted(settings.ucx_enabled, host)
    if not wanted and not (insists and settings.ucx_enabled is None):
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


def check_available(address: str, settings: Settings) -> None:
    """Raise for an address of ``fabric+ucx://`` in a process that has no UCX.

    Raises
    ------
    SchemeUnavailableError
        With the reason and the remedy.
    """
    local, reason = local_ucx(settings, insists=True)
    if local is None:
        error = SchemeUnavailableError(
            f"cannot use {address}: {reason}. `dask fabric doctor --require ucx` tells more; "
            "fabric:// takes the best path that both ends have"
        )
        error.reason = reason
        raise error


@functools.lru_cache(maxsize=8)
def _started(
    library: str | None, options: tuple[tuple[str, str], ...]
) -> tuple[LocalUCX | None, str]:
    try:
        chosen = choose(library, options)
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

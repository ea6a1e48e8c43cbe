"""libfabric in this process: found and started once, for the first listener or connection."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from dataclasses import dataclass
from typing import Any

from dask_fabric.errors import FabricError
from dask_fabric.paths.ofi import worker
from dask_fabric.paths.ofi.kinds import Kind
from dask_fabric.paths.ofi.library import choose, environment, wanted_kinds
from dask_fabric.paths.starts import Start, Starts
from dask_fabric.wire.hello import TEXT_BYTES_LIMIT

logger = logging.getLogger(__name__)

_IP_PROVIDERS = ("tcp", "tcp;ofi_rxm", "net", "sockets")
_WILDCARDS = ("", "0.0.0.0", "::")
NOTHING_TO_USE = (
    "this host has no device that is left to libfabric (Slingshot, EFA, Omni-Path): set "
    "fabric.ofi.provider, such as verbs;ofi_rxm or tcp, to use another of its providers"
)


@dataclass(frozen=True, eq=False)  # compared by identity: there is one while libfabric runs
class LocalOFI:
    """What this process's hello announces.

    Attributes
    ----------
    version : str
        Of libfabric.
    provider : str
    vni : int
        The network of Slingshot's that it is in; 0 elsewhere.
    facts : dict
        See `worker.facts`.
    """

    version: str
    provider: str
    vni: int
    facts: dict[str, Any]


_Found = tuple[LocalOFI | None, str]  # or None and the reason
_starts = Starts("fabric-find-ofi")  # by the settings that a start depends on


def local_ofi(settings: Any, insists: bool, *, wait: bool = True) -> _Found:
    """Give this process's libfabric, started now if necessary, or None and the reason.

    Parameters
    ----------
    settings : named tuple
        The settings under ``fabric.ofi``.
    insists : bool
        Whether the scheme is ``fabric+ofi``.
    wait : bool
        Whether to wait for a start in progress. Not in an event loop: await `find` before.
    """
    kinds, reason = _wanted(settings.enabled, settings.provider, insists)
    if not kinds:
        return None, reason
    future = _start(settings, kinds, "").future
    if not wait and not future.done():
        return None, "libfabric is being started"
    local, reason = future.result()
    if local is not None and not worker.is_running():
        return None, "libfabric belongs to the parent of this forked process"
    return local, reason


async def find(settings: Any, insists: bool, bound: str = "") -> None:
    """Start libfabric without blocking the event loop, so that `local_ofi` need not wait.

    Parameters
    ----------
    settings, insists
        As for `local_ofi`.
    bound : str
        The host that a listener is bound to; if this call starts a provider that uses IP, it uses
        that address.
    """
    kinds, _ = _wanted(settings.enabled, settings.provider, insists)
    if kinds:
        future = _start(settings, kinds, bound).future
        if not future.done():
            await asyncio.wrap_future(future)


def unwanted(settings: Any, insists: bool) -> str:
    """Give the reason why libfabric is not wanted in this process, or ""."""
    kinds, reason = _wanted(settings.enabled, settings.provider, insists)
    return "" if kinds else reason


@functools.lru_cache(maxsize=8)
def _wanted(
    enabled: bool | None, provider: str | None, insists: bool
) -> tuple[tuple[Kind, ...], str]:
    if enabled is False:
        return (), "fabric.ofi.enabled is false in its configuration"
    return wanted_kinds(enabled or insists, provider), NOTHING_TO_USE


def _start(settings: Any, kinds: tuple[Kind, ...], bound: str) -> Start:
    key = settings.library, settings.options, settings.domain, kinds
    return _starts.begin(key, lambda start: _run(settings, kinds, bound))


def _run(settings: Any, kinds: tuple[Kind, ...], bound: str) -> _Found:
    try:
        return _started(settings, kinds, bound)
    except Exception as exc:
        is_bug = not isinstance(exc, (FabricError, OSError))
        logger.warning("libfabric cannot be used: %s", exc, exc_info=is_bug)
        return None, str(exc)


def _started(settings: Any, kinds: tuple[Kind, ...], bound: str) -> _Found:
    chosen = choose(kinds, settings.library, settings.options)
    library, kind = chosen.library, chosen.kind
    if library is None or kind is None:
        return None, chosen.reason
    node = bound if kind.name in _IP_PROVIDERS and bound not in _WILDCARDS else ""
    variables = environment(settings.options, kind)
    facts = worker.start(library.path, kind.name, variables, node, settings.domain)
    logger.info("libfabric uses %s for this process", worker.domain())
    if len(facts["name"]) > TEXT_BYTES_LIMIT:
        return None, f"the address of {kind.name} has {len(facts['name'])} bytes: too many"
    version = ".".join(map(str, library.version))
    return LocalOFI(version, kind.name, vni() if kind.name == "cxi" else 0, facts), ""


def vni() -> int:
    """Give the network of Slingshot's that this process is in: the first that Slurm or PALS names.

    0 if none is named: then the provider uses the open default service, if the site has one.
    """
    first = os.environ.get("SLINGSHOT_VNIS", "").split(",")[0]
    return int(first) if first.isdigit() else 0

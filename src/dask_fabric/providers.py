"""The installed paths: each is found by its entry point, and named nowhere else.

An entry point of the group ``dask_fabric.paths`` has the name of a path, and refers to its
`dask_fabric.paths.provider.Provider`. This package's own paths are found in the same way.
"""

from __future__ import annotations

import functools
import logging
import threading
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask_fabric.paths.provider import Provider

logger = logging.getLogger(__name__)
_lock = threading.RLock()
_is_finding = False

GROUP = "dask_fabric.paths"
# Names used in hellos, in the configuration or in reports, which a path must not have.
RESERVED = frozenset(
    (
        *("stream", "unix", "tls", "tcp"),
        *("scheme", "software", "pid", "paths", "memory", "authentication", "features", "limits"),
        *("refused", "boot", "described", "address", "ends", "joins", "error", "end"),
        *("keys", "nonce", "challenge", "key", "proof", "auth"),
        *("pool", "engine", "gpu", "history", "timeouts"),
        *("comms", "closed", "peers"),
        *("host", "identity", "interfaces", "rdma", "gpus", "configuration", "failures"),
        *("gpu_modules", "details"),
        *("schemes", "advice"),
    )
)


@functools.cache
def names() -> tuple[str, ...]:
    """Name the installed paths, without importing them."""
    return tuple(dict.fromkeys(sorted(point.name for point in entry_points(group=GROUP))))


@functools.cache
def found() -> tuple[Provider, ...]:
    """Give the providers of all paths, in order of preference.

    Providers that cannot be used are left out, with a warning.

    Raises
    ------
    ImportError
        The module of a provider calls this while it is being imported.
    """
    global _is_finding
    with _lock:
        if _is_finding:
            raise ImportError(
                "the module of a path's provider imports a module that needs all providers, such "
                "as dask_fabric.config: import it in the methods that use it"
            )
        _is_finding = True
        try:
            return _found()
        finally:
            _is_finding = False


def _found() -> tuple[Provider, ...]:
    providers: dict[str, Provider] = {}
    for point in entry_points(group=GROUP):
        try:
            provider = point.load()
            if reason := _objection(provider, point.name, providers):
                raise ValueError(reason)
        except Exception as exc:
            text = "The path %s of %s is not used: %s: %s"
            logger.warning(text, point.name, point.value, type(exc).__name__, exc)
        else:
            providers[point.name] = provider
    return tuple(sorted(providers.values(), key=lambda one: (one.rank, one.name)))


def _objection(provider: Provider, name: str, others: dict[str, Provider]) -> str:
    if provider.name != name:
        return f"its name is {provider.name!r}, but its entry point has another name"
    if not name.isidentifier() or not name.islower() or name in RESERVED:
        return f"{name!r} is reserved, or does not consist of lower-case letters and digits"
    return "another package has a path of this name" if name in others else ""


def environment() -> dict[str, str]:
    """Give variables for programs whose standard output is parsed: no library may write to it."""
    return {name: value for one in found() for name, value in one.environment.items()}


@functools.cache
def by_name() -> dict[str, Provider]:
    """Give the providers by the names of their paths."""
    return {provider.name: provider for provider in found()}

"""Dask's configuration as far as it decides how processes talk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dask.config
from distributed.security import Security

from dask_fabric import config
from dask_fabric.cli.doctor.pair import roles
from dask_fabric.errors import ConfigError

SOCKET_BACKLOG = "distributed.comm.socket-backlog"


@dataclass(frozen=True)
class Configuration:
    """What is set, and what of it cannot be used.

    Attributes
    ----------
    changed : dict of str to object
        Values under ``fabric:`` that are not the defaults, by their full names.
    unknown : tuple of str
        Full names of keys under ``fabric:`` that mean nothing.
    error : str
        Why the section cannot be used; empty where it can.
    default_scheme : str
        What Dask takes for an address without a scheme.
    socket_backlog_count : int
        How many connections a listener lets wait.
    require_encryption, certificates : bool
        Whether Dask insists on TLS, and whether it has what TLS needs.
    """

    changed: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    error: str = ""
    default_scheme: str | None = None
    socket_backlog_count: int | None = None
    require_encryption: bool | None = None
    certificates: bool | None = None

    def value(self, name: str) -> Any:
        """Give the value in effect of a key under ``fabric:``, or None where there is no such."""
        return self.changed.get(f"{config.SECTION}.{name}", config.DEFAULTS.get(name))


def inspect_configuration() -> Configuration:
    """Read and check what Dask's configuration says now."""
    given, error = _given()
    security = Security()
    return Configuration(
        changed={
            f"{config.SECTION}.{name}": value
            for name, value in given.items()
            if name in config.KEYS and value != config.DEFAULTS[name]
        },
        unknown=tuple(f"{config.SECTION}.{name}" for name in sorted(given.keys() - config.KEYS)),
        error=error,
        default_scheme=dask.config.get("distributed.comm.default-scheme"),
        socket_backlog_count=int(dask.config.get(SOCKET_BACKLOG)),
        require_encryption=bool(security.require_encryption),
        certificates=bool(roles(security)),
    )


def _given() -> tuple[dict[str, Any], str]:
    try:
        given = config.given()
    except ConfigError as exc:
        return {}, str(exc)
    try:
        config.load()
    except ConfigError as exc:
        return given, str(exc)
    return given, ""

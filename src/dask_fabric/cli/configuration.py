"""The part of Dask's configuration that concerns comms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dask.config
from distributed.security import Security

from dask_fabric import config
from dask_fabric.cli.doctor.pair import roles
from dask_fabric.comm.network import authentication, munge
from dask_fabric.errors import ConfigError
from dask_fabric.wire.hello import MUNGE

SOCKET_BACKLOG = "distributed.comm.socket-backlog"


@dataclass(frozen=True)
class Configuration:
    """Values that are set, and errors in them.

    Attributes
    ----------
    changed : dict of str to object
        Values under ``fabric:`` that are not the defaults, by their full names.
    unknown : tuple of str
        Full names of unknown keys under ``fabric:``.
    error : str
        Why the section is invalid, or "".
    default_scheme : str
        The scheme of an address without one.
    socket_backlog_count : int
        How many connections may wait to be accepted by a listener.
    require_encryption, certificates : bool
        Whether Dask requires TLS, and whether it has certificates.
    keys : tuple of str
        The fingerprints of this process's keys, the current one first.
    user : str
        With MUNGE, whose process this is by the word of munged, or "" if that does not answer.
    """

    changed: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    error: str = ""
    default_scheme: str | None = None
    socket_backlog_count: int | None = None
    require_encryption: bool | None = None
    certificates: bool | None = None
    keys: tuple[str, ...] = ()
    user: str = ""

    def value(self, name: str) -> Any:
        """Give the effective value of a key under ``fabric:``, or None for an unknown key."""
        return self.changed.get(f"{config.SECTION}.{name}", config.DEFAULTS.get(name))


def inspect_configuration() -> Configuration:
    """Read and check Dask's current configuration."""
    given, keys, user, error = _given()
    security = Security()
    return Configuration(
        changed={
            f"{config.SECTION}.{name}": config.KEYS[name].public(value)
            for name, value in given.items()
            if name in config.KEYS and value != config.DEFAULTS[name]
        },
        unknown=tuple(f"{config.SECTION}.{name}" for name in sorted(given.keys() - config.KEYS)),
        error=error,
        default_scheme=dask.config.get("distributed.comm.default-scheme"),
        socket_backlog_count=int(dask.config.get(SOCKET_BACKLOG)),
        require_encryption=bool(security.require_encryption),
        certificates=bool(roles(security)),
        keys=keys,
        user=user,
    )


def _given() -> tuple[dict[str, Any], tuple[str, ...], str, str]:
    """Give the values that are set, the fingerprints of keys, MUNGE's user, and an error or ""."""
    given: dict[str, Any] = {}
    try:
        given = config.given()
        settings = config.load()
        method = authentication.current(settings)
        user = munge.name_of(munge.user(settings)) if settings.auth_method == MUNGE else ""
    except ConfigError as exc:
        return given, (), "", str(exc)
    return given, () if method is None else method.fingerprints, user, ""

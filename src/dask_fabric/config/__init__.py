"""The configuration of dask-fabric: the checked values under ``fabric:`` in Dask's.

Importing this package adds the defaults to ``dask.config``.
"""

from __future__ import annotations

import difflib
import functools
import logging
import marshal
from collections import namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import dask.config

from dask_fabric import providers
from dask_fabric.config.memory import host_memory_bytes
from dask_fabric.config.table import keys, nested_defaults
from dask_fabric.errors import ConfigError
from dask_fabric.keys import Key, shown

__all__ = ["DEFAULTS", "KEYS", "SECTION", "Settings", "given", "host_memory_bytes", "load", "near"]

logger = logging.getLogger(__name__)

_WITHOUT_REFERENCES = 2  # a format of marshal's: equal values give the same bytes

SECTION = "fabric"


@dataclass(frozen=True)
class Settings:
    """Checked values of all keys under ``fabric:``; the units are in the names.

    ``docs/configuration.md`` describes each of them.
    """

    pool_max_idle_bytes: int
    pool_idle_timeout_seconds: float
    engine_thread_count: int
    busy_poll_seconds: float
    stream_inline_bytes: int
    stream_bulk_bytes: int
    unix_sockets: bool
    gpu_enabled: bool | None  # None: once this process has imported a library for it
    gpu_chunk_bytes: int
    gpu_allocator: str
    gpu_pool_size: int | float | None  # bytes, or a fraction of the GPU's memory
    frame_count_limit: int
    header_bytes_limit: int
    message_bytes_limit: int
    handshake_count_limit: int
    queued_bytes_limit: int
    queued_total_bytes_limit: int
    auth_method: str
    auth_munge_socket: str | None
    auth_key: bytes | None = field(repr=False)
    auth_key_file: str | None
    auth_require: bool
    auth_local: bool
    auth_encrypt: bool
    auth_encrypt_local: bool
    history_file: str | None
    history_size_bytes: int
    history_interval_seconds: float
    handshake_timeout_seconds: float
    stalled_timeout_seconds: float
    memory_timeout_seconds: float
    close_timeout_seconds: float
    paths: Any  # a named tuple, by path, of named tuples with the path's settings

    def of_path(self, name: str) -> Any:
        """Give the settings of one path."""
        return getattr(self.paths, name)

    # By identity, for caches: `load` returns the same object until something changes.
    __hash__ = object.__hash__


def load() -> Settings:
    """Return the current settings.

    Cheap enough for every connection: values are checked again only after a change.

    Raises
    ------
    ConfigError
        A value is invalid; the message names its key and what is expected.
    """
    global _cached
    section = dask.config.get(SECTION, None)
    # Dask changes the section in place, so compare its bytes; unlike ==, they distinguish 1 and
    # True.
    try:
        packed = marshal.dumps(section, _WITHOUT_REFERENCES)
    except ValueError:  # a value is of no type of YAML's
        packed = repr(section).encode()
    cached, settings = _cached
    if settings is None or packed != cached:
        settings = _check(section)
        _cached = packed, settings
    return settings


def given() -> dict[str, object]:
    """Return the current values under ``fabric:``, unchecked, by dotted name.

    Raises
    ------
    ConfigError
        A section is not a mapping.
    """
    return dict(_flatten(dask.config.get(SECTION, None), ""))


def _check(section: object) -> Settings:
    values = {**DEFAULTS, **dict(_flatten(section, ""))}
    for name in sorted(values.keys() - KEYS.keys()):
        if name.startswith("auth."):  # ignored, it would not protect whom it is to protect
            raise ConfigError(f"unknown key {SECTION}.{name} in Dask's configuration{_meant(name)}")
        _warn_unknown(name)
    parsed = {name: _parse(name, values[name]) for name in KEYS}
    own = {KEYS[name].field: value for name, value in parsed.items()}
    own = {field.name: own.get(field.name) for field in fields(Settings)}
    settings = Settings(**{**own, "paths": _of_paths(parsed)})
    if settings.stream_inline_bytes > settings.stream_bulk_bytes:
        raise ConfigError(
            f"fabric.stream.inline is {values['stream.inline']!r}; expected at most "
            f"fabric.stream.bulk, which is {values['stream.bulk']!r}"
        )
    if settings.auth_encrypt and settings.auth_method != "key":
        raise ConfigError(
            f"fabric.auth.encrypt is true, and fabric.auth.method is {settings.auth_method}, which "
            "has nothing to encrypt by: set fabric.auth.method: key, and make one by `dask fabric "
            "key create`; or set fabric.auth.encrypt: false, and encrypt by certificates"
        )
    return settings


def _of_paths(parsed: dict[str, Any]) -> Any:
    found = providers.found()
    made = _tuple("Paths", tuple(one.name for one in found))
    return made(*(_of_path(one.name, one.section.keys, parsed) for one in found))


def _of_path(name: str, section: Mapping[str, Key], parsed: dict[str, Any]) -> Any:
    made = _tuple(name, tuple(key.field for key in section.values()))
    return made(*(parsed[f"{name}.{part}"] for part in section))


# Cached, so that the same names give the same type.
_tuple = functools.cache(namedtuple)


def _flatten(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Yield dotted names below ``fabric`` with their values; *name* is the name of *value*."""
    if name in KEYS:
        yield name, value
    elif isinstance(value, dict):
        for part, inner in value.items():
            part = str(part).replace("_", "-")  # environment variables have no hyphens
            yield from _flatten(inner, f"{name}.{part}" if name else part)
    elif not name or any(key.startswith(f"{name}.") for key in KEYS):
        if value is not None:
            full = f"{SECTION}.{name}" if name else SECTION
            raise ConfigError(f"{full} is {shown(value)}; expected a mapping of keys to values")
    else:
        yield name, value


def _parse(name: str, value: object) -> Any:
    key = KEYS[name]
    try:
        return key.parse(value)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        text = f"{SECTION}.{name} is {key.shown(value)}; expected {key.expected}"
        # Its own text may repeat the value.
        raise ConfigError(text) from (error if shown(str(error)) == repr(str(error)) else None)


def near(name: str) -> str:
    """Give the full name of the key that is most like this one, without its section, or ""."""
    found = difflib.get_close_matches(name, KEYS, n=1)
    return f"{SECTION}.{found[0]}" if found else ""


@functools.cache  # so that each name is reported once
def _warn_unknown(name: str) -> None:
    advice = _meant(name)
    logger.warning("unknown key %s.%s in Dask's configuration is ignored%s", SECTION, name, advice)


def _meant(name: str) -> str:
    known = near(name)
    return f"; did you mean {known}?" if known else ""


def _add_defaults() -> None:
    """Add the defaults below what the user has set.

    Where a section is expected and the user has set a value, as ``DASK_FABRIC__POOL=5`` does, Dask
    drops the value without a word. It is put back, and `load` complains of it.
    """
    defaults = nested_defaults()
    misplaced = list(_misplaced(dask.config.config.get(SECTION), defaults, (SECTION,)))
    dask.config.update_defaults({SECTION: defaults})
    for names, value in misplaced:
        section = dask.config.config
        for name in names[:-1]:
            section = section[name]
        section[names[-1]] = value


def _misplaced(
    value: object, defaults: Mapping[str, Any], names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the values that stand in the place of a section of *defaults*, with their names."""
    if isinstance(value, dict):
        for name, inner in value.items():
            below = defaults.get(str(name).replace("_", "-"))
            if isinstance(below, dict):
                yield from _misplaced(inner, below, (*names, name))
    elif value is not None:
        yield names, value


KEYS = keys()
DEFAULTS = {name: key.default for name, key in KEYS.items()}
_add_defaults()
_cached: tuple[bytes, Settings | None] = (b"", None)

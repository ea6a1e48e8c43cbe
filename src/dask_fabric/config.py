"""The configuration of dask-fabric: what stands under ``fabric:`` in Dask's, checked.

Importing this module adds the defaults in ``dask_fabric.yaml`` to ``dask.config``.
"""

from __future__ import annotations

import difflib
import functools
import logging
import math
import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import dask.config
import psutil
import yaml
from dask.system import CPU_COUNT
from dask.utils import parse_bytes, parse_timedelta

from dask_fabric.errors import ConfigError

logger = logging.getLogger(__name__)

SECTION = "fabric"
SIZE_BYTES_LIMIT = 2**47  # the address space of a process
SECONDS_LIMIT = 366 * 86400
FRAME_COUNT_LIMIT = 2**32 - 1  # a u32 on the wire
THREAD_COUNT_LIMIT = 64
BUSY_POLL_SECONDS_LIMIT = 0.01
ALLOCATORS = ("cupy", "rmm")  # of device memory
LIMIT_BYTES_LEAST = 256  # Dask's handshake must come through, see docs/wire-protocol.md
OFFER_BYTES_LEAST = 64 << 10  # smaller frames may not be offered, see docs/wire-protocol.md
CHUNK_BYTES_LEAST = 64 << 10
HISTORY_BYTES_LEAST = 1 << 20  # there is room for the job that is written


@dataclass(frozen=True)
class Settings:
    """Checked values of all keys under ``fabric:``; the units are in the names.

    ``docs/configuration.md`` says what each of them does.
    """

    pool_max_idle_bytes: int
    pool_idle_timeout_seconds: float
    engine_thread_count: int
    busy_poll_seconds: float
    stream_inline_bytes: int
    stream_bulk_bytes: int
    unix_sockets: bool
    cma_enabled: bool
    cma_threshold_bytes: int
    cma_allow_ptrace: bool
    ucx_enabled: bool | None  # None: where this host has a use for it
    ucx_library: str | None
    ucx_options: tuple[tuple[str, str], ...]
    gpu_enabled: bool | None  # None: once this process has imported a library for it
    gpu_chunk_bytes: int
    gpu_allocator: str
    gpu_pool_size: int | float | None  # bytes, or a fraction of the GPU's memory
    frame_count_limit: int
    header_bytes_limit: int
    message_bytes_limit: int
    history_file: str | None
    history_size_bytes: int
    history_interval_seconds: float
    handshake_timeout_seconds: float
    stalled_timeout_seconds: float
    close_timeout_seconds: float


class Key(NamedTuple):
    """One key under ``fabric:``: the field it fills, how it is read, and what it must be."""

    field: str
    parse: Callable[[Any], Any]
    expected: str


def load() -> Settings:
    """Return the settings that Dask's configuration holds now.

    Cheap enough for every connection: values are checked again only after a change.

    Raises
    ------
    ConfigError
        A value is not usable; the message names its key and what is expected.
    """
    global _cached
    section = dask.config.get(SECTION, None)
    # Dask changes the section in place, so neither its identity nor a reference can be kept; and
    # unlike equality the text tells 1 from True.
    text = repr(section)
    cached_text, settings = _cached
    if settings is None or text != cached_text:
        settings = _check(section)
        _cached = text, settings
    return settings


def given() -> dict[str, object]:
    """Return what Dask's configuration holds under ``fabric:`` now, unchecked, by dotted name.

    Raises
    ------
    ConfigError
        A value stands where a section belongs.
    """
    return dict(_flatten(dask.config.get(SECTION, None), ""))


def _check(section: object) -> Settings:
    values = {**DEFAULTS, **dict(_flatten(section, ""))}
    for name in sorted(values.keys() - KEYS.keys()):
        _warn_unknown(name)
    settings = Settings(**{key.field: _parse(name, values[name]) for name, key in KEYS.items()})
    if settings.stream_inline_bytes > settings.stream_bulk_bytes:
        raise ConfigError(
            f"fabric.stream.inline is {values['stream.inline']!r}; expected at most "
            f"fabric.stream.bulk, which is {values['stream.bulk']!r}"
        )
    return settings


def _flatten(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Yield dotted names below ``fabric`` with their values; `name` is that of *value*."""
    if name in KEYS:
        yield name, value
    elif isinstance(value, dict):
        for part, inner in value.items():
            part = str(part).replace("_", "-")  # environment variables have no hyphens
            yield from _flatten(inner, f"{name}.{part}" if name else part)
    elif not name or any(key.startswith(f"{name}.") for key in KEYS):
        if value is not None:
            full = f"{SECTION}.{name}" if name else SECTION
            raise ConfigError(f"{full} is {value!r}; expected a mapping of keys to values")
    else:
        yield name, value


def _parse(name: str, value: object) -> Any:
    key = KEYS[name]
    try:
        return key.parse(value)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"{SECTION}.{name} is {value!r}; expected {key.expected}") from error


@functools.cache  # so that each name is reported once
def _warn_unknown(name: str) -> None:
    near = difflib.get_close_matches(name, KEYS, n=1)
    advice = f"; did you mean {SECTION}.{near[0]}?" if near else ""
    logger.warning("unknown key %s.%s in Dask's configuration is ignored%s", SECTION, name, advice)


def _within(value: float, low: float, high: float) -> Any:
    if not low <= value <= high:
        raise ValueError(value)
    return value


def _count(value: object, high: int) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return _within(value, 1, high)


def _check_quantity(value: object, kinds: tuple[type, ...]) -> None:
    if type(value) not in kinds:
        raise TypeError(value)
    # Dask takes "" and "MiB" for 1 and 1 MiB.
    if isinstance(value, str) and not any(map(str.isdigit, value)):
        raise ValueError(value)


def _size(value: object, low: int = 0) -> int:
    _check_quantity(value, (int, str))
    return _within(parse_bytes(value), low, SIZE_BYTES_LIMIT)


def _seconds(value: object, low: float = 0.0, high: float = SECONDS_LIMIT) -> float:
    _check_quantity(value, (int, float, str))
    return float(_within(parse_timedelta(value, default="seconds"), low, high))


def _switch(value: object) -> bool:
    if type(value) is not bool:
        raise TypeError(value)
    return value


def _switch_or_auto(value: object) -> bool | None:
    return None if value == "auto" else _switch(value)


def _full_path(value: object) -> str | None:
    if value is None:
        return None
    if type(value) is not str:
        raise TypeError(value)
    if "\0" in value or not os.path.isabs(os.path.expanduser(value)):
        raise ValueError(value)
    return value


def _ucx_options(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return tuple(sorted(_ucx_option(name, setting) for name, setting in value.items()))


def _ucx_option(name: object, value: object) -> tuple[str, str]:
    """Write one setting as UCX reads it in the environment, which Dask gives in lower case."""
    if type(name) is not str or type(value) not in (str, int, float, bool):
        raise TypeError(name)
    name = name.upper().replace("-", "_")
    if not re.fullmatch(r"(?!UCX_)[A-Z][A-Z0-9_]*", name) or "\0" in str(value):
        raise ValueError(name)
    return name, ("n", "y")[value] if type(value) is bool else str(value)


def _threads(value: object) -> int:
    if value is None:
        return min(4, max(1, CPU_COUNT // 2))
    return _count(value, THREAD_COUNT_LIMIT)


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(value)
    return str(value)


def _pool_size(value: object) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[01]?\.\d*\s*", value):
        value = float(value)
    if type(value) is float:
        return _within(value, math.ulp(0.0), 1.0)
    return _size(value, 1)


def _message_size(value: object) -> int:
    return host_memory_bytes() if value is None else _size(value, LIMIT_BYTES_LEAST)


@functools.cache
def host_memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may use: the least of host, cgroup and ``ulimit``.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are mounted.
    """
    limits = (*_cgroup_limits(root), *_resource_limits(), SIZE_BYTES_LIMIT)
    return min(psutil.virtual_memory().total, *limits)


def _resource_limits() -> Iterator[int]:
    # Of RLIMIT_RSS the kernel takes no notice, but Dask does.
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_RSS):
        limit, _ = resource.getrlimit(kind)
        if limit > 0:  # RLIM_INFINITY is -1
            yield limit


def _cgroup_limits(root: Path) -> Iterator[int]:
    # Each ancestor of the group limits it too, see cgroups(7).
    for base, group, file in _cgroups(root):
        for ancestor in (group, *group.parents):
            try:
                yield int((base / ancestor.relative_to("/") / file).read_text())
            except (OSError, ValueError):  # not mounted here, or "max"
                continue


def _cgroups(root: Path) -> Iterator[tuple[Path, PurePosixPath, str]]:
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield mounts, PurePosixPath(group), "memory.max"
        elif "memory" in controllers.split(","):
            yield mounts / "memory", PurePosixPath(group), "memory.limit_in_bytes"


SIZE = "a size in bytes, such as 67108864 or '64 MiB'"
TIME = "a time, such as '10s', '500 ms' or a number of seconds"
KEYS = {
    "pool.max-idle": Key(
        "pool_max_idle_bytes", _size, f"{SIZE}, at most {SIZE_BYTES_LIMIT}; 0 keeps none"
    ),
    "pool.idle-timeout": Key("pool_idle_timeout_seconds", _seconds, TIME),
    "engine.threads": Key(
        "engine_thread_count",
        _threads,
        f"a whole number from 1 to {THREAD_COUNT_LIMIT}, or null to choose by the CPUs",
    ),
    "engine.busy-poll": Key(
        "busy_poll_seconds",
        functools.partial(_seconds, high=BUSY_POLL_SECONDS_LIMIT),
        f"{TIME}, at most {BUSY_POLL_SECONDS_LIMIT}; 0 for never",
    ),
    "stream.inline": Key("stream_inline_bytes", _size, SIZE),
    "stream.bulk": Key("stream_bulk_bytes", _size, SIZE),
    "unix-sockets": Key("unix_sockets", _switch, "true or false"),
    "cma.enabled": Key("cma_enabled", _switch, "true or false"),
    "cma.threshold": Key(
        "cma_threshold_bytes",
        functools.partial(_size, low=OFFER_BYTES_LEAST),
        f"{SIZE}, at least {OFFER_BYTES_LEAST}",
    ),
    "cma.allow-ptrace": Key("cma_allow_ptrace", _switch, "true or false"),
    "ucx.enabled": Key("ucx_enabled", _switch_or_auto, "auto, true or false"),
    "ucx.library": Key(
        "ucx_library", _full_path, "null, or the full path of a libucp.so.0 or of its folder"
    ),
    "ucx.options": Key(
        "ucx_options",
        _ucx_options,
        "a mapping of UCX's settings, named without UCX_, to text or numbers",
    ),
    "gpu.enabled": Key("gpu_enabled", _switch_or_auto, "auto, true or false"),
    "gpu.chunk": Key(
        "gpu_chunk_bytes",
        functools.partial(_size, low=CHUNK_BYTES_LEAST),
        f"{SIZE}, at least {CHUNK_BYTES_LEAST}",
    ),
    "gpu.allocator": Key(
        "gpu_allocator", functools.partial(_choice, choices=ALLOCATORS), " or ".join(ALLOCATORS)
    ),
    "gpu.pool": Key(
        "gpu_pool_size",
        _pool_size,
        f"{SIZE}, above 0, or a fraction of the GPU's memory such as 0.8, or null for none",
    ),
    "limits.frames": Key(
        "frame_count_limit",
        functools.partial(_count, high=FRAME_COUNT_LIMIT),
        f"a whole number from 1 to {FRAME_COUNT_LIMIT}",
    ),
    "limits.header": Key(
        "header_bytes_limit",
        functools.partial(_size, low=LIMIT_BYTES_LEAST),
        f"{SIZE}, at least {LIMIT_BYTES_LEAST}",
    ),
    "limits.message": Key(
        "message_bytes_limit",
        _message_size,
        f"{SIZE}, at least {LIMIT_BYTES_LEAST}, or null for this process's memory",
    ),
    "history.file": Key("history_file", _full_path, "null, or the full path of a file"),
    "history.size": Key(
        "history_size_bytes",
        functools.partial(_size, low=HISTORY_BYTES_LEAST),
        f"{SIZE}, at least {HISTORY_BYTES_LEAST}",
    ),
    "history.interval": Key(
        "history_interval_seconds", functools.partial(_seconds, low=0.1), f"{TIME}, at least 0.1 s"
    ),
    "timeouts.handshake": Key(
        "handshake_timeout_seconds",
        functools.partial(_seconds, low=math.ulp(0.0)),
        f"{TIME}, above 0",
    ),
    "timeouts.stalled": Key("stalled_timeout_seconds", _seconds, f"{TIME}; 0 for no limit"),
    "timeouts.close": Key("close_timeout_seconds", _seconds, TIME),
}

_defaults = yaml.safe_load(Path(__file__).with_name("dask_fabric.yaml").read_text())
DEFAULTS = dict(_flatten(_defaults[SECTION], ""))
dask.config.update_defaults(_defaults)
_cached: tuple[str, Settings | None] = ("", None)

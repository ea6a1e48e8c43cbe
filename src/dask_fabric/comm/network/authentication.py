"""How this process proves who it is: by a key, by MUNGE, or not at all."""

from __future__ import annotations

from dask_fabric.comm.network import munge, shared_key
from dask_fabric.config import Settings
from dask_fabric.wire.authentication import Method
from dask_fabric.wire.hello import MUNGE


def current(settings: Settings) -> Method | None:
    """Give the method of this process, or None if it has none and needs none.

    Raises
    ------
    ConfigError
        The key cannot be used, or is missing where one is required.
    """
    if settings.auth_method == MUNGE:
        return munge.method(settings)
    return shared_key.current(settings)


def is_recent(settings: Settings) -> bool:
    """Whether `current` gives what is true now. If not, wait for `prepare`."""
    return settings.auth_method == MUNGE or shared_key.is_recent(settings)


async def has_changed(settings: Settings) -> bool:
    """Whether what was true for the last connection may not be for the next."""
    return settings.auth_method != MUNGE and await shared_key.has_changed(settings)


async def prepare(settings: Settings) -> Method | None:
    """Give the method of this process, once it is known that it can be used, with recent keys.

    Raises
    ------
    ConfigError
        As from `current`, or munged cannot be used.
    """
    if settings.auth_method == MUNGE:
        await munge.prepare(settings)
    elif not shared_key.is_recent(settings):
        await shared_key.refresh(settings)
    return current(settings)

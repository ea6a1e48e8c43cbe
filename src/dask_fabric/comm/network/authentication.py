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


async def prepare(settings: Settings) -> Method | None:
    """Give the method of this process, once it is known that it can be used.

    Raises
    ------
    ConfigError
        As from `current`, or munged cannot be used.
    """
    if settings.auth_method == MUNGE:
        await munge.prepare(settings)
    return current(settings)

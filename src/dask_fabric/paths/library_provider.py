"""The base class for providers of paths that need a library, found and started at run time."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from dask_fabric.paths.provider import Description, Provider


class LibraryProvider(Provider):
    """Answers for a library of which each process runs at most one."""

    def __init__(self) -> None:
        # The last description, and what it describes: returned again while that runs.
        self._described: tuple[Any, Description] = None, Description()

    def _local(self) -> ModuleType:
        """Give the module that finds and starts the library; imported late, for it is large."""
        raise NotImplementedError

    def _found(self) -> Callable[..., tuple[Any, str]]:
        """Give the module's function for this process's library, or None and the reason."""
        raise NotImplementedError

    def _description_of(self, local: Any) -> Description:
        """Give the description of a library that runs."""
        raise NotImplementedError

    def unwanted(self, settings: Any, insists: bool) -> str:
        return self._local().unwanted(settings, insists)

    async def prepare(self, settings: Any, insists: bool, host: str = "") -> str:
        await self._local().find(settings, insists, host)
        return self._found()(settings, True, wait=False)[1] if insists else ""

    def describe(self, settings: Any, insists: bool) -> Description | str:
        local, reason = self._found()(settings, insists, wait=False)
        if local is None:
            return reason
        if self._described[0] is not local:
            self._described = local, self._description_of(local)
        return self._described[1]

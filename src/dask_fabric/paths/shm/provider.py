"""Shared memory: a receiver maps large frames of a process of its host, and nothing is copied."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dask_fabric.errors import UnavailableError
from dask_fabric.keys import Section, optional_size, size, switch
from dask_fabric.paths import kernel
from dask_fabric.paths.provider import Advice, Candidate, Description, Peer, Provider

_THRESHOLD_BYTES_LEAST = 64 << 10
_PART_OF_MEMORY = 2  # a half
_COLLAPSES = (6, 1)  # since this Linux, MADV_COLLAPSE makes huge pages whatever the setting


class SHMProvider(Provider):
    """The path ``shm``."""

    name = "shm"
    title = "shared memory"
    rank = 10
    takes_only = "arrays in memory files"
    copies = False
    within_host = True
    section = Section(
        "Frames within a host lie in memory files, and are mapped by their receiver.",
        {
            "enabled": switch(
                "enabled",
                True,
                "",
                "Within a host, `fabric://` without TLS lets receivers map large frames from a "
                "memory file of the sender, without a copy.",
            ),
            "results": switch(
                "shares_results",
                True,
                "also arrays that tasks make",
                "Large arrays that NumPy makes in the tasks of a worker lie in the memory file as "
                "well.",
            ),
            "threshold": size(
                "threshold_bytes",
                "1 MiB",
                "frames from this size on lie in memory files",
                "Frames from this size on are received into memory files, and mapped from there. "
                "At least 64 KiB.",
                least=_THRESHOLD_BYTES_LEAST,
            ),
            "max": optional_size(
                "most_bytes",
                "the most that one process has in its memory file",
                "Most bytes of the memory file of one process, with what peers still have mapped. "
                "`null`: half of the memory limit of the worker; without one, of the memory of the "
                "host, or of its cgroup.",
            ),
        },
        "within a host, frames are mapped from a memory file of their sender",
    )

    def __init__(self) -> None:
        self._described: Description | None = None
        self._is_enabled = False
        self._limit_bytes = 0  # of a worker in this process
        self._of_process: Any = None  # until `load`: an import costs more than all else here
        self._path: Any = None

    def load(self) -> None:
        from dask_fabric.paths.shm import endpoint, exchange

        self._of_process, self._path = exchange.of_process, endpoint.SHMPath

    def configure(self, settings: Any) -> None:
        from dask_fabric.config.memory import host_memory_bytes
        from dask_fabric.memory import files, pool

        most_bytes = settings.most_bytes
        if most_bytes is None:
            most_bytes = (self._limit_bytes or host_memory_bytes()) // _PART_OF_MEMORY
        # Not before a comm offers this path: under TLS nobody could map what lies in the file.
        is_enabled = settings.enabled and self._described is not None
        if is_enabled is not self._is_enabled:
            pool.trim(0)  # idle slabs lie elsewhere, and would be reused
            self._is_enabled = is_enabled
        files.configure(
            is_enabled=is_enabled,
            threshold_bytes=settings.threshold_bytes,
            most_bytes=most_bytes,
        )

    def _exchange(self) -> Any:
        """Give the exchange of this process, or the reason why there is none."""
        try:
            return self._of_process()
        except UnavailableError as error:
            return str(error)

    def unwanted(self, settings: Any, insists: bool) -> str:
        return "" if settings.enabled else "fabric.shm.enabled is false in its configuration"

    def describe(self, settings: Any, insists: bool) -> Description | str:
        exchange = self._exchange()
        if isinstance(exchange, str):
            return exchange
        if self._described is None or self._described["id"] != exchange.id:
            self._described = Description(id=exchange.id)
            self.configure(settings)
        return self._described

    def candidate(
        self, description: Mapping[str, Any], settings: Any, sock: socket.socket
    ) -> Candidate:
        return _Candidate(description, settings.threshold_bytes, self._of_process(), self._path)

    def serve(self, settings: Any, memory_limit_bytes: int, runs_tasks: bool) -> None:
        from dask_fabric.memory import arrays

        if not settings.enabled:
            return
        if memory_limit_bytes > self._limit_bytes:
            self._limit_bytes = memory_limit_bytes
            self.configure(settings)
        if settings.shares_results and runs_tasks:
            arrays.share_results()

    def new_frame(self, nbytes: int) -> Any:
        from dask_fabric.memory import arrays

        return arrays.new_array(nbytes)

    def statistics(self) -> Mapping[str, Any] | None:
        from dask_fabric.memory import files

        found = files.statistics()
        return found if any(found.values()) else None

    # ---- the doctor

    def advice(self, facts: Any) -> Iterator[Advice]:
        setting = facts.limits.shmem_huge_pages
        if facts.configuration.value("shm.enabled") is not True:
            return
        makes_them_anyway = kernel.version(facts.host.kernel or "") >= _COLLAPSES
        if setting == "deny" or (setting == "never" and not makes_them_anyway):
            yield Advice(
                "huge pages of memory files",
                "they are switched off, so arrays there take longer to write, share and read",
                "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
            )

    def remedy(self, facts: Any) -> str:
        if facts.configuration.value("shm.enabled") is not True:
            return "set fabric.shm.enabled: true"
        return ""

    def check(self, description: Mapping[str, Any]) -> bool:
        found = description.get("id")
        return type(found) is int and 0 < found < 1 << 63


class _Candidate(Candidate):
    """The path for one connection."""

    def __init__(
        self, description: Mapping[str, Any], threshold_bytes: int, exchange: Any, path: Any
    ) -> None:
        super().__init__(description)
        self._threshold_bytes, self._exchange, self._path = threshold_bytes, exchange, path

    def probe(self, peer: Peer) -> str:
        return self._exchange.attach(peer.description["id"])

    def open(self, peer: Peer, memory: Sequence[str]) -> Any:
        return self._path(peer.description["id"], self._exchange.attach, self._threshold_bytes)


PROVIDER = SHMProvider()

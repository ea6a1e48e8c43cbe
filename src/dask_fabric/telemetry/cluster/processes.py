"""Collecting the figures of every process of a cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed import Client

from dask_fabric.telemetry.heartbeat import OPERATION


@dataclass(frozen=True)
class Process:
    """One process of a cluster.

    Attributes
    ----------
    role : {"worker", "scheduler", "client"}
    name : str
        Its address; for the client, host name and process id.
    rows : list of dict or None
        From `dask_fabric.telemetry.registry.rows`; None if dask-fabric is missing or too old there.
    reason : str
        Why there are no rows.
    """

    role: str
    name: str
    rows: list[dict[str, Any]] | None
    reason: str = ""


class Collector:
    """Collects the figures of the workers, the scheduler and this process, once or repeatedly.

    A process is first asked by a function that is sent to it, as it may lack this package; Dask
    logs that. If it has the operation `OPERATION`, it is asked by that from then on.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._processes: dict[str, tuple] = {}  # by address, of those that have the operation

    async def collect(self) -> list[Process]:
        """Ask all processes; this must run in the event loop of the client.

        Returns
        -------
        list of Process
            Workers in the same process appear once.
        """
        own = _question()()
        scheduler = self._client.scheduler
        assert scheduler is not None  # the client is connected
        answers = await self._ask_workers(scheduler)
        told = [("worker", address, answer) for address, answer in sorted(answers.items())]
        told.append(("scheduler", str(scheduler.address), await self._ask_scheduler(scheduler)))
        told.append(("client", f"{socket.gethostname()}:{os.getpid()}", own))
        return _once_each(told)

    async def _ask_workers(self, scheduler: Any) -> dict[str, Any]:
        workers = await scheduler.ncores()
        known = [address for address in workers if address in self._processes]
        new = [address for address in workers if address not in self._processes]
        answers: dict[str, Any] = {}
        if known:
            message = {"op": OPERATION}
            rows = await scheduler.broadcast(msg=message, workers=known, on_error="return")
            answers = {address: self._answer(address, found) for address, found in rows.items()}
        if new:
            found = await self._client.run(_question(), workers=new, on_error="return")
            answers |= {address: self._note(address, answer) for address, answer in found.items()}
        return answers

    async def _ask_scheduler(self, scheduler: Any) -> Any:
        try:
            if scheduler.address in self._processes:
                return self._answer(scheduler.address, await getattr(scheduler, OPERATION)())
            answer = await self._client.run_on_scheduler(_question())
        except Exception as exc:  # any error of the scheduler
            return exc
        return self._note(scheduler.address, answer)

    def _note(self, address: str, answer: Any) -> Any:
        if not isinstance(answer, BaseException):
            process, _, has_operation = answer
            if has_operation:
                self._processes[address] = process
        return answer

    def _answer(self, address: str, rows: Any) -> Any:
        return rows if isinstance(rows, BaseException) else (self._processes[address], rows, True)


async def ask(client: Client) -> list[Process]:
    """Collect the figures of all processes once; see `Collector.collect`."""
    return await Collector(client).collect()


def _question() -> Callable[..., tuple[tuple, list[dict[str, Any]] | None, bool]]:
    """Give a function that is pickled by value: other processes may lack this module or version."""
    operation = OPERATION

    def figures(dask_worker: Any = None, dask_scheduler: Any = None) -> tuple[tuple, Any, bool]:
        import os
        import socket

        # Containers may have equal host names, and equal process ids in their namespaces.
        process = [socket.gethostname(), os.getpid()]
        try:
            process.append(os.stat("/proc/self/ns/pid").st_ino)
            with open("/proc/sys/kernel/random/boot_id") as file:
                process.append(file.read())
        except OSError:
            pass
        server = dask_worker or dask_scheduler
        has_operation = operation in getattr(server, "handlers", ())
        try:
            from dask_fabric.telemetry.registry import rows
        except ImportError:
            return tuple(process), None, False
        return tuple(process), rows(), has_operation

    return figures


def _once_each(answers: list[tuple[str, str, Any]]) -> list[Process]:
    seen: set[tuple] = set()
    processes = []
    for role, name, answer in answers:
        if isinstance(answer, BaseException):
            processes.append(Process(role, name, None, f"{type(answer).__name__}: {answer}"))
            continue
        process, rows, _ = answer
        if process not in seen:
            seen.add(process)
            reason = "" if rows is not None else "dask-fabric is not installed there, or is older"
            processes.append(Process(role, name, rows, reason))
    return processes

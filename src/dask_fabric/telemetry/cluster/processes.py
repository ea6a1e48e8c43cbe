"""Asking every process of a cluster for its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed import Client


@dataclass(frozen=True)
class Process:
    """One process of a cluster.

    Attributes
    ----------
    role : {"worker", "scheduler", "client"}
    name : str
        Its address; that of the host and the number of the process, for the client.
    rows : list of dict or None
        As from `dask_fabric.telemetry.registry.rows`; None where it has no dask-fabric that tells.
    reason : str
        Why there are no rows.
    """

    role: str
    name: str
    rows: list[dict[str, Any]] | None
    reason: str = ""


async def ask(client: Client) -> list[Process]:
    """Ask the workers, the scheduler and this process.

    Parameters
    ----------
    client : distributed.Client
        Called in its event loop.

    Returns
    -------
    list of Process
        Workers that share a process are one: the figures are of processes.
    """
    question = _question()
    own_process, own_rows = question()
    told = await client.run(question, on_error="return")
    processes = [("worker", address, answer) for address, answer in sorted(told.items())]
    assert client.scheduler is not None  # it has asked the workers
    scheduler = client.scheduler.address
    try:
        processes.append(("scheduler", scheduler, await client.run_on_scheduler(question)))
    except Exception as exc:  # whatever became of the question there
        processes.append(("scheduler", scheduler, exc))
    processes.append(("client", own_process, (own_process, own_rows)))
    return _once_each(processes)


def _question() -> Callable[[], tuple[str, list[dict[str, Any]] | None]]:
    """Give a function that is sent as it is: not every process has this module, or this version."""

    def figures() -> tuple[str, Any]:
        import os
        import socket

        process = f"{socket.gethostname()}:{os.getpid()}"
        try:
            from dask_fabric.telemetry.registry import rows
        except ImportError:
            return process, None
        return process, rows()

    return figures


def _once_each(answers: list[tuple[str, str, Any]]) -> list[Process]:
    seen = set()
    processes = []
    for role, name, answer in answers:
        if isinstance(answer, BaseException):
            processes.append(Process(role, name, None, f"{type(answer).__name__}: {answer}"))
            continue
        process, rows = answer
        if process not in seen:
            seen.add(process)
            reason = "" if rows is not None else "dask-fabric is not installed there, or is older"
            processes.append(Process(role, name, rows, reason))
    return processes

"""Collecting the figures of every process of a cluster."""

from __future__ import annotations

import os
import socket
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


async def ask(client: Client) -> list[Process]:
    """Collect the figures of the workers, the scheduler and this process.

    Parameters
    ----------
    client : distributed.Client
        This must run in its event loop.

    Returns
    -------
    list of Process
        Workers in the same process appear once.
    """
    question = _question()
    own = question()
    answers = await client.run(question, on_error="return")
    processes = [("worker", address, answer) for address, answer in sorted(answers.items())]
    assert client.scheduler is not None  # `client.run` has used it
    scheduler = client.scheduler.address
    try:
        processes.append(("scheduler", scheduler, await client.run_on_scheduler(question)))
    except Exception as exc:  # any error of the scheduler
        processes.append(("scheduler", scheduler, exc))
    processes.append(("client", f"{socket.gethostname()}:{os.getpid()}", own))
    return _once_each(processes)


def _question() -> Callable[[], tuple[tuple, list[dict[str, Any]] | None]]:
    """Give a function that is pickled by value: other processes may lack this module or version."""

    def figures() -> tuple[tuple, Any]:
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
        try:
            from dask_fabric.telemetry.registry import rows
        except ImportError:
            return tuple(process), None
        return tuple(process), rows()

    return figures


def _once_each(answers: list[tuple[str, str, Any]]) -> list[Process]:
    seen: set[tuple] = set()
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

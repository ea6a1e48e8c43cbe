"""The current traffic of a cluster: the difference of two samples of its figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dask_fabric.telemetry import waits
from dask_fabric.telemetry.cluster.processes import Process

_SLOWEST_SHOWN = 8
_LEAST_BYTES = 1 << 20  # per pair: with less traffic its speed means nothing


@dataclass(frozen=True)
class Rate:
    """The traffic of one process and path, per second between the samples.

    Attributes
    ----------
    waits : dict of str to float
        Seconds waited per second, by all transfers together.
    """

    role: str
    process: str
    path: str
    sent_bytes_per_second: float
    received_bytes_per_second: float
    messages_per_second: float
    fallbacks: int
    waits: dict[str, float]


@dataclass(frozen=True)
class Pair:
    """How fast one process received large frames from one peer, since its start."""

    process: str
    peer: str
    path: str
    received_bytes: int
    bytes_per_second: float


def rates(before: Iterable[Process], after: Iterable[Process], seconds: float) -> list[Rate]:
    """Give the traffic between two samples.

    Parameters
    ----------
    before, after : iterable of Process
    seconds : float
        The time between the samples.
    """
    old = {(process.name, path): sums for process, path, sums in _by_path(before)}
    found = []
    for process, path, sums in _by_path(after):
        first = old.get((process.name, path), {})
        moved = {key: max(0, value - first.get(key, 0)) for key, value in sums.items()}
        if not sums["bytes_sent"] + sums["bytes_received"]:
            continue  # a path that was chosen, but has carried nothing yet
        found.append(
            Rate(
                process.role,
                process.name,
                path,
                moved["bytes_sent"] / seconds,
                moved["bytes_received"] / seconds,
                (moved["messages_sent"] + moved["messages_received"]) / seconds,
                sums["fallbacks_sent"] + sums["fallbacks_received"],
                {wait.name: moved[wait.field] / seconds for wait in waits.ALL},
            )
        )
    return found


def _by_path(processes: Iterable[Process]) -> list[tuple[Process, str, dict[str, Any]]]:
    """Sum up the numbers of each process over its peers."""
    found = []
    for process in processes:
        sums: dict[str, dict[str, Any]] = {}
        for row in process.rows or ():
            total = sums.setdefault(row["path"], {})
            for key, value in row.items():
                if isinstance(value, (int, float)):
                    total[key] = total.get(key, 0) + value
        found += [(process, path, total) for path, total in sums.items()]
    return found


def slowest(processes: Iterable[Process]) -> list[Pair]:
    """Give the pairs with the slowest bulk transfers, among those with enough traffic."""
    pairs = [
        Pair(
            process.name,
            row["peer"],
            row["path"],
            row["bytes_received"],
            row["bytes_received"] / row["receive_seconds"],
        )
        for process in processes
        for row in process.rows or ()
        if row["bytes_received"] >= _LEAST_BYTES and row["receive_seconds"] > 0
    ]
    return sorted(pairs, key=lambda pair: pair.bytes_per_second)[:_SLOWEST_SHOWN]

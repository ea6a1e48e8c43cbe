"""The heartbeat reports of all workers, as the dashboard shows them: traffic between workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_fabric.telemetry import waits
from dask_fabric.telemetry.history import reports
from dask_fabric.telemetry.history.reports import Row

WORKERS_SHOWN = 64
_WAITS = [wait.name for wait in waits.REPORTED]


@dataclass
class PathSum:
    """The traffic of all workers by one path, and their waiting times in seconds."""

    sent_bytes: int = 0
    received_bytes: int = 0
    fallback_count: int = 0
    waits: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_WAITS, 0.0))

    @property
    def moved_bytes(self) -> int:
        return self.sent_bytes + self.received_bytes


@dataclass
class Cell:
    """The bytes that one worker has sent to another, by path."""

    bytes_by_path: dict[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(self.bytes_by_path.values())

    @property
    def path(self) -> str:
        """The path that has carried most of the bytes."""
        return max(self.bytes_by_path, key=self.bytes_by_path.__getitem__)


@dataclass
class Report:
    """The reports of all workers.

    Attributes
    ----------
    cells : dict of (str, str) to Cell
        By sender and receiver, both names of workers.
    paths : dict of str to PathSum
    silent : list of str
        Workers whose heartbeats contain no report.
    names : list of str
        The workers to show: the busiest ones.
    """

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    paths: dict[str, PathSum] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def gather(workers: Iterable[tuple[str, str, Any]]) -> Report:
    """Combine the reports of workers.

    Parameters
    ----------
    workers : iterable of (str, str, object)
        The name of a worker, its address, and the untrusted report in its last heartbeat.
    """
    workers = list(workers)
    names = {address: name for name, address, _ in workers}
    report = Report()
    processes = set()
    for name, _, report_sent in workers:
        found = reports.read(report_sent)
        if found is None:
            report.silent.append(name)
        elif found.process not in processes:  # workers of one process send the same report
            processes.add(found.process)
            for row in found.rows:
                _count(report, name, names, row)
    report.names = _busiest(report.cells, names.values())
    return report


def _count(report: Report, name: str, names: Mapping[str, str], row: Row) -> None:
    total = report.paths.setdefault(row.path, PathSum())
    total.sent_bytes += row.sent_bytes
    total.received_bytes += row.received_bytes
    total.fallback_count += row.fallback_count
    for wait, seconds in zip(_WAITS, row.waits, strict=True):
        total.waits[wait] += seconds
    if row.peer in names:  # the connecting side: it counts both, and the other has no name for it
        for key, nbytes in (
            ((name, names[row.peer]), row.sent_bytes),
            ((names[row.peer], name), row.received_bytes),
        ):
            by_path = report.cells.setdefault(key, Cell()).bytes_by_path
            by_path[row.path] = by_path.get(row.path, 0) + nbytes


def _busiest(cells: Mapping[tuple[str, str], Cell], names: Iterable[str]) -> list[str]:
    moved = dict.fromkeys(names, 0)
    for (sender, receiver), cell in cells.items():
        moved[sender] += cell.nbytes
        moved[receiver] += cell.nbytes
    shown = set(sorted(moved, key=moved.__getitem__, reverse=True)[:WORKERS_SHOWN])
    return sorted(shown, key=lambda name: (len(name), name))  # 9 before 10

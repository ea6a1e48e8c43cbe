"""What workers report with their heartbeats, as the page shows it: who moves how much to whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

WORKERS_SHOWN = 64
# Of one report: more than any worker sends (`dask_fabric.comm.heartbeat`).
_ROW_LIMIT = 256
_TEXT_LIMIT = 200
_WAITS = ("loop", "allocate", "wire", "peer", "serialize")


@dataclass
class PathSum:
    """What all workers together have moved by one path, and waited for, in seconds."""

    sent_bytes: int = 0
    received_bytes: int = 0
    fallback_count: int = 0
    waits: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_WAITS, 0.0))

    @property
    def moved_bytes(self) -> int:
        return self.sent_bytes + self.received_bytes


@dataclass
class Cell:
    """What one worker has sent to another, by path."""

    bytes_by_path: dict[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(self.bytes_by_path.values())

    @property
    def path(self) -> str:
        """The path that has carried most of it."""
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
        Workers whose heartbeats tell nothing.
    names : list of str
        The workers that are shown: those that moved most.
    """

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    paths: dict[str, PathSum] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def gather(workers: Iterable[tuple[str, str, Any]]) -> Report:
    """Bring the reports of workers together.

    Parameters
    ----------
    workers : iterable of (str, str, object)
        The name of a worker, its address, and what came with its last heartbeat.
    """
    workers = list(workers)
    names = {address: name for name, address, _ in workers}
    report = Report()
    processes = set()
    for name, _, told in workers:
        if not isinstance(told, Mapping) or "peers" not in told:
            report.silent.append(name)
            continue
        process = str(told.get("process"))
        if process not in processes:  # workers that share one report the same
            processes.add(process)
            for row in _rows(told["peers"]):
                _count(report, name, names, *row)
    report.names = _busiest(report.cells, names.values())
    return report


def _rows(told: Any) -> list[tuple]:
    """Give the rows that are what a worker sends; the rest is not trusted."""
    if not isinstance(told, (list, tuple)):
        return []
    return [tuple(row) for row in told[:_ROW_LIMIT] if _is_row(row)]


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, (list, tuple))
        and len(row) == 5 + len(_WAITS)
        and all(isinstance(text, str) and len(text) <= _TEXT_LIMIT for text in row[:2])
        and all(isinstance(value, (int, float)) for value in row[2:])
    )


def _count(
    report: Report,
    name: str,
    names: Mapping[str, str],
    peer: str,
    path: str,
    sent_bytes: int,
    received_bytes: int,
    fallback_count: int,
    *waits: float,
) -> None:
    total = report.paths.setdefault(path, PathSum())
    total.sent_bytes += sent_bytes
    total.received_bytes += received_bytes
    total.fallback_count += fallback_count
    for wait, seconds in zip(_WAITS, waits, strict=True):
        total.waits[wait] += seconds
    if peer in names:  # the one who has connected counts both directions; the other knows no name
        for key, nbytes in (
            ((name, names[peer]), sent_bytes),
            ((names[peer], name), received_bytes),
        ):
            by_path = report.cells.setdefault(key, Cell()).bytes_by_path
            by_path[path] = by_path.get(path, 0) + nbytes


def _busiest(cells: Mapping[tuple[str, str], Cell], names: Iterable[str]) -> list[str]:
    moved = dict.fromkeys(names, 0)
    for (sender, receiver), cell in cells.items():
        moved[sender] += cell.nbytes
        moved[receiver] += cell.nbytes
    shown = set(sorted(moved, key=moved.__getitem__, reverse=True)[:WORKERS_SHOWN])
    return sorted(shown, key=lambda name: (len(name), name))  # 10 behind 9

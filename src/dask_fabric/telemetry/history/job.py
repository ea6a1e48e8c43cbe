"""The summary of one job, from the reports of its workers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dask_fabric.telemetry import waits
from dask_fabric.telemetry.history import reports
from dask_fabric.telemetry.history.reports import Row
from dask_fabric.telemetry.history.summary import AMOUNT_LIMIT, Link, PathSummary, Summary

# Beyond these limits the least recently seen entries are dropped.
_PROCESS_LIMIT = 16384
_LINK_LIMIT = 65536
_WORKER_LIMIT = 65536
_PATH_LIMIT = 16
_SLOW_LINKS_KEPT = 8
_LINK_BYTES_LEAST = 8 << 20  # with less traffic a link's speed means nothing
_LINK_COUNT_LEAST = 3
_SLOW_PART = 1 / 3  # a link below this part of the upper quartile is slow
_STEPS = 8  # per power of two of a bandwidth: percentiles are right within 5 %
_MOST = AMOUNT_LIMIT // 2  # limit of any sum: only invented figures exceed it
_NUMBER_COUNT = 3 + len(waits.REPORTED)


@dataclass
class _Path:
    """Sums over all workers, and a histogram of the sampled bandwidth."""

    numbers: list[float] = field(default_factory=lambda: [0] * _NUMBER_COUNT)
    sampled_bytes: float = 0  # received until the last sample
    most: float = 0.0
    steps: Counter = field(default_factory=Counter)

    def sample(self, seconds: float) -> None:
        received_bytes = self.numbers[1] - self.sampled_bytes
        self.sampled_bytes = self.numbers[1]
        rate = received_bytes / seconds
        if rate > 0:
            self.most = max(self.most, rate)
            self.steps[round(math.log2(rate) * _STEPS)] += 1

    def percentile(self, part: float) -> float:
        rank = part * self.steps.total()
        for step in sorted(self.steps):
            rank -= self.steps[step]
            if rank <= 0:
                return min(self.most, 2 ** (step / _STEPS))
        return self.most


class Job:
    """The traffic of one scheduler's workers since its start.

    Parameters
    ----------
    scheduler : str
        Its address.
    interval_seconds : float
        The time between two samples.
    """

    def __init__(self, scheduler: str, interval_seconds: float) -> None:
        self.scheduler = scheduler[: reports.TEXT_LIMIT]
        self.interval_seconds = interval_seconds
        self._paths: dict[str, _Path] = {}
        self._last: dict[str, dict[str, list[float]]] = {}  # by process and path
        self._links: dict[tuple[str, str, str], tuple[int, float]] = {}
        self._workers: dict[str, None] = {}  # every address seen
        self._workers_total = 0
        self._unsampled_seconds = 0.0
        self._most_workers = self._most_silent = 0

    def take(self, sent: Iterable[tuple[str, Any]], worker_count: int = 0) -> int:
        """Add the reports of workers; give the number of workers without a report.

        Traffic of a process before its first report is not counted: it may belong to another
        scheduler.

        Parameters
        ----------
        sent : iterable of (str, object)
            The address of a worker, and the untrusted report in its last heartbeat.
        worker_count : int
            How many workers there are now; 0 if that is not known.
        """
        self._most_workers = max(self._most_workers, worker_count)
        silent_count = 0
        processes = set()
        for name, report in sent:
            address = name[: reports.TEXT_LIMIT]
            self._know(address)
            found = reports.read(report)
            if found is None:
                silent_count += 1
            elif found.process not in processes:  # workers of one process send the same report
                processes.add(found.process)
                self._count(found.process, found.rows)
                self._note_links(address, found.rows)
        return silent_count

    def sample(self, sent: list[tuple[str, Any]], seconds: float) -> None:
        """Add the reports of all current workers, *seconds* after the last sample."""
        self._most_silent = max(self._most_silent, self.take(sent, len(sent)))
        self._unsampled_seconds += seconds
        # Heartbeats are discrete, so a bandwidth over a short interval (at the end) is arbitrary.
        if self._unsampled_seconds >= self.interval_seconds / 2:
            for path in self._paths.values():
                path.sample(self._unsampled_seconds)
            self._unsampled_seconds = 0.0

    def _know(self, address: str) -> None:
        if address not in self._workers:
            self._workers_total += 1
            self._workers[address] = None
            _forget(self._workers, _WORKER_LIMIT)

    def _count(self, process: str, rows: list[Row]) -> None:
        by_path: dict[str, list[Row]] = {}
        for row in rows:
            by_path.setdefault(row.path, []).append(row)
        now: dict[str, list[float]] = {
            path: [*map(sum, [*zip(*some, strict=True)][2:])] for path, some in by_path.items()
        }
        before = self._last.pop(process, None)
        self._last[process] = now
        _forget(self._last, _PROCESS_LIMIT)
        if before is None:
            return
        for name, numbers in now.items():
            if name in self._paths or len(self._paths) < _PATH_LIMIT:
                path = self._paths.setdefault(name, _Path())
                for index, more in enumerate(_grown(before.get(name), numbers)):
                    path.numbers[index] += more

    def _note_links(self, address: str, rows: list[Row]) -> None:
        for row in rows:
            nbytes = int(row.sent_bytes + row.received_bytes)
            if nbytes >= _LINK_BYTES_LEAST and row.peer in self._workers:
                key = (address, row.peer, row.path)
                self._links.pop(key, None)
                self._links[key] = nbytes, row.wire_seconds + row.peer_seconds
        _forget(self._links, _LINK_LIMIT)

    def summary(self) -> Summary:
        """Give the summary so far."""
        return Summary(
            self.scheduler,
            self.interval_seconds,
            self._most_workers,
            self._workers_total,
            len({address.rpartition(":")[0] for address in self._workers}),
            self._most_silent,
            [_path_summary(name, path) for name, path in sorted(self._paths.items())],
            _slow(self._links),
        )


def _forget(known: dict, limit: int) -> None:
    while len(known) > limit:
        del known[next(iter(known))]


def _grown(before: list[float] | None, now: list[float]) -> list[float]:
    if before is None or now[0] + now[1] < before[0] + before[1]:  # another process with that name
        return now
    return [max(0, new - old) for old, new in zip(before, now, strict=True)]


def _path_summary(name: str, path: _Path) -> PathSummary:
    percentiles = (path.percentile(part) for part in (0.5, 0.9, 0.99))
    amounts = [min(one, _MOST) for one in (*path.numbers, *percentiles, path.most)]
    return PathSummary(name, *map(int, amounts[:3]), *amounts[3:])


def _slow(links: dict[tuple[str, str, str], tuple[int, float]]) -> list[Link]:
    """Give the links that are much slower than others of their path, the slowest first."""
    by_path: dict[str, list[Link]] = {}
    for (worker, peer, path), (nbytes, seconds) in links.items():
        if seconds > 0:
            link = Link(worker, peer, path, nbytes, min(nbytes / seconds, _MOST))
            by_path.setdefault(path, []).append(link)
    slow = []
    for found in by_path.values():
        found.sort(key=lambda link: link.bytes_per_second)
        good = found[len(found) * 3 // 4].bytes_per_second * _SLOW_PART
        if len(found) >= _LINK_COUNT_LEAST:
            slow += [link for link in found if link.bytes_per_second < good]
    return sorted(slow, key=lambda link: link.bytes_per_second)[:_SLOW_LINKS_KEPT]

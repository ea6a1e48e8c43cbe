"""Measuring in rounds, in which all columns take turns."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dask_fabric.bench.figures import Figure
from dask_fabric.bench.pairs import Hog
from dask_fabric.bench.results import Row
from dask_fabric.errors import PairError

_GROWTH = 10
_CPUS = sorted(os.sched_getaffinity(0))


class Site(Protocol):
    """Where a column is measured: a pair of processes, or a floor."""

    name: str
    pids: list[int]

    def can(self, verb: str, arguments: dict[str, Any]) -> bool: ...

    def ask(self, verb: str, hog: Hog, **arguments: Any) -> dict[str, Any]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Effort:
    """How long each figure is measured.

    Attributes
    ----------
    rounds : int
        Values of each column.
    round_seconds : float
        Approximate length of a round.
    """

    rounds: int = 5
    round_seconds: float = 0.5


def measure(
    figure: Figure, sites: Sequence[Site], effort: Effort, advance: Callable[..., None]
) -> list[Row]:
    """Measure one figure: in every round each column once, in rotating order.

    A site that fails is left out from then on; its rows contain the reason. *advance* is from
    `progress`.
    """
    rows = figure.rows()
    able = [site for site in sites if site.can(figure.verb, figure.arguments)]
    counts: dict[str, int] = {}
    for site in able:
        advance(0, f"{figure.name}: {site.name}")
        with _noting_failure(rows, site):
            _pin(site.pids, figure.pinned)
            counts[site.name] = _calibrate(site, figure, effort.round_seconds)
    for turn in range(effort.rounds):
        shift = turn % max(len(able), 1)
        for site in able[shift:] + able[:shift]:
            if site.name in counts and site.name not in rows[0].problems:
                advance(0, f"{figure.name}: round {turn + 1}, {site.name}")
                with _noting_failure(rows, site):
                    _add_round(rows, figure, site, counts[site.name])
    for site in able:
        _pin(site.pids, False)
    advance(len(able))
    return rows


@contextlib.contextmanager
def _noting_failure(rows: list[Row], site: Site) -> Iterator[None]:
    """Store the failure of a site in its rows."""
    try:
        yield
    except PairError as exc:
        for row in rows:
            row.problems[site.name] = str(exc)
            row.rounds.pop(site.name, None)


def _add_round(rows: list[Row], figure: Figure, site: Site, count: int) -> None:
    answer = site.ask(figure.verb, figure.hog, count=count, **figure.arguments)
    for row, value in zip(rows, figure.values(answer, count), strict=True):
        row.add(site.name, value)
    if "histogram" in answer:
        rows[0].add_histogram(site.name, answer["histogram"])


def _calibrate(site: Site, figure: Figure, seconds: float) -> int:
    """Warm up, and find the count that takes about *seconds*."""

    def elapsed() -> float:
        answer = site.ask(figure.verb, figure.hog, count=count, **figure.arguments)
        return max(answer.get("elapsed", answer["seconds"]), 1e-6)

    count = 1
    while True:
        lasted = elapsed()
        if lasted > seconds / 4:  # or a hiccup of the machine: repeat
            lasted = min(lasted, elapsed())
        if lasted > seconds / 4:
            return max(1, round(count * seconds / lasted))
        count = max(2 * count, min(_GROWTH * count, round(count * seconds / 2 / lasted)))


def _pin(pids: Sequence[int], wanted: bool) -> None:
    """Pin all threads of each process to a CPU of its own, or unpin them."""
    for pid, place in zip(pids, (0, -1), strict=False):
        cpus = {_CPUS[place]} if wanted else set(_CPUS)
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), cpus)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended: `ask` raises the error

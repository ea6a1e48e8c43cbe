"""A run on one host: protocols and floors side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from dask_fabric.bench import floors, perftest
from dask_fabric.bench.awake import awake_cpus
from dask_fabric.bench.figures import SCENARIOS, Extent, Figure, figures, size_name
from dask_fabric.bench.pairs import Pair, Protocol, Surroundings
from dask_fabric.bench.progress import Progress
from dask_fabric.bench.results import Row
from dask_fabric.bench.rounds import Effort, Site, measure
from dask_fabric.errors import BenchError, PairError

MEMORY = "memory"
PAIR_SCENARIOS = (*SCENARIOS, MEMORY)


@dataclass(frozen=True)
class Plan:
    """What is measured between two processes of this host.

    Attributes
    ----------
    scenarios : tuple of str
        Of `PAIR_SCENARIOS`.
    protocols : tuple of Protocol
        The first is the baseline.
    has_floors : bool
        Whether floors are measured beside them.
    message_count : int
        Of the scenario ``memory``.
    """

    scenarios: tuple[str, ...]
    protocols: tuple[Protocol, ...]
    extent: Extent
    effort: Effort = field(default_factory=Effort)
    has_floors: bool = True
    awake: bool = True
    message_count: int = 100
    around: Surroundings = field(default_factory=Surroundings)


def run(plan: Plan, stream: TextIO) -> tuple[list[Row], list[str]]:
    """Measure; give the rows, and what could not be measured.

    Raises
    ------
    BenchError
        None of the protocols works.
    """
    warnings: list[str] = []
    rows: list[Row] = []
    wanted = [name for name in plan.scenarios if name in SCENARIOS]
    with awake_cpus(plan.awake), contextlib.ExitStack() as stack:
        if set(wanted) - {"floor"}:
            pairs = _open(stack, [_opener(p, plan) for p in plan.protocols], warnings)
            if not pairs:
                raise BenchError("; ".join(warnings))
        else:
            pairs = []
        beside = _open(stack, _floors(plan), warnings)
        rows += _measure_all(figures(wanted, plan.extent), pairs, beside, plan.effort, stream)
        if MEMORY in plan.scenarios:
            rows += _memory(plan, warnings)
    return rows, warnings


def _opener(protocol: Protocol, plan: Plan) -> Callable[[], Site]:
    return lambda: Pair(protocol, plan.around)


def _floors(plan: Plan) -> list[Callable[[], Site]]:
    """What is to be opened beside the protocols."""
    if not plan.has_floors and "floor" not in plan.scenarios:
        return []
    largest = max(plan.extent.sizes)
    opened: list[Callable[[], Site]] = [
        floors.Sockets,
        lambda: floors.RemoteReads(largest),
        lambda: floors.MemoryCopies(largest),
    ]
    library = perftest.own_library()
    if library and ("floor" in plan.scenarios or any("ucx" in p.scheme for p in plan.protocols)):
        opened.append(lambda: floors.Perftest(library))
    return opened


def _open(
    stack: contextlib.ExitStack, openers: Sequence[Callable[[], Site]], warnings: list[str]
) -> list[Site]:
    """Open what can be opened."""
    opened = []
    for opener in openers:
        try:
            site = opener()
        except PairError as exc:
            warnings.append(f"left out: {exc}")
            continue
        stack.callback(site.close)
        opened.append(site)
    return opened


def _measure_all(
    wanted: Sequence[Figure],
    pairs: Sequence[Site],
    beside: Sequence[Site],
    effort: Effort,
    stream: TextIO,
) -> list[Row]:
    def sites(figure: Figure) -> list[Site]:
        """Who takes part: in the scenario of the floors, they alone."""
        able = [*([] if figure.scenario == "floor" else pairs), *beside]
        return [site for site in able if site.can(figure.verb, figure.arguments)]

    progress = Progress(sum(len(sites(figure)) for figure in wanted), stream)
    rows = []
    try:
        for figure in wanted:
            rows += measure(figure, sites(figure), effort, progress)
    finally:
        progress.close()
    return rows


def _memory(plan: Plan, warnings: list[str]) -> list[Row]:
    """Memory of a fresh receiver in the first tenth of many large messages, and in all of them."""
    nbytes, count = max(plan.extent.sizes), plan.message_count
    tenth = max(count // 10, 1)
    rows = [
        Row(MEMORY, f"{what} after {n:,} x {size_name(nbytes)}", "MB", False)
        for n in (tenth, count)
        for what in ("receiver's memory", "its peak")
    ]
    for protocol in plan.protocols:
        try:
            values = _memory_of(protocol, plan, (tenth, count - tenth), nbytes)
        except PairError as exc:
            warnings.append(f"left out: {exc}")
            continue
        for row, value in zip(rows, values, strict=True):
            row.add(protocol.name, value / 1e6)
    return rows


def _memory_of(protocol: Protocol, plan: Plan, counts: tuple[int, int], nbytes: int) -> list[float]:
    pair = Pair(protocol, plan.around)
    values = []
    try:
        for count in counts:
            pair.ask("send", count=count, nbytes=nbytes)
            values += pair.ask("memory")["memory_bytes"]
    finally:
        pair.close()
    return values

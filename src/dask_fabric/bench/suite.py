"""A run of the suite: protocols and floors on this host, or a running cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from dask_fabric import providers
from dask_fabric.bench import cluster, fi_pingpong, floors, machine, matrix, perftest, workloads
from dask_fabric.bench.awake import awake_cpus
from dask_fabric.bench.figures import SCENARIOS, Extent, Figure, figures, size_name
from dask_fabric.bench.pairs import NO_HOG, Pair, Protocol, Surroundings
from dask_fabric.bench.progress import progress
from dask_fabric.bench.results import Results, Row, noise_warnings
from dask_fabric.bench.rounds import Effort, Site, measure
from dask_fabric.bench.work.catalogue import WORKLOADS
from dask_fabric.errors import BenchError, PairError

FLOOR, MEMORY, MATRIX = "floor", "memory", "matrix"
ALL = (*SCENARIOS, MEMORY, MATRIX, *WORKLOADS)


@dataclass(frozen=True)
class Plan:
    """What is measured, and where.

    Attributes
    ----------
    scenarios : tuple of str
        Some of `ALL`.
    protocols : tuple of Protocol
        The protocols on this host; the first is the baseline.
    where : dict, optional
        The scheduler of a running cluster to measure instead, as for `Client`.
    between : tuple of str, optional
        The two workers of the cluster for scenarios other than the matrix.
    has_floors : bool
        Whether floors are measured too.
    message_count : int
        Messages of the scenario ``memory``.
    """

    scenarios: tuple[str, ...]
    protocols: tuple[Protocol, ...]
    extent: Extent
    effort: Effort = field(default_factory=Effort)
    where: dict[str, str | None] | None = None
    between: tuple[str, str] | None = None
    has_floors: bool = True
    awake: bool = True
    message_count: int = 100
    around: Surroundings = field(default_factory=Surroundings)
    work: workloads.Work = field(default_factory=workloads.Work)
    matrix: matrix.Effort = field(default_factory=matrix.Effort)

    def among(self, names: Container[str]) -> list[str]:
        """Give the planned scenarios that are in *names*."""
        return [name for name in self.scenarios if name in names]


def run(plan: Plan, options: dict, stream: TextIO) -> Results:
    """Run the plan.

    Raises
    ------
    BenchError
        Nothing can be measured.
    """
    results = Results(machine.facts(), options, [protocol.name for protocol in plan.protocols])
    watch = machine.NoiseWatch()
    if plan.where:
        _on_cluster(plan, plan.where, results, stream)
    else:
        _on_host(plan, results, stream)
        results.warnings += watch.warnings()
    results.warnings += noise_warnings(results.rows, results.protocols)
    return results


def _on_host(plan: Plan, results: Results, stream: TextIO) -> None:
    if MATRIX in plan.scenarios:
        raise BenchError("a matrix is measured on a running cluster: give its --scheduler")
    with awake_cpus(plan.awake):
        _between_processes(plan, results, stream)
        if MEMORY in plan.scenarios:
            results.rows += _memory(plan, results.warnings)
        wanted = plan.among(WORKLOADS)
        if wanted:
            own = [p for p in plan.protocols if p.is_own]
            rows, warnings = workloads.measure(wanted, plan.work, own, plan.around, stream)
            results.rows += rows
            results.warnings += warnings
    if not any(row.rounds for row in results.rows):
        problems = [
            f"{row.name}: {column}: {why}"
            for row in results.rows
            for column, why in row.problems.items()
        ]
        raise BenchError("; ".join([*results.warnings, *problems]) or "nothing could be measured")


def _between_processes(plan: Plan, results: Results, stream: TextIO) -> None:
    wanted = plan.among(SCENARIOS)
    if not wanted:
        return
    openers = [_opener(p, plan) for p in plan.protocols] if {*wanted} - {FLOOR} else []
    with contextlib.ExitStack() as stack:
        pairs = _open(stack, openers, results.warnings)
        if openers and not pairs:
            raise BenchError("; ".join(results.warnings))
        beside = _open(stack, _floors(plan), results.warnings)
        if "bandwidth" in wanted:
            pairs = _right(pairs, plan.extent.sizes, results.warnings)
        results.rows += _measure_all(
            figures(wanted, plan.extent), pairs, beside, plan.effort, stream
        )


def _right(pairs: Sequence[Site], sizes: Sequence[int], warnings: list[str]) -> list[Site]:
    """Give the pairs that can send arrays; raise if an array arrives changed."""
    right = []
    for pair in pairs:
        try:
            _check(pair, sizes)
        except PairError as exc:
            warnings.append(f"left out: {exc}")
            continue
        right.append(pair)
    if not right:
        raise BenchError("; ".join(warnings))
    return right


def _check(pair: Site, sizes: Sequence[int]) -> None:
    for nbytes in sizes:
        if not pair.ask("arrives", NO_HOG, nbytes=nbytes)["same"]:
            raise BenchError(f"{pair.name}://: {size_name(nbytes)} did not arrive as sent")


def _on_cluster(plan: Plan, where: dict[str, str | None], results: Results, stream: TextIO) -> None:
    if unfit := plan.among((FLOOR, MEMORY)):
        raise BenchError(f"{unfit[0]} is measured on one host: leave --scheduler out")
    module = plan.extent.module
    with cluster.connected(where) as client, cluster.prepared(client, module) as found:
        results.protocols = [found.scheme]
        if MATRIX in plan.scenarios:
            results.matrix = matrix.measure(found, plan.matrix, stream)
        wanted = figures(plan.among(SCENARIOS), plan.extent)
        if wanted:
            one, other = map(found.find, plan.between) if plan.between else found.two()
            results.options["between"] = [one.name, other.name]
            pair = cluster.WorkerPair(found, one, other)
            if "bandwidth" in plan.scenarios:
                _check(pair, plan.extent.sizes)
            results.rows += _measure_all(wanted, [pair], [], plan.effort, stream)
    if works := plan.among(WORKLOADS):
        results.rows += workloads.measure_on(where, works, plan.work, plan.around, stream)


def _opener(protocol: Protocol, plan: Plan) -> Callable[[], Site]:
    return lambda: Pair(protocol, plan.around)


def _floors(plan: Plan) -> list[Callable[[], Site]]:
    """Give the functions that open the floors."""
    if not plan.has_floors and FLOOR not in plan.scenarios:
        return []
    library = perftest.own_library()
    if plan.extent.module == "cupy":
        return [lambda: floors.DevicePerftest(library)] if library else []
    largest = max(plan.extent.sizes)
    opened: list[Callable[[], Site]] = [
        floors.Sockets,
        lambda: floors.RemoteReads(largest),
        lambda: floors.MemoryCopies(largest),
    ]
    if FLOOR in plan.scenarios or any(not one.copies for one in providers.found()):
        opened.append(lambda: floors.Mappings(largest))
    if library and (FLOOR in plan.scenarios or any("ucx" in p.scheme for p in plan.protocols)):
        opened.append(lambda: floors.Perftest(library))
    if FLOOR in plan.scenarios or any("ofi" in p.scheme for p in plan.protocols):
        chosen = fi_pingpong.choice()
        if chosen is not None:
            opened.append(lambda: floors.FiPingpong(chosen))
    return opened


def _open(
    stack: contextlib.ExitStack, openers: Sequence[Callable[[], Site]], warnings: list[str]
) -> list[Site]:
    """Open the sites; warn of those that fail."""
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
        """Give the sites for a figure; the scenario of the floors has only floors."""
        able = [*([] if figure.scenario == FLOOR else pairs), *beside]
        return [site for site in able if site.can(figure.verb, figure.arguments)]

    with progress(sum(len(sites(figure)) for figure in wanted), stream) as advance:
        return [row for figure in wanted for row in measure(figure, sites(figure), effort, advance)]


def _memory(plan: Plan, warnings: list[str]) -> list[Row]:
    """Measure the memory of a fresh receiver after a tenth of the messages, and after all."""
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

"""Workloads on whole clusters, one protocol after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from dask_fabric.bench.figures import size_name
from dask_fabric.bench.pairs import Program, Protocol, Surroundings, child_environment
from dask_fabric.bench.progress import progress
from dask_fabric.bench.results import Row
from dask_fabric.bench.work.catalogue import WORKLOADS
from dask_fabric.bench.work.extent import Extent
from dask_fabric.errors import PairError

_START_SECONDS = 120.0
_RUN_SECONDS = 600.0
_REPORT_SECONDS = 60.0


@dataclass(frozen=True)
class Work:
    """The workloads' sizes and repetitions.

    Attributes
    ----------
    runs : int
        Runs of each workload on each cluster, after a warm-up.
    rounds : int
        Fresh clusters of each protocol.
    worker_count : int
        Workers of a new cluster.
    profile : str, optional
        The file for Dask's performance report of the last round; the name of the protocol is
        inserted before its suffix.
    """

    runs: int = 2
    rounds: int = 2
    worker_count: int = 2
    profile: str | None = None
    extent: Extent = field(default_factory=Extent)


def _row(name: str, extent: Extent) -> Row:
    one = WORKLOADS[name]
    parameters = asdict(extent)
    fetch, busy_fetch = size_name(extent.fetch_bytes), size_name(extent.busy_fetch_bytes)
    figure = one.about.format(**parameters, fetch=fetch, busy_fetch=busy_fetch)
    return Row("workloads", figure, one.unit, one.unit.endswith("/s"), parameters=parameters)


def measure(
    names: Sequence[str],
    work: Work,
    protocols: Sequence[Protocol],
    around: Surroundings,
    stream: TextIO,
) -> tuple[list[Row], list[str]]:
    """Run the workloads on new clusters: in every round one of each protocol."""
    found = [_row(name, work.extent) for name in names]
    warnings = []
    lost: set[str] = set()
    with progress(len(names) * len(protocols) * work.rounds, stream) as advance:
        for turn in range(work.rounds):
            shift = turn % len(protocols)
            for protocol in [*protocols[shift:], *protocols[:shift]]:
                if protocol.name in lost:
                    continue
                last = turn == work.rounds - 1
                config = {**_config(names, work, protocol.name, last), "scheme": protocol.scheme}
                try:
                    _on_cluster(config, protocol.name, found, around, advance)
                except PairError as exc:
                    warnings.append(f"left out: {exc}")
                    lost.add(protocol.name)
    return found, warnings


def measure_on(
    where: dict[str, str | None],
    names: Sequence[str],
    work: Work,
    around: Surroundings,
    stream: TextIO,
) -> list[Row]:
    """Run the workloads on a running cluster; its protocol names the column.

    Raises
    ------
    PairError
        The cluster cannot be used.
    """
    found = [_row(name, work.extent) for name in names]
    with progress(len(names), stream) as advance:
        config = {**_config(names, work, "", True), **where}
        _on_cluster(config, None, found, around, advance)
    return found


def _config(names: Sequence[str], work: Work, protocol: str, last: bool) -> dict[str, Any]:
    profile = None
    if work.profile and last:
        path = Path(work.profile).absolute()
        profile = str(path.with_stem(f"{path.stem}-{protocol}") if protocol else path)
    return {
        "address": None,
        "scheduler_file": None,
        "worker_count": work.worker_count,
        "workloads": list(names),
        "runs": work.runs,
        "profile": profile,
        "extent": asdict(work.extent),
    }


def _on_cluster(
    config: dict[str, Any],
    column: str | None,
    found: Sequence[Row],
    around: Surroundings,
    advance: Callable[..., None],
) -> None:
    """Have a program run all workloads, and add their results to the rows."""
    command = [sys.executable, "-m", "dask_fabric.bench.work.program"]
    program = Program(f"{column or 'the cluster'}", command, config, child_environment(around))
    try:
        scheme = program.read(_START_SECONDS)
        column = column or scheme
        for row in found:
            advance(0, f"{row.name}: {column}")
            answer = program.read(_RUN_SECONDS)
            advance(1)
            for value in answer.get("values", ()):
                row.add(column, value)
            if "problem" in answer:
                row.problems[column] = answer["problem"]
                row.rounds.pop(column, None)
        if config["profile"]:
            program.read(_REPORT_SECONDS)  # it is written now
    finally:
        program.end()

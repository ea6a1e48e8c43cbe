"""Jobs as tests write them."""

from __future__ import annotations

from dask_fabric.telemetry.history.file import Record
from dask_fabric.telemetry.history.summary import Link, PathSummary, Summary

START = 1_700_000_000.0


def path_summary(path: str = "cma", nbytes: int = 1 << 20) -> PathSummary:
    return PathSummary(path, nbytes, nbytes, 1, 0.1, 0.2, 0.3, 0.4, 0.5, 1e6, 2e6, 3e6, 4e6)


def record(job_id: str = "a", seen: float = START + 10, ended: float | None = None) -> Record:
    link = Link("fabric://h:1", "fabric://h:2", "stream", 1 << 30, 1e6)
    paths = [path_summary(), path_summary("stream", 5)]
    summary = Summary("fabric://h:8786", 5.0, 2, 3, 1, 0, paths, [link])
    return Record(0, job_id, START, seen, ended, summary)

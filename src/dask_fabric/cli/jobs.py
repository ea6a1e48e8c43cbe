"""The output of ``dask fabric history``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dask.utils import format_bytes, format_time

from dask_fabric.telemetry import waits
from dask_fabric.telemetry.history.export import moment
from dask_fabric.telemetry.history.file import Record
from dask_fabric.telemetry.history.summary import PathSummary
from dask_fabric.text_table import table
from dask_fabric.wire.text import one_line

_HEAD = ("job", "start", "lasted", "state", "workers", "moved", "fallbacks", "slow", "scheduler")
_PATH_HEAD = ("path", "sent", "received", "fallbacks", "p50", "p90", "p99", "most")
_BANDWIDTHS = ("bandwidth_p50", "bandwidth_p90", "bandwidth_p99", "bandwidth_max")


def overview(records: list[Record], now: float) -> str:
    """Give a line for each job, the newest last."""
    if not records:
        return "There are no jobs yet."
    return "\n".join(table([_HEAD, *(_line(record, now) for record in records)]))


def _line(record: Record, now: float) -> tuple[str, ...]:
    paths = record.summary.paths
    return (
        str(record.number),
        _time(record.started),
        format_time(_lasted(record)),
        record.state(now),
        str(record.summary.workers),
        ", ".join(f"{format_bytes(one.bytes_sent)} {one.path}" for one in paths) or "-",
        str(sum(one.fallbacks for one in paths)),
        str(len(record.summary.slow_links)),
        record.summary.scheduler,
    )


def details(record: Record, now: float) -> str:
    """Give all details of one job."""
    summary = record.summary
    facts = [
        ("job", f"{record.number}, {record.state(now)}"),
        ("scheduler", f"{summary.scheduler}, {record.job_id}"),
        ("start", _time(record.started)),
        ("last written" if record.ended is None else "end", _time(record.ended or record.seen)),
        ("lasted", format_time(_lasted(record))),
        ("workers", f"{summary.workers} at once, {summary.workers_total} in all"),
        ("hosts", str(summary.hosts)),
        ("without a report", f"{summary.silent} workers"),
    ]
    return "\n".join([*table(facts), "", *_paths(summary.paths), *_links(record)])


def _paths(paths: list[PathSummary]) -> Iterator[str]:
    if not paths:
        yield "The workers reported no traffic."
        return
    yield "Bandwidth of all workers together, over the intervals in which they received data."
    rows = [
        (
            one.path,
            format_bytes(one.bytes_sent),
            format_bytes(one.bytes_received),
            str(one.fallbacks),
            *(f"{format_bytes(int(getattr(one, name)))}/s" for name in _BANDWIDTHS),
        )
        for one in paths
    ]
    yield from table([_PATH_HEAD, *rows])
    yield ""
    times = [
        (one.path, *(format_time(getattr(one, wait.field)) for wait in waits.REPORTED))
        for one in paths
    ]
    yield from table([("path", *(wait.label for wait in waits.REPORTED)), *times])


def _links(record: Record) -> Iterator[str]:
    links = record.summary.slow_links
    if links:
        yield ""
        yield "Slow compared with other links of the same path"
        yield from table(
            [
                (link.worker, link.peer, link.path, format_bytes(link.bytes_moved), _speed(link))
                for link in links
            ]
        )


def _speed(link: Any) -> str:
    return f"{format_bytes(int(link.bytes_per_second))}/s"


def comparison(one: Record, other: Record, now: float) -> str:
    """Give the figures of two jobs side by side."""
    rows: list[tuple[str, ...]] = [("", f"job {one.number}", f"job {other.number}", "ratio")]
    rows.append(("state", one.state(now), other.state(now), ""))
    rows.append(_compared("lasted", _lasted(one), _lasted(other), format_time))
    for name in ("workers", "hosts", "silent"):
        rows.append(_compared(name, getattr(one.summary, name), getattr(other.summary, name), str))
    lefts = {path.path: path for path in one.summary.paths}
    rights = {path.path: path for path in other.summary.paths}
    for path in sorted(lefts.keys() | rights.keys()):
        rows += _compared_paths(path, lefts.get(path), rights.get(path))
    left, right = (len(record.summary.slow_links) for record in (one, other))
    rows.append(_compared("slow links", left, right, str))
    return "\n".join(table(rows))


def _compared_paths(
    path: str, one: PathSummary | None, other: PathSummary | None
) -> Iterator[tuple[str, ...]]:
    formats = {"bytes_sent": format_bytes, "bytes_received": format_bytes, "fallbacks": str}
    formats |= dict.fromkeys(_BANDWIDTHS, lambda rate: f"{format_bytes(int(rate))}/s")
    formats |= dict.fromkeys((wait.field for wait in waits.REPORTED), format_time)
    for name, form in formats.items():
        left, right = (0 if side is None else getattr(side, name) for side in (one, other))
        yield _compared(f"{path} {name.replace('_', ' ')}", left, right, form)


def _compared(name: str, one: Any, other: Any, form: Any) -> tuple[str, ...]:
    return name, form(one), form(other), f"{other / one:.2f}" if one else ""


def _lasted(record: Record) -> float:
    return max(0.0, (record.ended or record.seen) - record.started)


def _time(seconds: float) -> str:
    return f"{moment(seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def complaint(damaged: list[str]) -> str:
    """Give the errors of jobs that cannot be shown."""
    return "\n".join(one_line(text) for text in damaged)

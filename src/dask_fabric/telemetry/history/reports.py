"""Checking the untrusted reports in heartbeats of workers (`dask_fabric.telemetry.heartbeat`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

TEXT_LIMIT = 200
# Rows of one report; no worker sends so many.
_ROW_LIMIT = 256
_NUMBERS = frozenset((int, float))
_AMOUNT_LIMIT = 2**63


class Row(NamedTuple):
    """The traffic of one process with one peer by one path, since the process started."""

    peer: str
    path: str
    sent_bytes: int
    received_bytes: int
    fallback_count: int
    loop_seconds: float
    allocate_seconds: float
    wire_seconds: float
    peer_seconds: float
    serialize_seconds: float

    @property
    def waits(self) -> tuple[float, ...]:
        """The seconds, in the order of `dask_fabric.telemetry.waits.REPORTED`."""
        return self[5:]


_FIELD_COUNT = len(Row._fields)


class WorkerReport(NamedTuple):
    """One report: the name of the process, and its rows."""

    process: str
    rows: list[Row]


def read(sent: Any) -> WorkerReport | None:
    """Check a report, and leave out its invalid parts.

    Parameters
    ----------
    sent : object
        The report in a heartbeat.

    Returns
    -------
    WorkerReport or None
        None if it is not a report at all.
    """
    if not isinstance(sent, Mapping) or "peers" not in sent:
        return None
    process, rows = sent.get("process"), sent["peers"]
    if not isinstance(rows, (list, tuple)):
        rows = ()
    return WorkerReport(
        process[:TEXT_LIMIT] if isinstance(process, str) else "",
        [Row._make(row) for row in rows[:_ROW_LIMIT] if _is_row(row)],
    )


def _is_row(row: Any) -> bool:
    # Must be fast: the scheduler of a thousand workers checks ten thousand rows per second.
    if not isinstance(row, (list, tuple)) or len(row) != _FIELD_COUNT:
        return False
    peer, path, *amounts = row
    return (
        type(peer) is type(path) is str
        and len(peer) <= TEXT_LIMIT
        and len(path) <= TEXT_LIMIT
        and _NUMBERS.issuperset(map(type, amounts))
        and min(amounts) >= 0
        and max(amounts) < _AMOUNT_LIMIT  # first: a huge integer overflows the sum
        and sum(amounts) < _AMOUNT_LIMIT  # excludes infinity and NaN
    )

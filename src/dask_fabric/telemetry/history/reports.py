"""What workers send with their heartbeats (`dask_fabric.telemetry.heartbeat`), checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

WAITS = ("loop", "allocate", "wire", "peer", "serialize")
TEXT_LIMIT = 200
# Of one report: more than any worker sends.
_ROW_LIMIT = 256
_NUMBERS = frozenset((int, float))
_AMOUNT_LIMIT = 2**63


class Row(NamedTuple):
    """What one process has moved to and from one peer, by one path, since it began."""

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
        """The seconds, in the order of `WAITS`."""
        return self[5:]


_FIELD_COUNT = len(Row._fields)


class Told(NamedTuple):
    """One report: the name of the process, and its rows."""

    process: str
    rows: list[Row]


def read(told: Any) -> Told | None:
    """Give what is as a worker sends it; the rest is not trusted.

    Parameters
    ----------
    told : object
        What came with a heartbeat.

    Returns
    -------
    Told or None
        None where it is no report at all.
    """
    if not isinstance(told, Mapping) or "peers" not in told:
        return None
    process, rows = told.get("process"), told["peers"]
    if not isinstance(rows, (list, tuple)):
        rows = ()
    return Told(
        process[:TEXT_LIMIT] if isinstance(process, str) else "",
        [Row._make(row) for row in rows[:_ROW_LIMIT] if _is_row(row)],
    )


def _is_row(row: Any) -> bool:
    # A scheduler of a thousand workers looks at ten thousand of them a second.
    if not isinstance(row, (list, tuple)) or len(row) != _FIELD_COUNT:
        return False
    peer, path, *amounts = row
    return (
        type(peer) is type(path) is str
        and len(peer) <= TEXT_LIMIT
        and len(path) <= TEXT_LIMIT
        and _NUMBERS.issuperset(map(type, amounts))
        and min(amounts) >= 0
        and max(amounts) < _AMOUNT_LIMIT  # before the sum: Python makes no float of any integer
        and sum(amounts) < _AMOUNT_LIMIT  # no infinity, nor what is not a number
    )

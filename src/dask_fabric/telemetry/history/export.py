"""Jobs as a table: a row for each job and path."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dask_fabric.errors import UnavailableError
from dask_fabric.telemetry.history.file import Record
from dask_fabric.telemetry.history.summary import PathSummary

_PLAIN = ("scheduler", "workers", "workers_total", "hosts", "silent")
_PATH_FIELDS = tuple(one.name for one in fields(PathSummary))


def rows(records: Iterable[Record], now: float) -> list[dict[str, Any]]:
    """Give one row for each job and path; a job without traffic has one row without a path.

    Parameters
    ----------
    records : iterable of Record
    now : float
        Seconds since 1970, to find out which jobs are lost.
    """
    found = []
    for record in records:
        job = _job_columns(record, now)
        paths = [asdict(path) for path in record.summary.paths]
        found += [{**job, **path} for path in paths or [dict.fromkeys(_PATH_FIELDS)]]
    return found


def _job_columns(record: Record, now: float) -> dict[str, Any]:
    return {
        "job": record.number,
        "id": record.job_id,
        "state": record.state(now),
        "start": moment(record.started),
        "end": None if record.ended is None else moment(record.ended),
        "seen": moment(record.seen),
        **{name: getattr(record.summary, name) for name in _PLAIN},
        "slow_links": json.dumps([asdict(link) for link in record.summary.slow_links]),
    }


def moment(seconds: float) -> datetime:
    """Convert seconds since 1970 to a time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def write_csv(table: list[dict[str, Any]], path: Path) -> None:
    """Write *table* as CSV, with times in ISO 8601."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def write_parquet(table: list[dict[str, Any]], path: Path) -> None:
    """Write *table* as Parquet.

    Raises
    ------
    UnavailableError
        pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise UnavailableError(
            "Parquet needs pyarrow: install it (pip install pyarrow), or export to CSV"
        ) from exc
    parquet.write_table(pyarrow.Table.from_pylist(table, schema=_schema(pyarrow)), path)


def _schema(pyarrow: Any) -> Any:
    """Give the types, which pyarrow could not infer for columns without values."""
    time = pyarrow.timestamp("us", tz="UTC")
    kinds = {"str": pyarrow.string(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    columns = {"job": kinds["int"], "id": kinds["str"], "state": kinds["str"]}
    columns |= {"start": time, "end": time, "seen": time, "scheduler": kinds["str"]}
    columns |= dict.fromkeys(_PLAIN[1:], kinds["int"]) | {"slow_links": kinds["str"]}
    columns |= {one.name: kinds[str(one.type)] for one in fields(PathSummary)}
    return pyarrow.schema(list(columns.items()))

"""Workloads with dataframes: a shuffle and a merge by Dask's peer-to-peer algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dask.dataframe as dd
import numpy as np
from distributed import Client, wait

from dask_fabric.bench.work.extent import GPU, Extent, Outcome

_PRIME = 2_147_483_647  # its multiples modulo a smaller number scatter over all residues
_KEYS_PER_ROW = 4
_MATCHING = 0.3


def _partition(number: int, rows: int, key_count: int, shift: int, kind: str) -> Any:
    """Make rows whose key is a known function of the row's number."""
    if kind == GPU:
        import cudf as frames
    else:
        import pandas as frames
    row = np.arange(number * rows, (number + 1) * rows)
    key = row * _PRIME % key_count + shift
    return frames.DataFrame({"key": key, "value": key.astype(float), "row": row})


def _frame(client: Client, extent: Extent, key_count: int, shift: int = 0) -> Any:
    frame = dd.from_map(
        _partition,
        range(extent.partitions),
        rows=extent.partition_rows,
        key_count=key_count,
        shift=shift,
        kind=extent.kind,
        meta=_partition(0, 0, 1, 0, extent.kind),
    )
    frame = client.persist(frame)
    wait(frame)
    return frame


def _count(frame: Any) -> Any:
    """Rows, sum of values, and distinct keys of a partition."""
    keys = frame["key"].nunique()
    counts = {"rows": [len(frame)], "sum": [frame["value"].sum()], "keys": [keys]}
    return type(frame)(counts).astype({"rows": "i8", "sum": "f8", "keys": "i8"})


def _counts(client: Client, frame: Any) -> tuple[int, float, int]:
    found = client.compute(frame.map_partitions(_count, meta=_count(frame._meta))).result()
    return int(found["rows"].sum()), float(found["sum"].sum()), int(found["keys"].sum())


def shuffle(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """Bring all rows of a key together: no two partitions have a key in common."""
    row_count = extent.partitions * extent.partition_rows
    key_count = max(row_count // _KEYS_PER_ROW, 1)
    frame = _frame(client, extent, key_count)
    before = _counts(client, frame)

    def run() -> Outcome:
        begin = time.perf_counter()
        found = _counts(client, frame.shuffle("key", shuffle_method="p2p"))
        seconds = time.perf_counter() - begin
        return Outcome(seconds, found == (row_count, before[1], key_count))

    return run


def merge(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """Merge two frames by a key that three in ten rows have in common."""
    row_count = extent.partitions * extent.partition_rows
    matching = int(row_count * _MATCHING)
    left = _frame(client, extent, row_count)
    right = _frame(client, extent, row_count, shift=row_count - matching)[["key", "row"]]
    expected = (matching, float(sum(range(row_count - matching, row_count))), matching)

    def run() -> Outcome:
        begin = time.perf_counter()
        merged = left.merge(right, on="key", shuffle_method="p2p", broadcast=False)
        found = _counts(client, merged)
        return Outcome(time.perf_counter() - begin, found == expected)

    return run

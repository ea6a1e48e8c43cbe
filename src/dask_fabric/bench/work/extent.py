"""How large the workloads are, and what each of them gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distributed import Client

CPU, GPU = "cpu", "gpu"


@dataclass(frozen=True)
class Extent:
    """How large they are, in the terms of dask-cuda's benchmarks.

    Attributes
    ----------
    size : int
        Side of the arrays.
    chunk_size : int
        Side of their chunks.
    partitions, partition_rows : int
        Of the dataframes.
    task_count : int
        Tiny tasks.
    fetch_bytes, busy_fetch_bytes : int
        Of a single fetch, and of one beside tasks that keep the GIL.
    kind : str
        ``cpu`` for numpy and pandas, ``gpu`` for cupy and cudf.
    """

    size: int = 8000
    chunk_size: int = 1000
    partitions: int = 16
    partition_rows: int = 100_000
    task_count: int = 4000
    fetch_bytes: int = 400_000_000
    busy_fetch_bytes: int = 100_000_000
    kind: str = CPU


@dataclass(frozen=True)
class Outcome:
    """Of one run.

    Attributes
    ----------
    value : float
        In the unit of the workload.
    right : bool
        Whether the result is what it must be.
    """

    value: float
    right: bool


@dataclass(frozen=True)
class Workload:
    """Something that a cluster does.

    Attributes
    ----------
    about : str
        Its name in tables, with what it takes of the extent in braces; ``fetch`` and
        ``busy_fetch`` are sizes as text.
    prepare : callable
        Given a client and the extent, loads the workers, and gives what does one run.
    """

    name: str
    unit: str
    about: str
    prepare: Callable[[Client, Extent], Callable[[], Outcome]]

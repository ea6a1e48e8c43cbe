"""The sizes of the workloads, and their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distributed import Client

CPU, GPU = "cpu", "gpu"


@dataclass(frozen=True)
class Extent:
    """The sizes of the workloads, named as in dask-cuda's benchmarks.

    Attributes
    ----------
    size : int
        Side of the arrays.
    chunk_size : int
        Side of their chunks.
    partitions, partition_rows : int
        Partitions of the dataframes, and rows of each.
    task_count : int
        Number of tiny tasks.
    fetch_bytes, busy_fetch_bytes : int
        Size of a single fetch, and of one while tasks hold the GIL.
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
    """The outcome of one run.

    Attributes
    ----------
    value : float
        In the unit of the workload.
    right : bool
        Whether the result is correct.
    """

    value: float
    right: bool


@dataclass(frozen=True)
class Workload:
    """A workload of a cluster.

    Attributes
    ----------
    about : str
        Its name in tables, with fields of the extent in braces; ``fetch`` and ``busy_fetch`` are
        sizes as text.
    prepare : callable
        Takes a client and the extent, loads data onto the workers, and gives a function for one
        run.
    """

    name: str
    unit: str
    about: str
    prepare: Callable[[Client, Extent], Callable[[], Outcome]]

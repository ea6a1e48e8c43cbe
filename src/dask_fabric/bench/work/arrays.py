"""Workloads with arrays: a transposed sum, rechunking, a broadcast, single fetches."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, Future, secede, wait

from dask_fabric.bench.work.extent import GPU, Extent, Outcome
from dask_fabric.bench.work.local import worker_addresses

_ROWS, _COLUMNS = 1013, 769  # the periods of the elements
_RELEASE_SECONDS = 30.0
_POLL_SECONDS = 0.1


def _element(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Small whole numbers, so that every sum of them is exact."""
    return (row % _ROWS + column % _COLUMNS).astype(float)


def _on_gpu(block: np.ndarray) -> Any:
    import cupy

    return cupy.asarray(block)


def ones(nbytes: int, kind: str) -> Any:
    """An array of bytes, on the host or on a GPU."""
    array = np.ones(nbytes, "u1")
    return _on_gpu(array) if kind == GPU else array


def persist_rows(client: Client, array: da.Array) -> da.Array:
    """Distribute the array's rows of chunks over the workers in turn: each run moves the same."""
    workers = worker_addresses(client)
    rows = [
        client.persist(array.blocks[i], workers=[workers[i % len(workers)]])
        for i in range(array.numblocks[0])
    ]
    wait(rows)
    return da.concatenate(rows)


def _elements(client: Client, extent: Extent) -> da.Array:
    shape, chunks = (extent.size,) * 2, (extent.chunk_size,) * 2
    array = da.fromfunction(_element, shape=shape, chunks=chunks, dtype=float)
    if extent.kind == GPU:
        array = array.map_blocks(_on_gpu, dtype=float)
    return persist_rows(client, array)


def transpose_sum(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """(x + x.T).sum(): with two workers, half of the chunks need a chunk of the other worker."""
    array = _elements(client, extent)
    index = np.arange(extent.size)
    expected = 2 * extent.size * int((index % _ROWS).sum() + (index % _COLUMNS).sum())

    def run() -> Outcome:
        begin = time.perf_counter()
        result = client.compute((array + array.T).sum()).result()
        return Outcome(time.perf_counter() - begin, float(result) == expected)

    return run


def rechunk(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """Blocks to columns, all to all; the maximum of each column is checked."""
    array = _elements(client, extent)
    index = np.arange(extent.size)
    expected = (index % _ROWS).max() + index % _COLUMNS
    width = max(extent.chunk_size // 4, 1)

    def run() -> Outcome:
        begin = time.perf_counter()
        columns = array.rechunk((-1, width), method="p2p")
        result = client.compute(columns.max(axis=0)).result()
        seconds = time.perf_counter() - begin
        result = result.get() if extent.kind == GPU else result
        return Outcome(seconds, np.array_equal(result, expected))

    return run


def _sum(array: Any) -> int:
    """Sum few elements, so that mostly the transfer is timed."""
    return int(array[::997].sum())


def _sum_of_ones(nbytes: int) -> int:
    return len(range(0, nbytes, 997))


def broadcast(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """An array of one worker, used by a task of every other."""
    count = len(worker_addresses(client)) - 1

    def run() -> Outcome:
        seconds, right, _ = _broadcast(client, extent)
        return Outcome(extent.fetch_bytes * count / 1e9 / seconds, right)

    return run


def _broadcast(client: Client, extent: Extent) -> tuple[float, bool, Future]:
    """Give the time, whether the result is correct, and the array, which all workers have."""
    source, *others = worker_addresses(client)
    array = client.submit(ones, extent.fetch_bytes, extent.kind, workers=[source], pure=False)
    wait(array)
    begin = time.perf_counter()
    sums = client.gather(
        [client.submit(_sum, array, workers=[worker], pure=False) for worker in others]
    )
    seconds = time.perf_counter() - begin
    return seconds, sums == [_sum_of_ones(extent.fetch_bytes)] * len(others), array


def _is_in_use(dask_worker: Any) -> bool:
    return bool(dask_worker.data)


def _free_idle_memory() -> None:
    with contextlib.suppress(ImportError):  # a cluster over another protocol may lack it
        from dask_fabric.memory import pool

        pool.trim()


def _proportional_bytes() -> int:
    """Memory of this process (PSS): a page that n processes have counts 1/n in each."""
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def fanout(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """As `broadcast`: the memory that all workers take for it together, while all have the array.

    Memory that a process keeps to use it again counts too.
    """
    deadline = time.monotonic() + _RELEASE_SECONDS
    while any(client.run(_is_in_use).values()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)  # arrays of the workload before are released a little later
    client.run(_free_idle_memory)
    before = sum(client.run(_proportional_bytes).values())

    def run() -> Outcome:
        _, right, array = _broadcast(client, extent)
        nbytes = sum(client.run(_proportional_bytes).values()) - before
        del array
        return Outcome(nbytes / 1e6, right)

    return run


def _fetch(client: Client, nbytes: int, kind: str) -> Outcome:
    source, target = worker_addresses(client)[:2]
    array = client.submit(ones, nbytes, kind, workers=[source], pure=False)
    wait(array)
    begin = time.perf_counter()
    result = client.submit(_sum, array, workers=[target], pure=False).result()
    gigabytes_per_second = nbytes / 1e9 / (time.perf_counter() - begin)
    return Outcome(gigabytes_per_second, result == _sum_of_ones(nbytes))


def fetch(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """One worker fetches a large array of another's, from submit to result."""
    return lambda: _fetch(client, extent.fetch_bytes, extent.kind)


def _compute(marker: str) -> None:
    """Run pure Python until the marker is deleted; secedes, so that other tasks can run."""
    secede()
    while os.path.exists(marker):
        for _ in range(100_000):
            pass


def busy_fetch(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """As `fetch`, with fewer bytes, while both workers run a task that holds the GIL."""

    def run() -> Outcome:
        with tempfile.NamedTemporaryFile() as marker:
            tasks = [
                client.submit(_compute, marker.name, workers=[worker], pure=False)
                for worker in worker_addresses(client)[:2]
            ]
            outcome = _fetch(client, extent.busy_fetch_bytes, extent.kind)
        wait(tasks)
        return outcome

    return run

"""What ``chaos.py`` computes, compared bit by bit, and what its processes must not keep."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import signal
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import psutil
from distributed import Client, KilledWorker, Worker
from distributed.comm import CommClosedError
from distributed.core import Server
from distributed.utils import DequeHandler

import dask_fabric
from dask_fabric.jobs import completions
from dask_fabric.memory import files, pool

LIMIT_SECONDS = 120  # of a workload, whose longest wait for a lost peer takes a fifth of it
SIZES = (1, 1000, 70_000, 300_000, 2_000_000, 10_000_000, 50_000_000)
FAULTS = (CancelledError, KilledWorker, CommClosedError, OSError, asyncio.TimeoutError)


class Wrong(Exception):
    """A result is not what it must be."""


class Stalled(Exception):
    """Something took too long."""


@contextlib.contextmanager
def limited(seconds: float = LIMIT_SECONDS) -> Iterator[None]:
    """Raise `Stalled` in the main thread, whatever it waits for, if the block takes longer."""

    def stop(*_: Any) -> None:
        raise Stalled(f"no end within {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def is_of_fault(error: BaseException) -> bool:
    """Whether Dask raises this for a fault, whatever the protocol.

    Errors of actors have no type of their own. The scheduler raises a KeyError with the address of
    a worker that leaves during `Client.scatter`.
    """
    return (
        isinstance(error, FAULTS)
        or "Actor" in str(error)
        or (isinstance(error, KeyError) and "://" in str(error))
    )


def gather(client: Client, futures: Any, rng: random.Random) -> Any:
    """Gather from the workers, or by way of the scheduler."""
    return client.gather(futures, direct=rng.random() < 0.5)


def check(name: str, got: Any, expected: Any) -> None:
    """Compare two arrays, with their types, bit by bit."""
    got, expected = np.asarray(got), np.asarray(expected)
    same = (got.dtype, got.shape) == (expected.dtype, expected.shape)
    if not same or got.tobytes() != expected.tobytes():
        raise Wrong(f"{name}: {got!r} instead of {expected!r}")


# ---------------------------------------------------------------- workloads


def transpose_sum(client: Client, rng: random.Random) -> None:
    n, chunk = rng.randrange(500, 2500), rng.choice([300, 500, 700])

    def cell(i, j):
        return (i * 31 + j * 17) % 1009

    x = da.fromfunction(cell, shape=(n, n), chunks=chunk, dtype="f8")
    whole = np.fromfunction(cell, (n, n))
    total = client.compute((x + x.T).sum(axis=0))
    check("transpose-sum", gather(client, total, rng), (whole + whole.T).sum(axis=0))


def table(seed: int, count: int) -> pd.DataFrame:
    numbers = np.random.default_rng(seed)
    return pd.DataFrame(
        {"key": numbers.integers(0, 1000, count), "value": numbers.integers(0, 1 << 40, count)}
    )


def shuffle(client: Client, rng: random.Random) -> None:
    """Bring rows of equal keys together, from each part into each."""
    count, rows, seed = rng.randrange(3, 7), rng.randrange(1000, 300_000), rng.randrange(1 << 30)

    def pieces(part: pd.DataFrame) -> list[pd.DataFrame]:
        return [part[part.key % count == piece] for piece in range(count)]

    parts = [client.submit(table, seed + n, rows, pure=False) for n in range(count)]
    split = [client.submit(pieces, part, pure=False) for part in parts]
    picked = [
        [client.submit(lambda of, n: of[n], one, n, pure=False) for one in split]
        for n in range(count)
    ]
    joined = [client.submit(pd.concat, row, pure=False) for row in picked]
    whole = pd.concat([table(seed + n, rows) for n in range(count)])
    for got, expected in zip(gather(client, joined, rng), pieces(whole), strict=True):
        for column in ("key", "value"):
            check("shuffle", got[column], expected[column])


def scatter(client: Client, rng: random.Random) -> None:
    """Send arrays of many sizes to workers, have them summed up there, and fetch them back."""
    sent = [
        np.frombuffer(rng.randbytes(min(size, 4096)) * (size // 4096 + 1), "u1")[:size]
        for size in rng.sample(SIZES, 4)
    ]
    futures = client.scatter(sent, direct=rng.random() < 0.5, hash=False, timeout=30)
    await_registration(client, futures)
    sums = client.map(zlib.crc32, futures, pure=False)
    for got, array in zip(gather(client, sums, rng), sent, strict=True):
        check("sum of scattered", got, zlib.crc32(array))
    for got, array in zip(gather(client, futures, rng), sent, strict=True):
        check("scattered", got, array)


def await_registration(client: Client, futures: list) -> None:
    """Wait until the scheduler knows where the scattered arrays are.

    If a worker leaves while a client sends to it directly, the scheduler logs a KeyError, and
    without this check all that depends on its arrays would wait for ever.
    """
    deadline = time.monotonic() + 10
    while not all(client.who_has(futures).values()):
        if time.monotonic() > deadline:
            raise OSError("a worker left during the scatter")
        time.sleep(0.1)


def exchange(client: Client, rng: random.Random) -> None:
    """Have each block added to blocks of other workers, so that all move."""
    count, size = 12, rng.choice([1000, 40_000, 500_000, 2_000_000])
    client.wait_for_workers(1, timeout=60)
    workers = sorted(client.nthreads())

    def block(n: int) -> np.ndarray:
        return np.arange(n, n + size, dtype="i8") * (n + 1)

    def place(n: int) -> dict[str, Any]:  # the last worker may have gone just now
        where = workers and [workers[n % len(workers)]]
        return {"workers": where, "allow_other_workers": True} if where else {}

    blocks = [client.submit(block, n, pure=False, **place(n)) for n in range(count)]
    for step in (1, 2):
        blocks = [
            client.submit(np.add, blocks[n], blocks[n - step], pure=False) for n in range(count)
        ]
    local = [block(n) for n in range(count)]
    for step in (1, 2):
        local = [local[n] + local[n - step] for n in range(count)]
    for got, expected in zip(gather(client, blocks, rng), local, strict=True):
        check("exchange", got, expected)


class Accumulator:
    def __init__(self) -> None:
        self.total = np.zeros(300_000)

    def add(self, array: np.ndarray) -> np.ndarray:
        self.total = self.total + array
        return self.total


def actor(client: Client, rng: random.Random) -> None:
    remote = client.submit(Accumulator, actor=True, pure=False).result()
    local = Accumulator()
    for _ in range(5):
        array = np.full(300_000, rng.random())
        check("actor", remote.add(array).result(), local.add(array))


WORKLOADS = (transpose_sum, shuffle, scatter, exchange, actor)


# ---------------------------------------------------------------- leaks

# How much more than after the first workloads a process may have at the end.
SLACK = {
    "sockets": 16,  # without lanes; Dask's pools keep connections, one more or less
    "sockets without a comm": 4,
    "other descriptors": 4,
    "threads": 6,
    "memory files": 2,
    "mapped bytes": 1 << 20,
    "bytes in use of the pool": 1 << 20,
    "bytes in flight": 1 << 20,
    "jobs": 0,
    "jobs in quarantine": 0,
    "resident bytes": 200 << 20,
}


def holdings(dask_worker: Server | None = None) -> dict[str, int]:
    """Give what this process has that comms may hold, when all futures are released.

    Dask itself keeps two things after faults over any protocol, which are dropped first. If a
    worker leaves while `Client.scatter` sends to it, the scheduler never learns of the keys that
    this worker or another one then has. And the logs of a process keep exceptions, and with their
    frames the data that they were about.
    """
    if isinstance(dask_worker, Worker):  # Dask gives a scheduler as well
        dask_worker.data.clear()
    DequeHandler.clear_all_instances()
    gc.collect()
    pool.trim()
    ctypes.CDLL(None).malloc_trim(0)
    report = dask_fabric.statistics()
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    lane_count = sum(comm["connections"] - 1 for comm in report["comms"])
    socket_count = sum(link.startswith("socket:") for link in links) - lane_count
    file_count = sum(link.startswith("/memfd:") for link in links)
    jobs = [report[part].get("job_count", 0) for part in ("engine", "cma") if report[part]]
    return {
        "sockets": socket_count,
        "sockets without a comm": max(0, socket_count - len(report["comms"])),
        "other descriptors": len(links) - socket_count - lane_count - file_count,
        "threads": len(os.listdir("/proc/self/task")),
        "memory files": file_count,
        "mapped bytes": files.statistics()["mapped_bytes"],
        "bytes in use of the pool": report["pool"]["in_use_bytes"],
        "bytes in flight": sum(
            comm["unacknowledged_bytes"] + comm["pending_bytes"] for comm in report["comms"]
        ),
        "jobs": sum(jobs),
        "jobs in quarantine": completions.statistics()["quarantined_count"],
        "resident bytes": psutil.Process().memory_info().rss,
    }


def holdings_of_all(client: Client) -> dict[str, dict[str, int]]:
    """Give the holdings of client and scheduler, and of each worker by its address."""
    return {
        "client": holdings(),
        "scheduler": client.run_on_scheduler(holdings),
        **client.run(holdings),
    }


def most_of_workers(holdings: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Replace the holdings of all workers by the most that one of them has."""
    workers = [of for name, of in holdings.items() if name not in ("client", "scheduler")]
    most = {key: max(of[key] for of in workers) for key in SLACK}
    return {name: holdings[name] for name in ("client", "scheduler")} | {"a worker": most}

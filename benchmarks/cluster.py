"""Whole clusters on one host, scheme against scheme: LocalCluster, two workers of one thread.

In every round each scheme gets a fresh cluster of its own, and no other runs beside it. Run
``cluster.py --help``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, secede, wait
from distributed.security import Security

from arguments import common_parser, is_encrypted, parse
from asked import compare, print_asked
from awake import awake_cpus
from report import Row, print_facts, print_table, progress, save

TASK_COUNT = 4000
FETCH_BYTES = 400_000_000
BUSY_FETCH_BYTES = 100_000_000
SIDE, CHUNK = 8000, 1000


def start_cluster(scheme: str) -> LocalCluster:
    """Two worker processes of one thread each, on the scheme, without a dashboard."""
    return LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        protocol=scheme,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # its HTTP server is always there
        memory_limit=0,
        security=Security.temporary() if is_encrypted(scheme) else None,
    )


def persist_rows(client: Client, array: da.Array) -> da.Array:
    """Keep the array's rows of chunks on the workers in turn, so that every run moves the same."""
    workers = list(client.scheduler_info()["workers"])
    rows = [
        array.blocks[i].persist(workers=[workers[i % len(workers)]])
        for i in range(array.numblocks[0])
    ]
    wait(rows)
    return da.concatenate(rows)


def increment(x: int) -> int:
    return x + 1


def tiny_tasks(client: Client) -> float:
    """Tasks per second of many tasks that do nothing."""
    begin = time.perf_counter()
    futures = client.map(increment, range(TASK_COUNT), pure=False)
    wait(futures)
    return TASK_COUNT / (time.perf_counter() - begin)


def fetch(client: Client, nbytes: int = FETCH_BYTES) -> float:
    """GB/s of one worker fetching a large array of the other's, from submit to result."""
    source, target = client.scheduler_info()["workers"]
    array = client.submit(np.ones, nbytes // 8, workers=[source], pure=False)
    wait(array)
    begin = time.perf_counter()
    client.submit(len, array, workers=[target], pure=False).result()
    return nbytes / 1e9 / (time.perf_counter() - begin)


def compute(marker: str) -> None:
    """A task of pure Python, until the marker is gone; it makes room for other tasks beside it."""
    secede()
    while os.path.exists(marker):
        for _ in range(100_000):
            pass


def busy_fetch(client: Client) -> float:
    """As `fetch`, of less, while both workers run a task that keeps the GIL."""
    with tempfile.NamedTemporaryFile() as marker:
        tasks = [
            client.submit(compute, marker.name, workers=[worker], pure=False)
            for worker in client.scheduler_info()["workers"]
        ]
        result = fetch(client, BUSY_FETCH_BYTES)
    wait(tasks)
    return result


def transposed_sum(client: Client, array: da.Array) -> float:
    """Seconds of a sum for which half of the chunks meet one of the other worker."""
    begin = time.perf_counter()
    (array + array.T).sum().compute()
    return time.perf_counter() - begin


def measure(client: Client, rows: dict[Callable, Row], scheme: str, repeats: int) -> None:
    """Add one value per figure and repeat; the first of each warms up and is dropped."""
    random = da.random.default_rng(0).random((SIDE, SIDE), chunks=(CHUNK, CHUNK))
    array = persist_rows(client, random)
    for verb, row in rows.items():
        arguments = (client, array) if verb is transposed_sum else (client,)
        values = [verb(*arguments) for _ in range(1 + repeats)]
        for value in values[1:]:
            row.add(scheme, value)


def run(options: argparse.Namespace) -> list[Row]:
    """All rows, from a fresh cluster for each scheme in each round."""
    rows = {
        tiny_tasks: Row(f"{TASK_COUNT:,} tiny tasks", "tasks/s"),
        fetch: Row(f"fetch of {FETCH_BYTES // 10**6} MB, worker to worker", "GB/s"),
        busy_fetch: Row(f"fetch of {BUSY_FETCH_BYTES // 10**6} MB, both workers busy", "GB/s"),
        transposed_sum: Row(f"(x + x.T).sum(), {SIDE} x {SIDE}", "s", False),
    }
    for turn in range(options.rounds):
        shift = turn % len(options.schemes)
        for scheme in options.schemes[shift:] + options.schemes[:shift]:
            progress(f"round {turn + 1} of {options.rounds}: {scheme}")
            with start_cluster(scheme) as cluster, Client(cluster) as client:
                measure(client, rows, scheme, options.repeats)
    return list(rows.values())


def main() -> None:
    parser = common_parser(__doc__, rounds=4)
    parser.add_argument("--repeats", type=int, default=2, help="values per figure and round")
    options = parse(parser, ["tcp", "fabric"])
    if options.quick:
        options.rounds, options.repeats = 2, 1
    print_facts()
    with awake_cpus(not options.sleepy):
        rows = run(options)
    print_table(rows, options.schemes, options.schemes[0])
    asked = compare(rows)
    print_asked(asked)
    save(options.json, rows, options.schemes[0], vars(options), asked)


if __name__ == "__main__":
    main()

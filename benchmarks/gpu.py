"""Arrays of CuPy between two processes on one GPU, and two workers on it, scheme against scheme.

The schemes take turns, results are checked against numpy's, and UCX's own ucx_perftest runs beside
with the memory of the GPU on both sides. Needs a GPU and CuPy. Run ``gpu.py --help``.
"""

from __future__ import annotations

import argparse
import operator
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dask.array as da
import numpy as np
from dask.utils import parse_bytes
from distributed import Client, wait

from dask_fabric import LocalFabricCluster
from dask_fabric.bench import perftest, suite
from dask_fabric.bench.awake import awake_cpus
from dask_fabric.bench.figures import Extent
from dask_fabric.bench.machine import facts
from dask_fabric.bench.pairs import Protocol, Surroundings
from dask_fabric.bench.results import Results, Row
from dask_fabric.bench.rounds import Effort
from dask_fabric.bench.tables import render
from dask_fabric.bench.work.arrays import persist_rows

SIZES = "1MB,10MB,100MB,1GB"
PARTS = ("transfers", "cluster")
SIDE, CHUNK = 16_000, 2000
PARTITIONS, KEYS = 8, 16_000_000


# ---- between two processes


def transfers(options: argparse.Namespace) -> Results:
    """GB/s of arrays from one process to the other, which arrive as they were sent."""
    protocols = [Protocol(scheme, scheme) for scheme in options.schemes]
    protocols += [Protocol("ucx", "ucx", options.ucxx)] if options.ucxx else []
    library = options.ucx_library or perftest.own_library()
    environment = {"DASK_FABRIC__GPU__ENABLED": "true"}
    environment |= {"DASK_FABRIC__UCX__LIBRARY": library} if library else {}
    plan = suite.Plan(
        scenarios=("bandwidth",),
        protocols=tuple(protocols),
        extent=Extent(tuple(options.sizes), ("one",), module="cupy"),
        effort=Effort(options.rounds, options.round_seconds),
        has_floors=not options.no_floor,
        awake=False,  # they are already
        around=Surroundings(module="cupy", environment=environment),
    )
    return suite.run(plan, vars(options), sys.stderr)


# ---- between two workers


def to_device(block: np.ndarray):
    import cupy

    return cupy.asarray(block)


def to_host(block) -> np.ndarray:
    import cupy

    return cupy.asnumpy(block)


class Transpose:
    """Seconds of a sum for which half of the chunks meet one of the other worker."""

    name = f"GPU: (x + x.T).sum(), {SIDE} x {SIDE}"

    def __init__(self, client: Client) -> None:
        # Whole numbers: their sum is the same in whatever order it is taken.
        numbers = da.random.default_rng(0).integers(0, 256, (SIDE, SIDE), chunks=(CHUNK, CHUNK))
        on_host = numbers.astype("f8")
        self.expected = 2 * float(on_host.sum().compute())
        # With a meta that is given Dask does not try the function here.
        on_device = on_host.map_blocks(to_device, dtype="f8", meta=np.empty((0, 0)))
        self.array = persist_rows(client, on_device)

    def run(self) -> float:
        begin = time.perf_counter()
        total = (self.array + self.array.T).sum()
        result = total.map_blocks(to_host, dtype="f8", meta=np.empty(())).compute()
        elapsed = time.perf_counter() - begin
        expect(self.name, float(result), self.expected)
        return elapsed


def make_partition(number: int):
    """Keys and values of one partition, in the memory of the GPU."""
    import cupy

    return cupy.asarray(host_partition(number))


def host_partition(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 1 << 20, (2, KEYS // PARTITIONS), dtype="i8")


def split(partition) -> list:
    """What goes to each partition of the result, by the key."""
    return [partition[:, partition[0] % PARTITIONS == n] for n in range(PARTITIONS)]


def summary(pieces: list) -> list[int]:
    """Count, sum of keys and sum of values of one partition of the result."""
    import cupy

    joined = cupy.concatenate(pieces, axis=1)
    return [joined.shape[1], *(int(row.sum()) for row in joined)]


class Shuffle:
    """Seconds in which every partition sends a part of it to every other, as before a merge."""

    name = f"GPU: shuffle of {KEYS * 16 / 1e9:g} GB in {PARTITIONS} partitions"

    def __init__(self, client: Client) -> None:
        self.client = client
        self.workers = list(client.scheduler_info()["workers"])
        self.partitions = [
            client.submit(make_partition, n, workers=[self._worker(n)]) for n in range(PARTITIONS)
        ]
        everything = np.concatenate([host_partition(n) for n in range(PARTITIONS)], axis=1)
        self.expected = []
        for n in range(PARTITIONS):
            mine = everything[:, everything[0] % PARTITIONS == n]
            self.expected.append([mine.shape[1], *(int(row.sum()) for row in mine)])
        wait(self.partitions)

    def _worker(self, number: int) -> str:
        return self.workers[number % len(self.workers)]

    def run(self) -> float:
        submit = self.client.submit
        begin = time.perf_counter()
        parts = [
            submit(split, one, workers=[self._worker(n)], pure=False)
            for n, one in enumerate(self.partitions)
        ]
        results = []
        for n in range(PARTITIONS):
            pieces = [
                submit(operator.getitem, part, n, workers=[self._worker(m)], pure=False)
                for m, part in enumerate(parts)
            ]
            results.append(submit(summary, pieces, workers=[self._worker(n)], pure=False))
        found = self.client.gather(results)
        elapsed = time.perf_counter() - begin
        expect(self.name, found, self.expected)
        return elapsed


def expect(name: str, found: object, expected: object) -> None:
    """End the program where a result is wrong."""
    if found != expected:
        sys.exit(f"{name}: {found}, and by numpy {expected}")


def start_cluster(scheme: str) -> LocalFabricCluster:
    """Two workers on the first GPU, each of one thread."""
    return LocalFabricCluster(
        n_workers=2,
        CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[:1],
        protocol=scheme,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        memory_limit=0,
    )


def clusters(options: argparse.Namespace) -> list[Row]:
    """Each scheme with a fresh cluster in every round; the first repetition is dropped."""
    kinds: tuple[Callable, ...] = (Transpose, Shuffle)
    rows = {kind: Row("workers", kind.name, "s", False) for kind in kinds}
    for turn in range(options.rounds):
        shift = turn % len(options.schemes)
        for scheme in options.schemes[shift:] + options.schemes[:shift]:
            progress(f"round {turn + 1} of {options.rounds}: two workers on {scheme}")
            with start_cluster(scheme) as cluster, Client(cluster) as client:
                for kind, row in rows.items():
                    work = kind(client)
                    for value in [work.run() for _ in range(1 + options.repeats)][1:]:
                        row.add(scheme, value)
    return list(rows.values())


# ---- the command line


def commas(convert: Callable) -> Callable[[str], list]:
    """A converter of comma-separated lists, for argparse."""
    return lambda text: [convert(part.strip()) for part in text.split(",")]


def progress(text: str) -> None:
    """A plain line on stderr, so that stdout holds the table alone."""
    print(text, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    schemes = ["tcp", "fabric", "fabric+tcp"]
    parser.add_argument("--schemes", type=commas(str), default=schemes, help=",".join(schemes))
    parser.add_argument("--parts", type=commas(str), default=list(PARTS), help=str(PARTS))
    parser.add_argument("--sizes", type=commas(parse_bytes), default=SIZES, help=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-seconds", type=float, default=0.5, help="length of one round")
    parser.add_argument("--repeats", type=int, default=2, help="values per round of a cluster")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--sleepy", action="store_true", help="let idle CPUs sleep")
    parser.add_argument("--no-floor", action="store_true", help="the schemes alone")
    parser.add_argument("--ucx-library", help="of the schemes; left out: that of ucx_perftest")
    parser.add_argument("--ucxx", metavar="PYTHON", help="a Python that has distributed-ucxx")
    parser.add_argument("--json", metavar="FILE", help="write every round there")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; there are {', '.join(PARTS)}")
    if options.quick:
        options.rounds, options.round_seconds, options.repeats = min(options.rounds, 3), 0.2, 1
    return options


def measured(options: argparse.Namespace) -> Results:
    """All parts that are wanted."""
    rows: Sequence[Row] = []
    if "cluster" in options.parts:  # first: here this process has no context yet
        rows = clusters(options)
    if "transfers" not in options.parts:
        return Results(facts(), vars(options), options.schemes, list(rows))
    results = transfers(options)
    results.rows += rows
    return results


def main() -> None:
    options = parse_arguments()
    os.environ["DASK_FABRIC__GPU__ENABLED"] = "true"  # of the other process too
    with awake_cpus(not options.sleepy):
        results = measured(options)
    print(render(results, markdown=True))
    if options.json:
        Path(options.json).write_text(results.as_json())
        progress(f"written: {options.json}")


if __name__ == "__main__":
    main()

"""Arrays of CuPy between two processes on one GPU, and two workers on it, scheme against scheme.

The schemes take turns, results are checked against numpy's, and UCX's own ucx_perftest runs beside
with the memory of the GPU on both sides. Needs a GPU and CuPy. Run ``gpu.py --help``.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import operator
import os
import sys
import time
from collections.abc import Callable

import dask.array as da
import numpy as np
from dask.utils import parse_bytes
from distributed import Client, wait

from arguments import commas, common_parser, parse
from asked import PERFTEST, UCXX, compare, print_asked
from awake import awake_cpus
from cluster import persist_rows
from comm import MEASURE_TIMEOUT_SECONDS, Figure, measure, share_library, size_name
from dask_fabric import LocalFabricCluster
from floors import DevicePerftestSession, ForeignSession
from report import Row, print_facts, print_table, progress, save
from sessions import CommSession, Session

SIZES = "1MB,10MB,100MB,1GB"
PARTS = ("transfers", "cluster")
SIDE, CHUNK = 16_000, 2000
PARTITIONS, KEYS = 8, 16_000_000


# ---- between two processes


def figures(sizes: list[int]) -> list[Figure]:
    """One for each size, all of the same memory of the GPU."""
    import cupy

    rng = np.random.default_rng(0)
    largest = cupy.asarray(rng.integers(0, 256, max(sizes), dtype="u1"))
    return [
        Figure("cupy", f"cupy {size_name(n)}, acknowledged", "GB/s", "send", largest[:n])
        for n in sizes
    ]


async def check(session: Session, figure: Figure) -> None:
    """End the program unless what arrives is what was sent, in the memory of a GPU."""
    if isinstance(session, CommSession):
        found = await session.digest(figure.array)
        expected = hashlib.sha256(figure.array.get()).hexdigest()
        if found != {"digest": expected, "module": "cupy"}:
            sys.exit(f"{session.scheme}, {figure.name}: {found} has arrived, not {expected}")


async def transfers(options: argparse.Namespace) -> list[Row]:
    """GB/s of arrays from one process to the other."""
    wanted = figures(options.sizes)  # before the comms: with CuPy they know that there is a GPU
    sessions: list[Session] = [CommSession(scheme, options) for scheme in options.schemes]
    sessions += [KINDS[name](name, options) for name in options.beside]
    rows = []
    try:
        for session in sessions:
            await session.open()
        for figure in wanted:
            progress(figure.name)
            for session in sessions:
                await check(session, figure)
            work = measure(figure, sessions, options)
            rows.append(await asyncio.wait_for(work, MEASURE_TIMEOUT_SECONDS))
        for session in sessions:
            await session.close()
    finally:
        for session in sessions:
            session.kill()
    return rows


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
    rows = {kind: Row(kind.name, "s", False) for kind in kinds}
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

KINDS = {PERFTEST: DevicePerftestSession, UCXX: ForeignSession}


def parse_arguments() -> argparse.Namespace:
    parser = common_parser(__doc__, rounds=5)
    parser.add_argument("--parts", type=commas(str), default=list(PARTS), help=str(PARTS))
    parser.add_argument("--sizes", type=commas(parse_bytes), default=SIZES, help=SIZES)
    parser.add_argument("--round-seconds", type=float, default=0.5, help="length of one round")
    parser.add_argument("--repeats", type=int, default=2, help="values per round of a cluster")
    parser.add_argument("--no-floor", action="store_true", help="the schemes alone")
    parser.add_argument("--ucx-library", help="of the schemes; left out: that of ucx_perftest")
    parser.add_argument("--ucxx", metavar="PYTHON", help="a Python that has distributed-ucxx")
    options = parse(parser, ["tcp", "fabric", "fabric+tcp"])
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; there are {', '.join(PARTS)}")
    if options.quick:
        options.rounds, options.round_seconds, options.repeats = min(options.rounds, 3), 0.2, 1
    options.on_gpu, options.uvloop, options.security = True, False, None
    options.beside = [] if options.no_floor or not share_library(options) else [PERFTEST]
    if options.ucxx:
        options.beside.append(UCXX)
    return options


def main() -> None:
    options = parse_arguments()
    os.environ["DASK_FABRIC__GPU__ENABLED"] = "true"  # of the other process too
    print_facts()
    rows: list[Row] = []
    with awake_cpus(not options.sleepy):
        if "cluster" in options.parts:  # first: here this process has no context yet
            rows += clusters(options)
        if "transfers" in options.parts:
            rows = asyncio.run(transfers(options)) + rows
    print_table(rows, [*options.schemes, *options.beside], options.schemes[0])
    asked = compare(rows)
    print_asked(asked)
    save(options.json, rows, options.schemes[0], vars(options), asked)


if __name__ == "__main__":
    main()

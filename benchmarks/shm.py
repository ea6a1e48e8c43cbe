"""What it costs to compute with arrays in the memory file, and what it saves to hand them over.

``docs/generate.py`` makes the tables of docs/shm.md from what this writes to
``benchmarks/results/shm.json``.

``shm.py numpy`` times operations of NumPy whose arrays lie in ordinary memory, and in the memory
file, in turns. ``shm.py hand-over`` times, for each size, the hand-over between two processes by
``tcp``, ``cma`` and ``shm``, and its CPU time. The floor is a message with 8 bytes in place of
the array, once that has been written: the caches are full of it, and the receiver sleeps.
``shm.py`` does both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import contextvars
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

from dask_fabric.bench.machine import facts
from dask_fabric.memory import arrays, files
from dask_fabric.paths.shm import exchange

SIZES = (1_000_000, 10_000_000, 100_000_000)
LARGE = 1_000_000_000  # handed over too
CASES = [(nbytes, reads) for nbytes in (*SIZES, LARGE) for reads in (False, True)]
SHM = {"fabric.shm.enabled": True, "fabric.shm.results": True, "fabric.shm.max": "8 GB"}
KINDS = (("tcp", "tcp", False), ("cma", "fabric", False), ("shm", "fabric", True))
TINY_BYTES = 8
ROUNDS = 15
REPEATS = 5


def operations(nbytes: int) -> dict[str, Callable[[], object]]:
    """Give what is timed; all of it makes new arrays of about so many bytes."""
    count = nbytes // 8
    rng = np.random.default_rng(0)
    a, b = rng.random(count), rng.random(count)
    side = int(count**0.5)
    square = a[: side * side].reshape(side, side)
    places = rng.permutation(count)
    return {
        "sum": lambda: a.sum(),
        "copy": lambda: a.copy(),
        "a + b": lambda: a + b,
        "zeros": lambda: np.zeros(count).max(),
        "matmul": lambda: square @ square[:, :200],
        "sort": lambda: np.sort(a),
        "fft": lambda: np.fft.rfft(a),
        "fancy indexing": lambda: a[places],
        "chain": lambda: (a * 2 + b).sum(),
    }


def time_numpy(rounds: int) -> Iterator[dict[str, Any]]:
    """Time each operation in ordinary memory and in the memory file, in turns."""
    contexts = [contextvars.copy_context() for _ in range(2)]
    contexts[1].run(arrays.share_results)
    for nbytes in SIZES:
        made = [context.run(operations, nbytes) for context in contexts]
        for name in made[0]:
            times: list[list[float]] = [[], []]
            for turn in range(2 * rounds):
                kind = turn % 2
                for repeat in range(REPEATS):
                    begin = time.perf_counter()
                    contexts[kind].run(made[kind][name])
                    if repeat:  # the first one finds the other's memory in the caches
                        times[kind].append(time.perf_counter() - begin)
            ordinary, file = (statistics.median(of) * 1e3 for of in times)
            yield {"name": name, "nbytes": nbytes, "ordinary_ms": ordinary, "file_ms": file}


async def serve() -> None:
    async def handle(comm) -> None:
        cpu_seconds = time.process_time()
        with contextlib.suppress(OSError):
            while True:
                data = (await comm.read())["data"]
                reply = {"sum": float(data.sum())} if data[0] else {}
                reply["cpu_seconds"] = time.process_time() - cpu_seconds
                await comm.write(reply)
                del data

    async with listen(f"{sys.argv[2]}://127.0.0.1", handle) as listener:
        print(listener.contact_address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def series(
    comm,
    context: contextvars.Context,
    nbytes: int,
    reads: bool,
    rounds: int,
    sent_bytes: int | None = None,
):
    """Give the median time in ms, and the CPU time of both sides in s per GB."""
    times, own_seconds, peer_seconds = [], 0.0, []
    for _ in range(rounds + 2):
        data = context.run(np.empty, nbytes // 8)  # as a task would make it
        data[:] = reads
        sent = data if sent_bytes is None else np.zeros(sent_bytes // 8)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        await comm.write({"data": to_serialize(sent)})
        reply = await comm.read()
        times.append(time.perf_counter() - begin)
        del data, sent
        own_seconds += time.process_time() - begin_cpu
        peer_seconds.append(reply["cpu_seconds"])
    cpu_seconds = own_seconds * rounds / (rounds + 1) + peer_seconds[-1] - peer_seconds[1]
    return statistics.median(times[2:]) * 1e3, cpu_seconds / rounds / nbytes * 1e9


async def hand_over(protocol: str, uses_shm: bool, rounds: int) -> list[tuple[float, ...]]:
    settings = SHM if uses_shm else {"fabric.shm.enabled": False}
    context = contextvars.copy_context()
    with dask.config.set(settings):
        if uses_shm:
            context.run(arrays.share_results)
        command = [sys.executable, __file__, "serve", protocol, json.dumps(settings)]
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
            comm = await connect(process.stdout.readline().strip())
            found = []
            for nbytes, reads in CASES:
                count = rounds if nbytes < LARGE else 3
                found.append(await series(comm, context, nbytes, reads, count))
                if uses_shm and not reads:
                    tiny, _ = await series(comm, context, nbytes, reads, count, TINY_BYTES)
                    found[-1] += (tiny,)
            await comm.close()
            process.stdin.close()
    return found


def time_hand_over(rounds: int) -> Iterator[dict[str, Any]]:
    """Time a message with an array, and its reply: unread, and with its sum."""
    runs = [[asyncio.run(hand_over(*kind, rounds)) for _, *kind in KINDS] for _ in range(3)]
    for index, (nbytes, reads) in enumerate(CASES):
        row: dict[str, Any] = {"nbytes": nbytes, "reads": reads}
        for at, (name, *_) in enumerate(KINDS):
            row[f"{name}_ms"] = statistics.median(run[at][index][0] for run in runs)
            row[f"{name}_cpu"] = statistics.median(run[at][index][1] for run in runs)
        if not reads:
            row["tiny_ms"] = statistics.median(run[-1][index][2] for run in runs)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("numpy", "hand-over"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"facts": facts()}
    if options.part != "numpy":
        found["hand_over"] = list(time_hand_over(options.rounds))
    if options.part != "hand-over":
        exchange.of_process()
        files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=8 * LARGE)
        found["numpy"] = list(time_numpy(options.rounds))
    text = json.dumps(found, indent=1) + "\n"
    if options.json:
        options.json.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        with dask.config.set(json.loads(sys.argv[3])):
            asyncio.run(serve())
    else:
        main()

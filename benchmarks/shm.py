"""What it costs to compute with arrays in the memory file, and what it saves to hand them over.

``shm.py numpy`` times operations of NumPy whose results lie in ordinary memory, and in the memory
file, in turns. ``shm.py`` without more does the same and, for each size, the hand-over between two
processes by ``tcp``, ``cma`` and ``shm``.
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

import dask
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

from dask_fabric.comm import runtime
from dask_fabric.memory import arrays
from dask_fabric.wire.text import table

SIZES = (1_000_000, 10_000_000, 100_000_000)
SHM = {"fabric.shm.enabled": True, "fabric.shm.results": True, "fabric.shm.max": "8 GB"}
ROUNDS = 9
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


def numpy_rows(rounds: int) -> Iterator[list[str]]:
    """Time each operation in ordinary memory and in the memory file, in turns."""
    yield ["operation", "MB", "ordinary, ms", "memory file, ms", "ratio"]
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
            plain, file = (statistics.median(of) * 1e3 for of in times)
            yield [name, f"{nbytes // 10**6}", f"{plain:.3f}", f"{file:.3f}", f"{file / plain:.3f}"]


async def serve() -> None:
    async def handle(comm) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = (await comm.read())["data"]
                await comm.write({"sum": float(data.sum())} if data[0] else {})
                del data

    async with listen(f"{sys.argv[2]}://127.0.0.1", handle) as listener:
        print(listener.contact_address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def hand_over(protocol: str, uses_shm: bool, rounds: int) -> dict[tuple[int, bool], float]:
    """Give the median time in ms of a message with an array, by its size and whether it is read."""
    settings = SHM if uses_shm else {"fabric.shm.enabled": False}
    found = {}
    context = contextvars.copy_context()
    with dask.config.set(settings):
        if uses_shm:
            context.run(arrays.share_results)
        command = [sys.executable, __file__, "serve", protocol, json.dumps(settings)]
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
            comm = await connect(process.stdout.readline().strip())
            for nbytes in SIZES:
                for is_read in (False, True):
                    times = []
                    for _ in range(rounds + 2):
                        data = context.run(np.empty, nbytes // 8)  # as a task would make it
                        data[:] = is_read
                        begin = time.perf_counter()
                        await comm.write({"data": to_serialize(data)})
                        await comm.read()
                        times.append(time.perf_counter() - begin)
                        del data
                    found[nbytes, is_read] = statistics.median(times[2:]) * 1e3
            await comm.close()
            process.stdin.close()
    return found


def hand_over_rows(rounds: int) -> Iterator[list[str]]:
    yield ["array", "tcp, ms", "cma, ms", "shm, ms", "tcp / shm", "cma / shm"]
    kinds = (("tcp", False), ("fabric", False), ("fabric", True))
    runs = [[asyncio.run(hand_over(*kind, rounds)) for kind in kinds] for _ in range(3)]
    for key in runs[0][0]:
        tcp, cma, shm = (statistics.median(run[i][key] for run in runs) for i in range(3))
        title = f"{key[0] // 10**6} MB{', and its sum' if key[1] else ''}"
        times = [f"{value:.3f}" for value in (tcp, cma, shm)]
        yield [title, *times, f"{tcp / shm:.1f}", f"{cma / shm:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("numpy", "hand-over"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.part != "numpy":
        print("\n".join(table(list(hand_over_rows(options.rounds)), has_head=True)), flush=True)
    if options.part != "hand-over":
        with dask.config.set(SHM):
            runtime.settings()
            print("\n".join(table(list(numpy_rows(options.rounds)), has_head=True)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        with dask.config.set(json.loads(sys.argv[3])):
            asyncio.run(serve())
    else:
        main()

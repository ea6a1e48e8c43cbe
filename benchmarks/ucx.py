"""Frames by the `ucx` path between two processes, against UCX's own ucx_perftest.

Both run alternately on the same library; needs its ``ucx_perftest`` (Debian: ucx-utils).
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time

import numpy as np

from dask_fabric.bench import perftest
from dask_fabric.paths.ucx import core as ucx
from dask_fabric.paths.ucx import library as ucx_library
from dask_fabric.paths.ucx.python_endpoint import UCXEndpoint

WINDOW = 4  # frames in flight
COLUMNS = ("ucx path", "perftest by shared memory", "perftest by default (cma)")


def transfer(library: str, sends: bool, connection: socket.socket, size: int, count: int) -> None:
    """Send or receive *count* frames; the receiver prints GB/s and CPU seconds of its process."""
    ucx.start(ucx_library.probe(library, "benchmark"))
    own = ucx.address()
    connection.sendall(own)
    endpoint = UCXEndpoint(connection.recv(len(own)), 1 + sends, 2 - sends)
    buffers = [np.ones(size, "u1") for _ in range(WINDOW)]
    start = endpoint.offer if sends else endpoint.post
    for warm in (True, False):
        begin = time.perf_counter()
        pending = []
        for index in range(WINDOW if warm else count):
            if len(pending) == WINDOW:
                endpoint.wait(pending.pop(0))
            pending.append(start(buffers[index % WINDOW], warm, index))
        for operation in pending:
            endpoint.wait(operation)
    seconds = time.perf_counter() - begin
    connection.sendall(b"!")
    connection.recv(1)
    if not sends:
        print(size * count / seconds / 1e9)


def ours(library: str, size: int, count: int) -> float:
    ends = socket.socketpair()
    command = [sys.executable, __file__, library, "--size", str(size), "--count", str(count)]
    processes = [
        subprocess.Popen(
            [*command, "--end", str(end.fileno()), str(side)],
            pass_fds=[end.fileno()], stdout=subprocess.PIPE, text=True,
        )
        for side, end in enumerate(ends)
    ]  # fmt: skip
    for end in ends:
        end.close()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return float(outputs[0].split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int)
    parser.add_argument("--count", type=int)
    parser.add_argument("--end", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.end:
        fd, sends = args.end
        with socket.socket(fileno=fd) as connection:
            transfer(args.library, bool(sends), connection, args.size, args.count)
        return
    library = args.library or ucx_library.choose().library.path
    for size in (1_000_000, 10_000_000, 100_000_000):
        count = max(10, 2_000_000_000 // size)
        rounds = [
            (
                ours(library, size, count),
                perftest.bandwidth(library, size, count, perftest.SHARED_MEMORY, window=WINDOW),
                perftest.bandwidth(library, size, count, None, window=WINDOW),
            )
            for _ in range(args.rounds)
        ]
        print(f"{size / 1e6:g} MB, GB/s:", end="")
        for name, values in zip(COLUMNS, zip(*rounds, strict=True), strict=True):
            known = [value for value in values if value is not None]
            print(f"  {name} {f'{statistics.median(known):.2f}' if known else '-'}", end="")
        print()


if __name__ == "__main__":
    main()

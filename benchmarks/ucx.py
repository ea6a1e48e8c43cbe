"""Frames by the `ucx` path between two processes, against UCX's own ucx_perftest.

Both run alternately on the same library; needs its ``ucx_perftest`` (Debian: ucx-utils).
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import time

import numpy as np

from dask_fabric.paths import ucx, ucx_library
from dask_fabric.paths.ucx_endpoint import UCXEndpoint

WINDOW = 4  # frames in flight
PORT = 13399
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


def perftest(
    library: str, size: int, count: int, transports: str | None, memory: str = "host"
) -> float | None:
    """Give GB/s; None where this ucx_perftest does not run on the library.

    *memory* is that of both sides: ``host``, or ``cuda``.
    """
    folder = os.path.dirname(library)
    environment = {**os.environ, "LD_LIBRARY_PATH": folder, "UCX_WARN_UNUSED_ENV_VARS": "n"}
    if transports:
        environment["UCX_TLS"] = transports
    command = ["ucx_perftest", "-t", "tag_bw", "-s", str(size), "-n", str(count), "-w",
               str(WINDOW), "-m", memory, "-f", "-p", str(PORT)]  # fmt: skip
    cpus = sorted(os.sched_getaffinity(0))  # both ends spin, and would starve on one
    on_first, on_last = (["-c", str(cpu)] for cpu in (cpus[0], cpus[-1]))
    server = subprocess.Popen([*command, *on_last], env=environment, stdout=subprocess.DEVNULL)
    figures: list[str] = []
    while not figures and server.poll() is None:  # until it listens
        client = subprocess.run(
            [*command, *on_first, "127.0.0.1"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if client.returncode == 0:
            figures = re.findall(r"[\d.]+", client.stdout.strip().rpartition("\n")[2])
        time.sleep(0.05)
    server.kill()
    server.wait()
    return float(figures[5]) * 2**20 / 1e9 if len(figures) > 5 else None  # MB/s of 2**20


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
                perftest(library, size, count, "posix,sysv,self"),
                perftest(library, size, count, None),
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

"""What very many peers cost a server: the time to connect them all, and memory for each.

Run it as ``python benchmarks/peers.py`` (``--peers 3000``). A server, as a process of its own, is
connected to by processes with many clients each, all at once; then each sends a burst of 1 MB. What
the server's memory has grown by is read from ``/proc``, idle before and after the burst.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from distributed.comm import connect, listen

CLIENT_PROCESSES = 4
BURST_MESSAGES, BURST_BYTES = 100, 10_000
PROTOCOLS = ("tcp", "fabric", "fabric+tcp")


def resident_bytes() -> int:
    gc.collect()
    try:
        from dask_fabric.memory import pool

        pool.trim()
    except ImportError:
        pass
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:")) << 10


async def serve(protocol: str) -> None:
    """Count what is received; at each line of input, tell the memory."""
    count = 0

    async def handle(comm):
        nonlocal count
        while True:
            try:
                await comm.read()
            except OSError:
                return
            count += 1

    async with listen(f"{protocol}://127.0.0.1:0", handle) as listener:
        print(listener.contact_address, flush=True)
        loop = asyncio.get_running_loop()
        while True:
            wanted = await loop.run_in_executor(None, sys.stdin.readline)
            if not wanted:
                return
            while count < int(wanted):
                await asyncio.sleep(0.01)
            print(resident_bytes(), flush=True)


async def be_clients(address: str, peers: int) -> None:
    """Connect when told to, say so, and send a burst when told to."""
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    comms = await asyncio.gather(*(connect(address, timeout=120) for _ in range(peers)))
    print("connected", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    for comm in comms:
        for _ in range(BURST_MESSAGES):
            await comm.write(b"x" * BURST_BYTES)
    await loop.run_in_executor(None, sys.stdin.readline)


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: subprocess.Popen, line: str = "") -> None:
    process.stdin.write(line + "\n")
    process.stdin.flush()


def measure(protocol: str, peers: int) -> dict[str, float]:
    server = start("--serve", protocol)
    clients: list[subprocess.Popen] = []
    try:
        address = server.stdout.readline().strip()

        def memory(messages: int) -> int:
            tell(server, str(messages))
            return int(server.stdout.readline())

        each = peers // CLIENT_PROCESSES
        warm = start("--clients", address, "1")  # what the first one costs is no matter of peers
        clients.append(warm)
        clients += [start("--clients", address, str(each)) for _ in range(CLIENT_PROCESSES)]
        for client in clients:
            assert client.stdout.readline() == "ready\n"
        tell(warm), warm.stdout.readline()
        tell(warm)
        before = memory(BURST_MESSAGES)
        begin = time.perf_counter()
        for client in clients[1:]:
            tell(client)
        for client in clients[1:]:
            assert client.stdout.readline() == "connected\n"
        seconds = time.perf_counter() - begin
        idle = memory(BURST_MESSAGES)
        for client in clients[1:]:
            tell(client)
        after = memory(BURST_MESSAGES * (1 + each * CLIENT_PROCESSES))
        return {
            "connects_per_second": each * CLIENT_PROCESSES / seconds,
            "idle_bytes": (idle - before) / (each * CLIENT_PROCESSES),
            "after_burst_bytes": (after - before) / (each * CLIENT_PROCESSES),
        }
    finally:
        for process in (server, *clients):
            process.kill()
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--clients", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    if options.clients:
        asyncio.run(be_clients(options.clients[0], int(options.clients[1])))
        return
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"  # as Dask's nannies set it for workers
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options.protocols.split(",")}
    for _ in range(options.rounds):
        for protocol, rounds in found.items():
            rounds.append(measure(protocol, options.peers))
    medians = {
        protocol: {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        for protocol, rounds in found.items()
    }
    base = medians.get("tcp", {}).get("connects_per_second")
    print(f"{options.peers} peers      connects/s   of tcp   idle comm   after a burst of 1 MB")
    for protocol, told in medians.items():
        ratio = f"{told['connects_per_second'] / base:6.2f}" if base else " " * 6
        print(
            f"{protocol:<15} {told['connects_per_second']:10.0f}   {ratio} "
            f"{told['idle_bytes'] / 1000:8.1f} kB {told['after_burst_bytes'] / 1000:14.1f} kB"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"peers": options.peers, "rounds": found, "medians": medians}, file, indent=1)


if __name__ == "__main__":
    main()

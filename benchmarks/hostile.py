"""What peers that misbehave cost the others: their speed, and the server's memory.

Run it as ``python benchmarks/hostile.py`` (``--protocols fabric,fabric+tcp``). A server answers one
good client. In turns with and without them, processes connect that

- never read what the server writes to them;
- read it, and never acknowledge the large frames on offer, which ``fabric+tcp`` does not have;
- open 2,000 connections and say nothing.

The server writes arrays to the first two kinds for as long as it may. In each turn the good client
connects, and sends small messages and arrays of a megabyte there and back.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from distributed.comm import connect, listen
from distributed.comm.addressing import parse_host_port
from distributed.protocol import to_serialize

KINDS = ("reads nothing", "acknowledges nothing", "says nothing")
SILENT_COUNT = 2_000
FLOOD_BYTES, FLOOD_PEERS = 8_000_000, 3
PROTOCOLS = ("fabric", "fabric+tcp")
SECONDS = 1.0  # of each measurement
# What may be queued is queued by then, and of the silent connections as many are left as may be.
SETTLE_SECONDS = 3.0


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:")) << 10


# ---- the processes


async def serve(protocol: str) -> None:
    """Answer good clients; write to the others."""

    async def handle(comm):
        try:
            if await comm.read() == "good":
                while True:
                    await comm.write(await comm.read())
            while True:
                await comm.write({"x": to_serialize(np.ones(FLOOD_BYTES, "u1"))})
        except OSError:
            return

    async with listen(f"{protocol}://127.0.0.1:0", handle) as listener:
        print(listener.contact_address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def misbehave(address: str, kind: str) -> None:
    """Connect, say so, and never let the event loop go on."""
    held = []
    if kind == "says nothing":
        place = parse_host_port(address.partition("://")[2])
        held = [socket.create_connection(place) for _ in range(SILENT_COUNT)]
    else:
        for _ in range(FLOOD_PEERS):
            comm = await connect(address)
            await comm.write("bad")
            held.append(comm)
        await asyncio.sleep(1)  # the choice of paths is over
    print("connected", flush=True)
    if kind != "acknowledges nothing":
        sys.stdin.read()
        return
    sockets = [comm._channel.transport.sock for comm in held]
    while True:
        for sock in sockets:
            try:
                while sock.recv(1 << 20):
                    pass
            except BlockingIOError:
                continue
            except OSError:
                return
        time.sleep(0.001)


async def be_good(address: str) -> None:
    """At each line of input, measure: connects, messages and arrays per second."""
    loop = asyncio.get_running_loop()
    array = np.ones(1_000_000, "u1")
    print("ready", flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        rates = [await rate(once, address)]
        comm = await connect(address, timeout=60)
        await comm.write("good")
        for message in (1, {"x": to_serialize(array)}):
            rates.append(await rate(there_and_back, comm, message))
        await comm.close()
        print(*rates, flush=True)


async def once(address: str) -> None:
    comm = await connect(address, timeout=60)
    comm.abort()


async def there_and_back(comm, message) -> None:
    await comm.write(message)
    await comm.read()


async def rate(operation, *arguments) -> float:
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + SECONDS:
        await operation(*arguments)
        count += 1
    return count / (time.perf_counter() - begin)


# ---- the measurement


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def rates(client: subprocess.Popen) -> list[float]:
    client.stdin.write("\n")
    client.stdin.flush()
    return [float(text) for text in client.stdout.readline().split()]


def measure(protocol: str, rounds: int) -> Iterator[str]:
    for kind in KINDS:
        if kind == "acknowledges nothing" and protocol == "fabric+tcp":
            continue  # it offers no frames
        server = start("--serve", protocol)
        address = server.stdout.readline().strip()
        good = start("--good", address)
        good.stdout.readline()
        rates(good)  # warm
        before, grown, ratios = resident_bytes(server.pid), 0, []
        for _ in range(rounds):
            alone = rates(good)
            bad = start("--bad", address, "--kind", kind)
            assert bad.stdout.readline()
            time.sleep(SETTLE_SECONDS)
            beside = rates(good)
            grown = max(grown, resident_bytes(server.pid) - before)
            bad.kill()
            bad.wait()
            ratios.append([b / a for a, b in zip(alone, beside, strict=True)])
        for process in (good, server):
            process.kill()
        medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
        yield " | ".join(
            [protocol, kind, *(f"{ratio:.2f}" for ratio in medians), f"{grown / 1e6:.0f} MB"]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--rounds", type=int, default=5)
    for name in ("--serve", "--good", "--bad", "--kind"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.serve:
        asyncio.run(serve(options.serve))
    elif options.good:
        asyncio.run(be_good(options.good))
    elif options.bad:
        asyncio.run(misbehave(options.bad, options.kind))
    else:
        print("protocol | a peer that | connects | messages | 1 MB | memory of the server")
        for protocol in options.protocols.split(","):
            for line in measure(protocol, options.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()

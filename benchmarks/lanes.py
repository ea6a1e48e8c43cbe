"""Large frames over several connections: figures on links that cap each flow, and on one without.

Run it as root: ``python benchmarks/lanes.py`` (``--rate 50 --mb 400``). It makes two network
namespaces, as two hosts. A server in one of them sends arrays to a client in the other, which asks
for each, as a Dask worker asks another for data. `raw` are as many sockets without a comm, the
floor. Writes ``benchmarks/results/lanes.json``, of which ``docs/generate.py`` makes the tables in
docs/lanes.md.

Flows are capped by `networks.cap_flows`. `auto` is given as many transfers before as it takes to
settle, and these are counted (``rounds``). On the link without a cap the settings take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import dask
import numpy as np
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

import networks
from dask_fabric.bench.machine import facts

RESULTS = Path(__file__).with_name("results") / "lanes.json"
NETWORK = "10.79.0"
ROUNDS_MOST = 40
# Within a real network the two would not share memory.
SETTINGS = {
    "fabric.shm.enabled": False,
    "fabric.cma.enabled": False,
    "fabric.ucx.enabled": False,
    "fabric.unix-sockets": False,
}


# ---------------------------------------------------------------- both ends


async def serve() -> None:
    """Answer each number with an array of that many bytes."""
    memory = np.ones(1 << 29, np.uint8)

    async def handle(comm) -> None:
        with contextlib.suppress(OSError):
            while True:
                await comm.write({"x": to_serialize(memory[: await comm.read()])})

    async with listen(f"fabric://{NETWORK}.1:0", handle) as listener:
        print(listener.contact_address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def ask(address: str, nbytes: int, count: int) -> None:
    """Fetch arrays until the number of connections stays, then *count* more, and print figures."""
    comm = await connect(address)

    async def fetch() -> float:
        begin = time.perf_counter()
        await comm.write(nbytes)
        assert (await comm.read())["x"].nbytes == nbytes
        return time.perf_counter() - begin

    rounds, same, before = 0, 0, 0
    while rounds < ROUNDS_MOST and same < 8:
        await fetch()
        rounds += 1
        now = comm.statistics()["connections"]
        same, before = (same + 1 if now == before else 0), now
    times = [await fetch() for _ in range(count)]
    figures = {
        "connections": comm.statistics()["connections"],
        "rounds": rounds,
        **_rates(nbytes, times),
    }
    print(json.dumps(figures))
    await comm.close()


def serve_raw() -> None:
    """To each connection, send as many bytes as it asks for."""
    memory = memoryview(np.ones(1 << 29, np.uint8))

    def handle(sock: socket.socket) -> None:
        while asked := sock.recv(8):
            sock.sendall(memory[: int.from_bytes(asked, "little")])

    with socket.create_server((f"{NETWORK}.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=_take, args=(listener, handle), daemon=True).start()
        sys.stdin.read()


def _take(listener: socket.socket, handle) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=handle, args=(sock,), daemon=True).start()


def ask_raw(port: int, nbytes: int, count: int, flows: int) -> None:
    """Receive arrays in equal parts by as many sockets, and print figures."""
    memory = memoryview(bytearray(nbytes))
    socks = [socket.create_connection((f"{NETWORK}.1", port)) for _ in range(flows)]
    part = nbytes // flows

    def receive(number: int) -> None:
        left = memory[number * part : (number + 1) * part]
        socks[number].sendall(part.to_bytes(8, "little"))
        while left:
            left = left[socks[number].recv_into(left) :]

    times = []
    for _ in range(count + 3):
        begin = time.perf_counter()
        threads = [threading.Thread(target=receive, args=(number,)) for number in range(flows)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        times.append(time.perf_counter() - begin)
    print(json.dumps(_rates(nbytes, times[3:])))


def _rates(nbytes: int, times: Sequence[float]) -> dict:
    return {
        "mb_per_second": round(nbytes / statistics.median(times) / 1e6, 1),
        "best_mb_per_second": round(nbytes / min(times) / 1e6, 1),
    }


@contextlib.contextmanager
def two_hosts(mb_per_second: int):
    """Give the names of two hosts, joined by a link that caps each flow; 0 for no cap."""
    with networks.namespaces(2, "lanes") as names:
        networks.connect(*names, "pair0", NETWORK)
        for name in names if mb_per_second else ():
            networks.cap_flows(name, "pair0", 8 * mb_per_second)
        yield names


def measure(hosts: list[str], lanes: str, nbytes: int, count: int) -> dict:
    """Run both ends, with as many lanes, and give the client's figures."""
    program = [sys.executable, __file__, "--lanes", lanes]
    near, far = (["ip", "netns", "exec", name, *program] for name in hosts)
    with subprocess.Popen(
        [*near, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            address = server.stdout.readline().strip()
            ends = [*far, "ask", address, str(nbytes), str(count)]
            output = subprocess.run(ends, check=True, capture_output=True, text=True, timeout=600)
        finally:
            server.kill()
    figures = {"lanes": lanes, "mb": nbytes // 10**6, **json.loads(output.stdout)}
    print(figures, file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=int, default=50, help="MB/s of one flow")
    parser.add_argument("--mb", type=int, default=400, help="of an array on the capped link")
    parser.add_argument("--count", type=int, default=5, help="transfers to measure")
    parser.add_argument("--turns", type=int, default=5, help="of the settings without a cap")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--lanes", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("end", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.end and args.lanes.startswith("raw"):
        end, *rest = args.end
        flows = int(args.lanes.removeprefix("raw "))
        serve_raw() if end == "serve" else ask_raw(*map(int, rest), flows)
        return
    if args.end:
        lanes = args.lanes if args.lanes == "auto" else int(args.lanes)
        with dask.config.set({**SETTINGS, "fabric.lanes.count": lanes}):
            end, *rest = args.end
            asyncio.run(serve() if end == "serve" else ask(rest[0], *map(int, rest[1:])))
        return
    figures = {"facts": facts(), "rate_mb_per_second": args.rate}
    with two_hosts(args.rate) as hosts:
        figures["capped"] = [
            measure(hosts, count, args.mb * 10**6, args.count)
            for count in ("1", "2", "4", "8", "auto", "raw 1", "raw 8")
        ]
    with two_hosts(0) as hosts:
        figures["uncapped"] = [
            measure(hosts, count, mb * 10**6, 10 * args.count)
            for mb in (1, 10, 100)
            for _ in range(args.turns)
            for count in ("1", "8", "auto", "raw 1")
        ]
    args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

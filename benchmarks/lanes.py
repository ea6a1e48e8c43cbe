"""Large frames over several connections: figures on links that cap each flow, and on one without.

Run it as root: ``python benchmarks/lanes.py`` (``--rate 50 --mb 400``). It makes two network
namespaces, as two hosts. A server in one of them sends arrays to a client in the other, which asks
for each, as a Dask worker asks another for data. `raw` are as many sockets without a comm, the
floor. Writes ``benchmarks/results/lanes.json``, of which ``docs/generate.py`` makes the tables in
docs/lanes.md.

A flow is capped by HTB with a class for each, chosen by classic BPF over the two ports. `auto` is
given as many transfers before as it takes to settle, and these are counted (``rounds``). On the
link without a cap the settings take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
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

from dask_fabric.bench.machine import facts

RESULTS = Path(__file__).with_name("results") / "lanes.json"
FLOWS = 4096
ADDRESS = "10.79.0.1"
ROUNDS_MOST = 40
# Within a real network the two would not share memory.
SETTINGS = {
    "fabric.shm.enabled": False,
    "fabric.cma.enabled": False,
    "fabric.ucx.enabled": False,
    "fabric.unix-sockets": False,
}


# ---------------------------------------------------------------- two hosts


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def two_hosts(mb_per_second: int):
    """Give the names of two namespaces, joined by a link that caps each flow; 0 for no cap."""
    names = [f"lanes{os.getpid()}{side}" for side in "ab"]
    with contextlib.ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("-n", names[0], "link", "add", "pair0", "type", "veth",
           "peer", "name", "pair0", "netns", names[1])  # fmt: skip
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.79.0.{number}/24", "dev", "pair0")
            for device in ("lo", "pair0"):
                ip("-n", name, "link", "set", device, "up")
            if mb_per_second:
                cap(name, mb_per_second)
        yield names


def cap(name: str, mb_per_second: int) -> None:
    """Give each flow a class with this rate: the one that its two ports choose."""

    def tc(*arguments: str, **options) -> None:
        subprocess.run(["ip", "netns", "exec", name, "tc", *arguments], check=True, **options)

    rate = f"{8 * mb_per_second}mbit"
    classes = "".join(
        f"class add dev pair0 parent 1: classid 1:{number:x} htb rate {rate} ceil {rate} "
        "burst 128k cburst 128k quantum 65536\n"
        for number in range(10, FLOWS + 10)
    )
    at = 0xFFF00000  # the network header
    # 1:(10 + (source ^ destination) % FLOWS) for TCP over IPv4, else no class
    program = (
        f"13,48 0 0 {at},84 0 0 240,21 0 9 64,48 0 0 {at + 9},21 0 7 6,40 0 0 {at + 20},7 0 0 0,"
        f"40 0 0 {at + 22},172 0 0 0,84 0 0 {FLOWS - 1},4 0 0 {65536 + 10},22 0 0 0,6 0 0 0,"
    )
    tc("qdisc", "add", "dev", "pair0", "root", "handle", "1:", "htb", "default", "0")
    tc("-batch", "-", input=classes, text=True)
    tc("filter", "add", "dev", "pair0", "parent", "1:", "protocol", "ip", "prio", "10", "bpf",
       "bytecode", program)  # fmt: skip


# ---------------------------------------------------------------- both ends


async def serve() -> None:
    """Answer each number with an array of that many bytes."""
    memory = np.ones(1 << 29, np.uint8)

    async def handle(comm) -> None:
        with contextlib.suppress(OSError):
            while True:
                await comm.write({"x": to_serialize(memory[: await comm.read()])})

    async with listen(f"fabric://{ADDRESS}:0", handle) as listener:
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

    with socket.create_server((ADDRESS, 0)) as listener:
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
    socks = [socket.create_connection((ADDRESS, port)) for _ in range(flows)]
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

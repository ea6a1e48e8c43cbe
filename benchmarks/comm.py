"""Two processes on one host over Dask's public comm API, scheme against scheme.

The schemes take turns within every round, and each row ends in ratios to the first scheme (the
baseline) and to the floor: blocking sockets between warm buffers. Run ``comm.py --help``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dask.utils import parse_bytes
from distributed.comm import connect
from distributed.protocol import to_serialize
from distributed.security import Security

from arguments import SCHEMES, commas, common_parser, is_encrypted, parse
from awake import awake_cpus
from peer import BATCH, CPU, cpu_seconds, recv_exactly
from report import FLOOR, Row, print_facts, print_table, progress, save

SIZES = "8kB,64kB,1MB,10MB,100MB"
MEASURE_TIMEOUT_SECONDS = 300
SMALL = {"op": "task-finished", "key": "x-0123456789", "nbytes": 28}
PING = {"op": "ping"}


def start_peer(scheme: str, options: argparse.Namespace) -> tuple[subprocess.Popen, str]:
    """Start the other process; returns it and its address (for the floor, its port)."""
    security = options.security if is_encrypted(scheme) else None
    config = {"scheme": scheme, "uvloop": options.uvloop, "security": security}
    command = [sys.executable, str(Path(__file__).with_name("peer.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(json.dumps(config) + "\n")
    process.stdin.flush()
    address = process.stdout.readline().strip()
    if not address:
        process.wait()
        sys.exit(f"the peer process could not listen on {scheme}://; its error is above")
    return process, address


class Session:
    """A process of its own at the other end, that ends with this session."""

    def __init__(self, scheme: str, options: argparse.Namespace) -> None:
        self.scheme = scheme
        self.process, self.address = start_peer(scheme, options)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.communicate()


class CommSession(Session):
    """Measurements over one comm."""

    def __init__(self, scheme: str, options: argparse.Namespace) -> None:
        super().__init__(scheme, options)
        self._arguments: dict[str, Any] = {}
        if is_encrypted(scheme):
            self._arguments = Security(**options.security).get_connection_args("client")

    async def open(self) -> None:
        self.comm = await connect(self.address, **self._arguments)

    async def close(self) -> None:
        await self.comm.close()
        self.process.communicate()

    async def ask(self, message: dict) -> dict:
        """Write one message and read the answer."""
        await self.comm.write(message)
        return await self.comm.read()

    async def ping(self, count: int) -> float:
        """Seconds for so many round trips."""
        read, write = self.comm.read, self.comm.write
        begin = time.perf_counter()
        for _ in range(count):
            await write(PING)
            await read()
        return time.perf_counter() - begin

    async def flood(self, count: int) -> float:
        """Seconds for so many messages one way, until the last is acknowledged."""
        write = self.comm.write
        await write({"op": "flood", "count": count})
        begin = time.perf_counter()
        for _ in range(count):
            await write(SMALL)
        await self.comm.read()
        return time.perf_counter() - begin

    async def send(self, array: np.ndarray, count: int) -> float:
        """Seconds for so many arrays, each answered by a small message."""
        read, write = self.comm.read, self.comm.write
        begin = time.perf_counter()
        for _ in range(count):
            await write({"op": "data", "x": to_serialize(array)})
            await read()
        return time.perf_counter() - begin

    async def send_beside_spinner(self, array: np.ndarray, count: int) -> float:
        """As `send`, while a thread of the receiver runs pure Python."""
        await self.ask({"op": "spin", "on": True})
        try:
            return await self.send(array, count)
        finally:
            await self.ask({"op": "spin", "on": False})

    async def send_cpu(self, array: np.ndarray, count: int) -> float:
        """CPU seconds of both processes for so many arrays."""
        before = cpu_seconds() + (await self.ask({"op": "usage"}))["cpu_seconds"]
        await self.send(array, count)
        return cpu_seconds() + (await self.ask({"op": "usage"}))["cpu_seconds"] - before

    async def connects(self, count: int) -> float:
        """Seconds for so many connections, Dask's handshake included, opened and closed."""
        begin = time.perf_counter()
        for _ in range(count):
            comm = await connect(self.address, **self._arguments)
            await comm.close()
        return time.perf_counter() - begin

    async def memory_bytes(self) -> list[int]:
        """Resident memory of the receiver now, and its peak so far."""
        return (await self.ask({"op": "memory"}))["memory_bytes"]


class FloorSession(Session):
    """The same over a blocking socket, without messages: what the loopback gives to Python."""

    async def open(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(self.address)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def close(self) -> None:
        self.socket.close()
        self.process.communicate()

    def _batch(self, array: np.ndarray, count: int) -> tuple[float, float]:
        view = memoryview(array).cast("B")
        self.socket.sendall(BATCH.pack(view.nbytes, count))
        begin, cpu_begin = time.perf_counter(), time.process_time()
        for _ in range(count):
            self.socket.sendall(view)
            self.socket.recv(1)
        elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
        answer = bytearray(CPU.size)
        recv_exactly(self.socket, memoryview(answer))
        return elapsed, cpu + CPU.unpack(answer)[0]

    async def ping(self, count: int) -> float:
        return self._batch(np.ones(1, "u1"), count)[0]

    async def send(self, array: np.ndarray, count: int) -> float:
        return self._batch(array, count)[0]

    async def send_cpu(self, array: np.ndarray, count: int) -> float:
        return self._batch(array, count)[1]


@dataclass(frozen=True)
class Figure:
    """How one row is measured: by a verb of the sessions; a session without it sits it out."""

    key: str
    name: str
    unit: str
    verb: str
    array: np.ndarray | None = None

    async def measure(self, session: Session, count: int) -> float:
        """Seconds for so many repetitions."""
        arguments = [] if self.array is None else [self.array]
        return await getattr(session, self.verb)(*arguments, count)

    def value(self, seconds: float, count: int) -> float:
        """The seconds of so many repetitions in the unit of the row."""
        gigabytes = 0 if self.array is None else self.array.nbytes * count / 1e9
        if self.unit == "us":
            return seconds / count * 1e6
        if self.unit == "1/s":
            return count / seconds
        return gigabytes / seconds if self.unit == "GB/s" else seconds / gigabytes


def size_name(size: int) -> str:
    """A size in bytes as it was asked for, in decimal units."""
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"


def figures(sizes: list[int]) -> list[Figure]:
    """All figures except memory, which is not measured in rounds."""
    largest = np.ones(max(sizes), "u1")
    name = size_name(largest.nbytes)
    numpys = [
        Figure("numpy", f"numpy {size_name(n)}, acknowledged", "GB/s", "send", largest[:n])
        for n in sizes
    ]
    return [
        Figure("ping", "round trip of a tiny message", "us", "ping"),
        Figure("flood", "small messages one way", "1/s", "flood"),
        *numpys,
        Figure("spin", f"numpy {name}, busy receiver", "GB/s", "send_beside_spinner", largest),
        Figure("cpu", f"CPU of both sides at {name}", "s/GB", "send_cpu", largest),
        Figure("connect", "connects, handshake included", "1/s", "connects"),
    ]


async def calibrate(session: Session, figure: Figure, seconds: float) -> int:
    """Warm up, and find the count that lasts about so long."""
    count = 1
    while True:
        begin = time.perf_counter()
        await figure.measure(session, count)
        elapsed = time.perf_counter() - begin
        if elapsed > seconds / 4:
            return max(1, round(count * seconds / elapsed))
        count = max(2 * count, min(10 * count, round(count * seconds / 2 / elapsed)))


async def measure(figure: Figure, sessions: list[Session], options: argparse.Namespace) -> Row:
    """One row: in every round each scheme once, in turning order."""
    row = Row(figure.name, figure.unit, figure.unit.endswith("/s"))
    able = [s for s in sessions if hasattr(s, figure.verb)]
    counts = {s: await calibrate(s, figure, options.round_seconds) for s in able}
    for turn in range(options.rounds):
        shift = turn % len(able)
        for session in able[shift:] + able[:shift]:
            gc.collect()
            count = counts[session]
            elapsed = await figure.measure(session, count)
            row.add(session.scheme, figure.value(elapsed, count))
    return row


async def measure_memory(options: argparse.Namespace) -> list[Row]:
    """Memory of a fresh receiver in the first tenth of many large messages, and in all of them."""
    size = max(options.sizes)
    array = np.ones(size, "u1")
    tenth = options.messages // 10
    rows = [
        Row(f"{what} after {count:,} x {size_name(size)}", "MB", False)
        for count in (tenth, options.messages)
        for what in ("receiver's memory", "its peak")
    ]
    for scheme in options.schemes:
        session = CommSession(scheme, options)
        try:
            await session.open()
            await session.send(array, tenth)
            values = await session.memory_bytes()
            await session.send(array, options.messages - tenth)
            values += await session.memory_bytes()
            await session.close()
        finally:
            session.kill()
        for row, value in zip(rows, values, strict=True):
            row.add(scheme, value / 1e6)
    return rows


async def run(options: argparse.Namespace) -> list[Row]:
    """All rows asked for, each scheme in a fresh process."""
    sessions: list[Session] = [CommSession(s, options) for s in options.schemes]
    if not options.no_floor:
        sessions.append(FloorSession(FLOOR, options))
    rows = []
    try:
        for session in sessions:
            await session.open()
        for figure in figures(options.sizes):
            if figure.key in options.figures:
                progress(figure.name)
                work = measure(figure, sessions, options)
                rows.append(await asyncio.wait_for(work, MEASURE_TIMEOUT_SECONDS))
        if "memory" in options.figures:
            progress("memory of the receiver")
            rows += await measure_memory(options)
        for session in sessions:
            await session.close()
    finally:
        for session in sessions:
            session.kill()
    return rows


FIGURES = ("ping", "flood", "numpy", "spin", "cpu", "connect", "memory")


def parse_arguments() -> argparse.Namespace:
    """The command line, checked, with what the flags imply."""
    parser = common_parser(__doc__, rounds=7)
    parser.add_argument("--figures", type=commas(str), default=list(FIGURES), help=str(FIGURES))
    parser.add_argument("--sizes", type=commas(parse_bytes), default=SIZES, help=SIZES)
    parser.add_argument("--round-seconds", type=float, default=0.5, help="length of one round")
    parser.add_argument("--messages", type=int, default=100, help="messages of the memory figure")
    parser.add_argument("--full", action="store_true", help="1,000 messages for the memory figure")
    parser.add_argument("--no-floor", action="store_true", help="leave out the blocking sockets")
    parser.add_argument("--uvloop", action="store_true", help="both processes run on uvloop")
    options = parse(parser, SCHEMES)
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"unknown figures {sorted(unknown)}; there are {', '.join(FIGURES)}")
    if options.messages < 20:
        parser.error("--messages must be at least 20: the first tenth is the reference")
    if options.quick:
        options.rounds, options.round_seconds = min(options.rounds, 3), 0.2
    if options.full:
        options.messages = 1000
    return options


def temporary_security(schemes: list[str]) -> dict | None:
    """Certificates as keywords of `Security`, where a scheme needs them."""
    if not any(map(is_encrypted, schemes)):
        return None
    security = Security.temporary()
    names = [
        "tls_ca_file",
        *(f"tls_{r}_{k}" for r in ("client", "scheduler", "worker") for k in ("cert", "key")),
    ]
    return {"require_encryption": True, **{name: getattr(security, name) for name in names}}


def main() -> None:
    options = parse_arguments()
    options.security = temporary_security(options.schemes)
    print_facts()
    with awake_cpus(not options.sleepy):
        if options.uvloop:
            import uvloop

            rows = uvloop.run(run(options))
        else:
            rows = asyncio.run(run(options))
    schemes = [*options.schemes, *([] if options.no_floor else [FLOOR])]
    print_table(rows, schemes, options.schemes[0])
    shown = {key: value for key, value in vars(options).items() if key != "security"}
    save(options.json, rows, options.schemes[0], shown)


if __name__ == "__main__":
    main()

"""Two processes on one host over Dask's public comm API, scheme against scheme.

The schemes take turns within every round, and each row ends in ratios to the first scheme (the
baseline); what is asked of the schemes stands in a table of its own. Run ``comm.py --help``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
from dataclasses import dataclass

import dask
import numpy as np
from dask.utils import parse_bytes
from distributed.security import Security

from arguments import commas, common_parser, is_encrypted, parse
from asked import COPIES, PERFTEST, SOCKETS, UCXX, compare, print_asked
from awake import awake_cpus
from floors import CopySession, FloorSession, ForeignSession, PerftestSession, perftest_library
from report import Row, print_facts, print_table, progress, save
from sessions import CommSession, Session

SIZES = "8kB,64kB,1MB,10MB,100MB"
MEASURE_TIMEOUT_SECONDS = 300
PINNED = ("ping", "flood", "connects")
CPUS = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Figure:
    """How one row is measured: by a verb of the sessions; a session without it sits it out."""

    key: str
    name: str
    unit: str
    verb: str
    array: np.ndarray | None = None

    def is_for(self, session: Session) -> bool:
        """Whether the session can do this, with arrays of this size."""
        large_enough = self.array is None or self.array.nbytes >= session.least_bytes
        return large_enough and hasattr(session, self.verb)

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


def pin(session: Session, wanted: bool) -> None:
    """Put all threads of one process on one CPU and those of the other on the next, or let go.

    What is small takes much less time where both happen to share a CPU, whatever the scheme.
    """
    for pid, place in zip(session.pids, (0, -1), strict=False):
        cpus = {CPUS[place]} if wanted else CPUS
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cpus)


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
    able = [s for s in sessions if figure.is_for(s)]
    for session in able:
        pin(session, figure.verb in PINNED)
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
    sessions += [KINDS[name](name, options) for name in options.beside]
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


KINDS = {
    SOCKETS: FloorSession,
    COPIES: CopySession,
    PERFTEST: PerftestSession,
    UCXX: ForeignSession,
}
FIGURES = ("ping", "flood", "numpy", "spin", "cpu", "connect", "memory")


def parse_arguments() -> argparse.Namespace:
    """The command line, checked, with what the flags imply."""
    parser = common_parser(__doc__, rounds=5)
    parser.add_argument("--figures", type=commas(str), default=list(FIGURES), help=str(FIGURES))
    parser.add_argument("--sizes", type=commas(parse_bytes), default=SIZES, help=SIZES)
    parser.add_argument("--round-seconds", type=float, default=0.5, help="length of one round")
    parser.add_argument("--messages", type=int, default=100, help="messages of the memory figure")
    parser.add_argument("--full", action="store_true", help="1,000 messages for the memory figure")
    parser.add_argument("--no-floor", action="store_true", help="the schemes alone")
    parser.add_argument("--ucx-library", help="of fabric+ucx; left out: the one of ucx_perftest")
    parser.add_argument("--ucxx", metavar="PYTHON", help="a Python that has distributed-ucxx")
    parser.add_argument("--uvloop", action="store_true", help="both processes run on uvloop")
    options = parse(parser, ["tcp", "fabric", "fabric+tcp", "fabric+ucx"])
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"unknown figures {sorted(unknown)}; there are {', '.join(FIGURES)}")
    if options.messages < 20:
        parser.error("--messages must be at least 20: the first tenth is the reference")
    if options.quick:
        options.rounds, options.round_seconds = min(options.rounds, 3), 0.2
        options.messages = 20
    if options.full:
        options.messages = 1000
    options.on_gpu = False
    choose_beside(options)
    return options


def choose_beside(options: argparse.Namespace) -> None:
    """Fill in what is measured beside the schemes, and the UCX that fabric+ucx shares with it."""
    options.beside = [] if options.no_floor else [SOCKETS, COPIES]
    if "fabric+ucx" not in options.schemes:
        return
    if share_library(options):
        options.beside += [] if options.no_floor else [PERFTEST]
    if options.ucxx:
        options.beside.append(UCXX)


def share_library(options: argparse.Namespace) -> bool:
    """Let the schemes run on the UCX of ucx_perftest, or on the one that is named, if any is."""
    options.ucx_library = options.ucx_library or perftest_library()
    if options.ucx_library:
        dask.config.set({"fabric.ucx.library": options.ucx_library})
        os.environ["DASK_FABRIC__UCX__LIBRARY"] = options.ucx_library  # of the other process
    return bool(options.ucx_library)


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
    print(f"\npinned, client to CPU {CPUS[0]} and server to CPU {CPUS[-1]}: {', '.join(PINNED)}")
    print_table(rows, [*options.schemes, *options.beside], options.schemes[0])
    asked = compare(rows)
    print_asked(asked)
    shown = {key: value for key, value in vars(options).items() if key != "security"}
    save(options.json, rows, options.schemes[0], {**shown, "pinned": PINNED}, asked)


if __name__ == "__main__":
    main()

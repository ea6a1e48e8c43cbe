"""Count the instructions of small messages and of connects, and hold them to a baseline.

``make instructions`` runs this. Both sides of a comm run in one process under valgrind's callgrind,
which counts instructions the same way however busy the machine is. The loads call a marked function
of the C library, at which callgrind writes down its counters: first around a few messages, then
around many. The difference between the two is what messages cost; start-up is in neither.

Where objects lie in memory depends on the folder of a clone, and moves a round trip by up to 0.9 %:
the allocators' work differs. So each process first allocates another number of objects, and the
median of all counts.

Exit status: 0 where no figure is more than 1 % above the baseline, 1 where one is, 3 where the
baseline holds nothing that was recorded with the same interpreter, compiler, libraries and kernel
features, 4 where nothing could be counted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from distributed.comm import connect, listen

from dask_fabric.engine import channel
from dask_fabric.text_table import table

BASELINE = Path(__file__).with_suffix(".json")
TOLERANCE = 0.01
RUNS = 5
ROUNDS = 3  # in each run
LAYOUT_OBJECTS = 113  # that each process allocates more than the one before
BURST = 50  # messages between two turns of the loop
MESSAGE = {"op": "x", "key": "abc", "n": 1}
# What the loads call between two counts. Nothing else calls it while they run.
MARK = "sched_yield"
PASSED, WORSE, NO_BASELINE, NOT_COUNTED = 0, 1, 3, 4
RECORD_HINT = "make instructions RECORD=1"
# One thread, one order of sets and dicts, and no library that only some hosts have.
FIXED = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "DASK_CONFIG": os.devnull,
    "DASK_FABRIC__UCX__ENABLED": "False",
    "DASK_FABRIC__GPU__ENABLED": "False",
}


class CountingError(Exception):
    """Nothing could be counted; the text says why and what to do."""


# ---------------------------------------------------------------- loads


@dataclass(frozen=True)
class Load:
    """Something done a few times and many times, both of which are counted."""

    name: str
    few: int
    many: int
    prepare: Callable[[object, asyncio.Queue], Awaitable[Callable[[int], Awaitable[None]]]]


async def flood(listener, accepted) -> Callable[[int], Awaitable[None]]:
    """One side writes, the other reads."""
    near = await connect(listener.contact_address)
    far = await accepted.get()

    async def read(count: int) -> None:
        for _ in range(count):
            await far.read()

    async def repeat(count: int) -> None:
        reading = asyncio.ensure_future(read(count))
        for _ in range(count // BURST):
            for _ in range(BURST):
                await near.write(MESSAGE)
            await asyncio.sleep(0)
        await reading

    return repeat


async def round_trips(listener, accepted) -> Callable[[int], Awaitable[None]]:
    """One side writes and waits for the answer."""
    near = await connect(listener.contact_address)
    far = await accepted.get()

    async def answer(count: int) -> None:
        for _ in range(count):
            await far.write(await far.read())

    async def repeat(count: int) -> None:
        answering = asyncio.ensure_future(answer(count))
        for _ in range(count):
            await near.write(MESSAGE)
            await near.read()
        await answering

    return repeat


async def connects(listener, accepted) -> Callable[[int], Awaitable[None]]:
    """A comm is opened, with Dask's handshake, and both sides close it."""

    async def repeat(count: int) -> None:
        for _ in range(count):
            near = await connect(listener.contact_address)
            far = await accepted.get()
            await near.close()
            await far.close()

    return repeat


LOADS = (
    Load("small message one way", 500, 1500, flood),
    Load("round trip", 500, 1500, round_trips),
    Load("connect and close", 20, 60, connects),
)


async def run_loads(layout: int) -> None:
    """Run every load with its marks; prints what its comms have agreed on: counts depend on it."""
    kept = [bytes(16 * (number % 31) + 1) for number in range(LAYOUT_OBJECTS * layout)]
    accepted: asyncio.Queue = asyncio.Queue()
    async with listen("fabric://127.0.0.1", accepted.put) as listener:
        first = await connect(listener.contact_address)
        print(
            json.dumps(
                {"stream": first.control_stream, "paths": first.statistics()["path_order"]["host"]}
            )
        )
        (await accepted.get()).abort()
        first.abort()
        for load in LOADS:
            repeat = await load.prepare(listener, accepted)
            await repeat(max(load.few // 2, BURST))  # what is done once is done
            gc.collect()
            for _ in range(ROUNDS):
                os.sched_yield()
                await repeat(load.few)
                os.sched_yield()
                await repeat(load.many)
                os.sched_yield()
    del kept


# ---------------------------------------------------------------- counting


def costs(counts: Sequence[int], loads: Sequence[Load] = LOADS, rounds: int = ROUNDS) -> dict:
    """Give the instructions of one message or connect, from what was counted between the marks.

    Parameters
    ----------
    counts : sequence of int
        Before the first mark, between each and the next, and after the last.
    """
    expected = 3 * rounds * len(loads) + 1
    if len(counts) != expected:
        raise CountingError(
            f"callgrind has written {len(counts)} counts instead of {expected}: does something "
            f"else call {MARK}() by now?"
        )
    found = {}
    for number, load in enumerate(loads):
        begins = range(3 * rounds * number + 1, 3 * rounds * (number + 1) + 1, 3)
        found[load.name] = statistics.median(
            (counts[begin + 1] - counts[begin]) / (load.many - load.few) for begin in begins
        )
    return found


def read_counts(folder: Path) -> list[int]:
    """Read the totals that callgrind has written at each mark, in order, and at the end."""
    by_part = {}
    for path in folder.glob("counts*"):
        text = path.read_text(errors="replace")
        part = re.search(r"^part: (\d+)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)", text, re.MULTILINE)
        if part and total:
            by_part[int(part[1])] = int(total[1])
    return [by_part[part] for part in sorted(by_part)]


def count_once(layout: int) -> tuple[dict, dict]:
    """Run the loads in a fresh process; returns the costs, and what its comms have agreed on."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(["setarch", "-R"] if shutil.which("setarch") else []),  # the same addresses each time
            *("valgrind", "--quiet", "--tool=callgrind", f"--dump-before={MARK}"),
            f"--callgrind-out-file={folder}/counts",
            *(sys.executable, __file__, "--loads-only", str(layout)),
        ]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(command, env=kept | FIXED, capture_output=True, text=True)
        if done.returncode != 0:
            raise CountingError(f"the loads have failed under valgrind:\n{done.stderr[-2000:]}")
        return costs(read_counts(Path(folder))), json.loads(done.stdout)


def count(runs: int) -> tuple[dict[str, list[float]], dict]:
    """Count in several processes, on one CPU; returns the costs in each, and the environment."""
    if not shutil.which("valgrind"):
        raise CountingError("valgrind is not installed: apt install valgrind, or the like")
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})  # inherited
    try:
        results = [count_once(layout) for layout in range(runs)]
    finally:
        os.sched_setaffinity(0, cpus)
    figures = {load.name: [found[load.name] for found, _ in results] for load in LOADS}
    return figures, environment() | results[0][1]


def environment() -> dict[str, str]:
    """What counts depend on, beside what the comms agree on because of the kernel."""
    built = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", compiled_module())
    cython = [name for name in sys.modules if re.fullmatch(r"_cython_\d\w*", name)]
    asked = subprocess.run(["valgrind", "--version"], capture_output=True, text=True)
    packages = ("distributed", "dask", "tornado", "msgpack", "numpy")
    return {
        "machine": " ".join([platform.machine(), *vector_instructions()]),
        "python": f"{platform.python_version()}, {platform.python_compiler()}",
        "compiler": built[0].decode() if built else "unknown",
        "cython": cython[0].removeprefix("_cython_").replace("_", ".") if cython else "unknown",
        "libc": " ".join(platform.libc_ver()),
        "valgrind": asked.stdout.strip().removeprefix("valgrind-"),
        **{package: version(package) for package in packages},
    }


def compiled_module() -> bytes:
    return Path(channel.__file__).read_bytes()


def vector_instructions() -> list[str]:
    """Those by which the C library and NumPy choose their code, of what valgrind knows."""
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    return [flag for flag in ("sse4_2", "avx2") if flag in flags]


# ---------------------------------------------------------------- baseline


def differences(one: Mapping, other: Mapping) -> list[str]:
    """Say in what two environments differ: the baseline's, then this one."""
    return [
        f"{name} {one.get(name)!r}, here {other.get(name)!r}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def fitting(baseline: Sequence[Mapping], here: Mapping) -> Mapping[str, float] | None:
    """Give the figures that were recorded in this environment."""
    found = [recorded["figures"] for recorded in baseline if recorded["environment"] == here]
    return found[0] if found else None


def recorded(baseline: Sequence[Mapping], here: Mapping, figures: Mapping) -> list[Mapping]:
    """Give the baseline with these figures in place of the earlier ones of this environment."""
    kept = [entry for entry in baseline if entry["environment"] != here]
    rounded = {name: round(value) for name, value in figures.items()}
    return [*kept, {"environment": dict(here), "figures": rounded}]


def complaints(figures: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """Say which figures are too far above the baseline, or are not in it."""
    found = []
    for name, now in figures.items():
        if name not in before:
            found.append(f"{name}: not in the baseline")
        elif now > before[name] * (1 + TOLERANCE):
            found.append(
                f"{name}: {now:,.0f} instructions, {change(now, before[name])} against the "
                f"baseline of {before[name]:,.0f} (at most {TOLERANCE:+.0%} is allowed)"
            )
    return found


def change(now: float, before: float) -> str:
    return f"{now / before - 1:+.2%}"


def comparison(runs: Mapping[str, Sequence[float]], before: Mapping[str, float]) -> str:
    """Show the median of the runs, how far they lie apart, and the baseline."""
    lines = [["instructions, both sides", "now", "spread of runs", "baseline", "change"]]
    for name, values in runs.items():
        now = statistics.median(values)
        spread = f"{(max(values) - min(values)) / now:.2%}"
        known = [f"{before[name]:,.0f}", change(now, before[name])] if name in before else ["", ""]
        lines.append([name, f"{now:,.0f}", spread, *known])
    return "\n".join(table(lines, has_head=True))


def verdict(baseline: Sequence[Mapping], here: Mapping, figures: Mapping) -> tuple[int, str]:
    """Hold figures to the baseline of this environment; returns exit status and message."""
    before = fitting(baseline, here)
    if before is None:
        lines = ["no baseline was recorded in an environment like this one."]
        unlike = [differences(entry["environment"], here) for entry in baseline]
        if unlike:
            lines.append("The nearest differs in: " + "; ".join(min(unlike, key=len)))
        lines.append(f"To record one on a tree that is known to be good: {RECORD_HINT}")
        return NO_BASELINE, "\n".join(lines)
    found = complaints(figures, before)
    if not found:
        return PASSED, f"no figure is more than {TOLERANCE:.0%} above the baseline"
    hint = f"Where that is meant to be, record a new baseline and commit it: {RECORD_HINT}"
    return WORSE, "\n".join(["REGRESSION", *found, hint])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="make this the baseline")
    parser.add_argument("--runs", type=int, default=RUNS, help="processes to count in")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="a file of JSON")
    parser.add_argument("--loads-only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.loads_only is not None:
        asyncio.run(run_loads(options.loads_only))
        return PASSED
    try:
        runs, here = count(options.runs)
    except CountingError as exc:
        print(f"nothing was counted: {exc}", file=sys.stderr)
        return NOT_COUNTED
    baseline = json.loads(options.baseline.read_text()) if options.baseline.exists() else []
    figures = {name: statistics.median(values) for name, values in runs.items()}
    print(comparison(runs, fitting(baseline, here) or {}))
    if options.record:
        text = json.dumps(recorded(baseline, here, figures), indent=2)
        options.baseline.write_text(text + "\n")
        print(f"recorded in {options.baseline}")
        return PASSED
    status, message = verdict(baseline, here, figures)
    print(message)
    return status


if __name__ == "__main__":
    sys.exit(main())

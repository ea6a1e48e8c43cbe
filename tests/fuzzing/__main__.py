"""Fuzz everything that reads a peer's input, guided by coverage: ``make fuzz TIME=SECONDS``.

Builds the compiled modules with counters that libFuzzer reads, and runs each target for its share
of the time, in turns. ``build/fuzz`` has the new inputs (``corpus``), a line for each turn
(``log``), and what was found (``faults``). Ends with 1 where a fault was found.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.builds import ROOT, prepare

from . import corpus, targets  # noqa: F401  # registers the targets
from .registry import TARGETS, Target

WORK = ROOT / "build/fuzz"
FAULTS = WORK / "faults"
LOG = WORK / "log"
TURN_SECONDS = 300  # at most; then the next target has its turn
HANG_SECONDS = 20
INPUT_BYTES_LIMIT = 4096
MEMORY_MIB_LIMIT = 1024  # of the process, with all that earlier inputs have left
# `#370195 DONE   cov: 2210 ft: 4455 corp: 340/45Kb lim: 4096 exec/s: 41132 rss: 61Mb`
_STATUS = re.compile(r"^#(\d+)\t.*? cov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)


def build() -> Path:
    """Build with counters, and give the interpreter."""
    if shutil.which("clang") is None:
        sys.exit("clang is needed, which writes the counters that libFuzzer reads: install it")
    return prepare("fuzz", {"FABRIC_FUZZ": "ON", "CMAKE_C_COMPILER": "clang"}, "test,fuzz")


def fuzz(python: Path, target: Target, seconds: int) -> dict:
    """Run one target for a time; give its figures, and add them to the log."""
    folder = WORK / "corpus" / target.name
    corpus.unpack([*target.seeds, *corpus.kept(target.name)], folder)
    known = set(FAULTS.iterdir())
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={HANG_SECONDS}",
        f"-report_slow_units={HANG_SECONDS}",  # by the clock; `oracle` measures the CPU's time
        f"-max_len={INPUT_BYTES_LIMIT}",
        f"-rss_limit_mb={MEMORY_MIB_LIMIT}",
        f"-artifact_prefix={FAULTS}/{target.name}-",
    ]
    if target.words:
        options.append(f"-dict={_dictionary(target)}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = _guided(python, target, [*options, str(folder)])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    count, edges, features, size = map(int, _last_status(output))
    found = sorted(set(FAULTS.iterdir()) - known)
    figures = {
        "target": target.name,
        "inputs": count,
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "seconds": seconds,
        "edges": edges,
        "features": features,
        "corpus": size,
        "faults": [path.name for path in found if path.suffix != ".txt"],
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    if not count:
        figures["faults"].append(f"{target.name} has not begun")
        print(output[-1000:])
    with LOG.open("a") as log:
        log.write(json.dumps(figures) + "\n")
    return figures


def _guided(python: Path, target: Target, options: Sequence[str]) -> str:
    command = [str(python), "-m", "tests.fuzzing.guided", target.name, str(FAULTS), *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    (WORK / f"{target.name}.out").write_text(output)
    return output


def _last_status(output: str) -> Sequence[str]:
    return (_STATUS.findall(output) or [("0", "0", "0", "0")])[-1]


def _dictionary(target: Target) -> Path:
    path = WORK / f"{target.name}.dict"
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words if word)
    path.write_text("".join(f'"{word}"\n' for word in words))
    return path


def minimise(python: Path, target: Target) -> None:
    """Keep in the repository the fewest inputs that reach all that those at work reach."""
    folder = WORK / "minimised" / target.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _guided(python, target, ["-merge=1", str(folder), str(WORK / "corpus" / target.name)])
    inputs = corpus.files(folder)
    if not inputs:
        sys.exit(f"no input of {target.name} was kept: see {WORK}/{target.name}.out")
    print(f"{target.name}: {len(inputs)} inputs, {corpus.keep(target.name, inputs):,} bytes")


def totals() -> str:
    """Sum the log up, by target."""
    sums: dict[str, list] = {}
    for line in LOG.read_text().splitlines() if LOG.exists() else ():
        entry = json.loads(line)
        for name in (entry["target"], "all"):
            row = sums.setdefault(name, [0, 0, 0])
            row[0] += entry["inputs"]
            row[1] += entry["cpu_seconds"]
            row[2] += len(entry["faults"])
    rows = [f"{'target':16}{'inputs':>14}{'hours of CPU':>14}{'faults':>8}"]
    for name, (count, seconds, fault_count) in sums.items():
        rows.append(f"{name:16}{count:14,}{seconds / 3600:14.2f}{fault_count:8}")
    return "\n".join(rows)


HEAD = (
    f"{'target':16}{'inputs':>12}{'a second':>10}{'edges':>8}{'features':>10}{'corpus':>8}  faults"
)


def row(figures: dict) -> str:
    rate = figures["inputs"] / max(figures["cpu_seconds"], 1)
    return (
        f"{figures['target']:16}{figures['inputs']:12,}{rate:10,.0f}{figures['edges']:8}"
        f"{figures['features']:10}{figures['corpus']:8}  {', '.join(figures['faults']) or 'none'}"
    )


def run_all(python: Path, chosen: Sequence[Target], seconds: int) -> int:
    """Give each target its share of the time, in turns; return how many faults were found."""
    fault_count = 0
    shares = sum(target.share for target in chosen)
    turns = max(1, round(seconds * max(one.share for one in chosen) / shares / TURN_SECONDS))
    print(HEAD, flush=True)
    for _ in range(turns):
        for target in chosen:
            part_seconds = max(1, round(seconds * target.share / shares / turns))
            figures = fuzz(python, target, part_seconds)
            print(row(figures), flush=True)
            fault_count += len(figures["faults"])
    return fault_count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--time", type=int, default=600, help="seconds, for all targets together")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--minimise", action="store_true", help="write tests/corpus anew, and end")
    parser.add_argument("--totals", action="store_true", help="sum up build/fuzz/log, and end")
    options = parser.parse_args()
    if options.totals:
        print(totals())
        return 0
    FAULTS.mkdir(parents=True, exist_ok=True)
    python = build()
    chosen = [TARGETS[name] for name in options.targets]
    if options.minimise:
        for target in chosen:
            minimise(python, target)
        return 0
    fault_count = run_all(python, chosen, options.time)
    if fault_count:
        print(f"Inputs and causes: {FAULTS}/")
        print(f"Run one again: {sys.executable} -m tests.fuzzing.replay TARGET FILE")
    return bool(fault_count)


if __name__ == "__main__":
    sys.exit(main())

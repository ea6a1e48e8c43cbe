"""Run tests on compiled modules that the compiler has added checks to.

``address`` finds memory that is used after it was freed or beyond its end, and undefined behaviour
of C. ``thread`` finds memory that two threads use at once without a lock or an atomic::

    python -m tests.sanitize address -- tests/wire -x
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.builds import ROOT, prepare, suites

SUPPRESSIONS = ROOT / "tests/suppressions"
# Errors that each sanitizer must find, or else its silence means nothing: bytes written beyond the
# end of a block, or by two threads at once. The sanitizer's own memset and read do that, without
# the GIL.
CANARIES = {
    "address": """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset(ctypes.c_void_p(libc.malloc(8)), 0, 9)
""",
    "thread": """
import ctypes, os, threading, time
memory = ctypes.create_string_buffer(8)
pipes = [os.pipe() for _ in "ab"]
read = ctypes.CDLL(None).read
both = [threading.Thread(target=read, args=(ends[0], memory, 8)) for ends in pipes]
[thread.start() for thread in both]
time.sleep(1)  # both wait
[os.write(ends[1], bytes(8)) for ends in pipes]
[thread.join() for thread in both]
""",
}
# The beginning of a report of either sanitizer, in the output of any process.
REPORT = re.compile(r"(ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error): (.*)")


def options(kind: str, logs: Path) -> dict[str, str]:
    """Give the environment of the tests: the libraries of the sanitizer, and their options.

    Each process writes its reports to a file of its own in *logs*, because tests do not show the
    output of the processes that they start.
    """
    log = f"log_path={logs}/report"
    if kind == "thread":
        # Dask's tcp:// may read a size out of the greeting of another protocol, and ask for that.
        more = "exitcode=0:die_after_fork=0:allocator_may_return_null=1"
        known = f"suppressions={SUPPRESSIONS}/thread.txt"
        return {
            "LD_PRELOAD": library("libtsan.so"),
            "TSAN_OPTIONS": f"{log}:{known}:{more}",
            "DASK_FABRIC_TEST_UCX": "none",  # UCX crashes under this sanitizer
        }
    return {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        # No search for leaks: Python does not free all memory at exit, and children may be killed.
        "ASAN_OPTIONS": f"{log}:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"{log}:print_stacktrace=1",
    }


def library(name: str) -> str:
    compiler = os.environ.get("CC", "gcc")
    command = [compiler, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"{compiler} has no {name}: install the sanitizers of the compiler")
    return str(Path(path).resolve())


def reports(logs: Path) -> list[str]:
    """Give the first line of each report, with its file."""
    return [
        f"{path}: {match[0]}"
        for path in sorted(logs.glob("report.*"))
        for match in REPORT.finditer(path.read_text(errors="replace"))
    ]


def forget(logs: Path) -> None:
    for old in logs.glob("report.*"):
        old.unlink()


def check(kind: str, named: Sequence[str]) -> list[str]:
    """Build, run the tests, and give the problems."""
    sanitizers = "thread" if kind == "thread" else "address,undefined"
    python = prepare(kind, {"FABRIC_SANITIZE": sanitizers})
    logs = ROOT / f"build/{kind}/reports"
    logs.mkdir(parents=True, exist_ok=True)
    forget(logs)
    environment = {**os.environ, "PYTHONMALLOC": "malloc", **options(kind, logs)}
    subprocess.run([python, "-c", CANARIES[kind]], env=environment, capture_output=True)
    if len(reports(logs)) != 1:
        return ["the sanitizer did not report a planted error"]
    forget(logs)
    # Sanitizers keep freed memory, and a shadow of all memory: resident memory is mostly theirs.
    left_out = "not resident" + (" and not untraced" if kind == "thread" else "")
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "-m", left_out]
    command += ["--timeout", "600"]
    ended = logs.parent / "junit.xml"  # written when all tests have run
    ended.unlink(missing_ok=True)
    command += [f"--junit-xml={ended}", *suites(named)]
    done = subprocess.run(command, cwd=ROOT, env=environment)
    failed = [f"the tests have failed ({done.returncode})"] if done.returncode else []
    if not ended.exists():  # a sanitizer that gives up ends the process with its exit code, 0
        failed = [f"the tests have not ended ({done.returncode}): see {logs}"]
    return [*failed, *reports(logs)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", choices=["address", "thread"])
    parser.add_argument(
        "tests", nargs="*", help="arguments for pytest; by default nearly all tests"
    )
    arguments = parser.parse_args()
    wrong = check(arguments.kind, arguments.tests)
    print(*[f"{arguments.kind}: {text}" for text in wrong or ["clean"]], sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

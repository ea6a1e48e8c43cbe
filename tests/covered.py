"""Measure which lines of the compiled modules the tests run, and print what is left out.

``make coverage`` runs this. gcov alone does it: it counts lines of C, with the GIL and without, in
native threads too, which no tracer of Python sees; and Cython has written above each piece of C
which line of the .pyx it comes from. So a line counts as run where any of its C has run::

    python -m tests.covered -- tests/wire
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.builds import ROOT, build_folder, prepare, suites

PACKAGES = ("wire", "codec", "memory", "jobs", "paths", "engine")
FIGURES = ROOT / "docs/coverage.json"
PAGE = ROOT / "docs/development.md"
# A forked child leaves by os._exit, at which gcov writes nothing by itself: cython/coverage.c does.
AT_EXIT = """
import ctypes, os, sys

def write(status, leave=os._exit):
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if name.startswith("dask_fabric.") and path.endswith(".so"):
            ctypes.CDLL(path).fabric_write_coverage()
    leave(status)

os._exit = write
"""
# Lines that no test can reach stand in the source with this, and a reason.
EXCUSE = re.compile(r"#.*\buntested: \w")
# What Cython writes: the line of the source, above its C, and where C of nobody's begins.
MARKER = re.compile(r'\s*/\* "([^"]+\.p(?:yx|xd))":(\d+)$')
# An attribute that Python may read is no statement.
ATTRIBUTE = re.compile(r"\s*cdef (?:readonly|public) ")
NOBODY = re.compile(r"/\* #### Code section|\s*/\* function exit code \*/")
# Labels and brackets: they belong to what goes on behind them.
NO_STATEMENT = re.compile(r"\s*(?:__pyx_L\w+:;\s*)?[{}]?\s*$")

Lines = dict[int, int]  # how often each ran


def places(c_source: Iterable[str]) -> dict[int, tuple[str, int]]:
    """Give the .pyx and line of each line of C that comes from one."""
    found = {}
    place = None
    in_comment = False
    for number, text in enumerate(c_source, 1):
        match = MARKER.match(text)
        if match:
            place, in_comment = (match[1], int(match[2])), True
        elif in_comment:
            in_comment = "*/" not in text
        elif NOBODY.match(text):
            place = None
        elif place and not NO_STATEMENT.match(text):
            found[number] = place
    return found


def counted(c_source: Iterable[str], counts: Mapping[int, int]) -> dict[str, Lines]:
    """Give how often the lines of each .pyx ran, from how often those of its C did."""
    found: dict[str, Lines] = defaultdict(dict)
    for number, (file, line) in places(c_source).items():
        if number in counts:
            found[file][line] = max(found[file].get(line, 0), counts[number])
    return found


def gcov(data: Path) -> dict[int, int]:
    """Read how often each line of a module's C ran."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["gcov", "--json-format", str(data)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (written,) = Path(folder).glob("*.json.gz")
        told = json.loads(gzip.decompress(written.read_bytes()))
    counts: dict[int, int] = {}
    for file in told["files"]:
        if file["file"].endswith(".c"):
            for line in file["lines"]:
                number = line["line_number"]
                counts[number] = max(counts.get(number, 0), line["count"])
    return counts


def measure(build: Path) -> dict[str, Lines]:
    """Read what a build has counted; a declaration that several modules hold is run by any."""
    found: dict[str, Lines] = defaultdict(dict)
    for notes in sorted(build.rglob("dask_fabric.*.gcno")):
        source = build / notes.name.removesuffix(".gcno")
        data = notes.with_suffix(".gcda")
        counts = gcov(data if data.exists() else notes)
        with source.open() as text:
            for file, lines in counted(text, counts).items():
                for line, count in lines.items():
                    found[file][line] = found[file].get(line, 0) + count
    return found


def missed(file: str, lines: Lines) -> list[int]:
    """Give the lines that did not run and have no excuse."""
    source = (ROOT / "cython" / file).read_text().splitlines()
    left = [number for number in sorted(lines) if not lines[number]]
    return [n for n in left if not (EXCUSE.search(source[n - 1]) or ATTRIBUTE.match(source[n - 1]))]


def summary(found: Mapping[str, Lines]) -> dict[str, dict]:
    """Give, for each package, its lines, those that ran, and the percentage of these."""
    packages = {}
    for package in PACKAGES:
        files = {f: n for f, n in found.items() if f.startswith(f"dask_fabric/{package}/")}
        run_count = sum(1 for lines in files.values() for count in lines.values() if count)
        line_count = run_count + sum(len(missed(file, lines)) for file, lines in files.items())
        percent = 1000 * run_count // max(line_count, 1) / 10  # 100 where no line is left out
        packages[package] = {"lines": line_count, "run": run_count, "percent": percent}
    return packages


def table(packages: Mapping[str, Mapping]) -> str:
    head = f"{'package':10}{'lines':>8}{'run':>8}{'percent':>9}"
    rows = [f"{p:10}{r['lines']:8}{r['run']:8}{r['percent']:9.1f}" for p, r in packages.items()]
    return "\n".join([head, *rows])


def with_table(page: str, packages: Mapping[str, Mapping]) -> str:
    """Give the page of the docs with these figures in its table."""
    rows = ["| package | lines | run | percent |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {p} | {r['lines']:,} | {r['run']:,} | {r['percent']} |" for p, r in packages.items()
    ]
    begin, end = "<!-- coverage -->\n", "<!-- end of coverage -->"
    head, rest = page.split(begin)
    return f"{head}{begin}" + "\n".join(rows) + f"\n{end}{rest.split(end)[1]}"


def left_out(found: Mapping[str, Lines], packages: Sequence[str]) -> list[str]:
    """Name each line of these packages that did not run, with its text."""
    told = []
    for file, lines in sorted(found.items()):
        if file.split("/")[1] in packages:
            source = (ROOT / "cython" / file).read_text().splitlines()
            told += [f"{file}:{n}: {source[n - 1].strip()}" for n in missed(file, lines)]
    return told


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tests", nargs="*", help="what pytest is given; all suites by default")
    parser.add_argument("--show", default="wire", help="packages whose lines left out are named")
    parser.add_argument("--no-run", action="store_true", help="print what was counted last")
    arguments = parser.parse_args()
    status = 0
    if not arguments.no_run:
        status = run_tests(suites(arguments.tests))
    found = measure(ROOT / build_folder("coverage"))
    packages = summary(found)
    print(table(packages), *left_out(found, arguments.show.split(",")), sep="\n")
    if not arguments.tests and status == 0 and not arguments.no_run:
        FIGURES.write_text(json.dumps(packages, indent=2) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), packages))
        print(f"written to {FIGURES.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    return status


def run_tests(named: Sequence[str]) -> int:
    """Build, and run the tests with counts that begin at 0."""
    python = prepare("coverage", {"FABRIC_COVERAGE": "ON"})
    (packages,) = python.parents[1].glob("lib/python3*/site-packages")
    (packages / "fabric_at_exit.py").write_text(AT_EXIT)
    (packages / "fabric_at_exit.pth").write_text("import fabric_at_exit\n")
    for old in (ROOT / build_folder("coverage")).rglob("*.gcda"):
        old.unlink()
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *named]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())

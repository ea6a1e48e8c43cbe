"""Measure which lines of the compiled modules the tests run, and print the others.

``make coverage`` runs this. gcov counts lines of C, also in native threads, which no tracer of
Python sees. Above each piece of C, Cython writes a comment with the line of the .pyx that it comes
from. A line counts as run if any of its C has run::

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
# A forked child ends by os._exit. gcov writes nothing then, so cython/coverage.c does.
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
# The comment on lines that no test can reach, with the reason.
EXCUSE = re.compile(r"#.*\buntested: \w")
# Cython's comment with the line of the source, above its C.
MARKER = re.compile(r'\s*/\* "([^"]+\.p(?:yx|xd))":(\d+)$')
# The declaration of an attribute that Python can read: not a statement.
ATTRIBUTE = re.compile(r"\s*cdef (?:readonly|public) ")
# Here begins C that belongs to no line of the source.
NOBODY = re.compile(r"/\* #### Code section|\s*/\* function exit code \*/")
# Labels and brackets: no statements of their own.
NO_STATEMENT = re.compile(r"\s*(?:__pyx_L\w+:;\s*)?[{}]?\s*$")

Lines = dict[int, int]  # how often each line ran


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
    """Give how often the lines of each .pyx ran, by the counts of their C."""
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
    """Read the counts of a build; those of a declaration are summed over its modules."""
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
        percent = 1000 * run_count // max(line_count, 1) / 10  # 100 only if every line ran
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
    parser.add_argument("tests", nargs="*", help="arguments for pytest; by default all suites")
    parser.add_argument("--show", default="wire", help="packages whose missed lines are listed")
    parser.add_argument("--no-run", action="store_true", help="print the last counts")
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
    """Build, set all counts to 0, and run the tests."""
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

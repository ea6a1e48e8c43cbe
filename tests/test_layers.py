"""Rules that no tool checks: imports of compiled modules, and the length of lines and files."""

import re
from pathlib import Path

import pytest

CYTHON = Path(__file__).parents[1] / "cython"
SOURCES = sorted(p.relative_to(CYTHON) for p in CYTHON.rglob("*.p[yx][xd]"))
LAYERS = (
    {"errors"},
    {"memory"},
    {"jobs"},
    {"wire"},
    {"paths"},
    {"codec", "engine"},
    {"telemetry"},
    {"comm"},
    {"gpu"},
    {"bench"},
    {"cli"},
)
FOR_ALL = {"config", "errors", "keys", "providers"}
MEETS_DISTRIBUTED = {"telemetry", "comm", "gpu", "bench", "cli"}
FROM = r"from\s+(?P<module>[\w.]+)\s+c?import\s+(?P<names>[^#\n]+)"
COLUMNS_LIMIT = 100
LINES_LIMIT = 1400  # what belongs to one state machine stands in one file: the driver of a channel

MEASURED = sorted(
    str(path.relative_to(CYTHON.parent))
    for folder in (CYTHON, CYTHON.parent / "src")
    for path in folder.rglob("*.p[yx]*")
    if path.suffix in (".py", ".pyx", ".pxd")
)
IMPORT = re.compile(rf"^\s*(?:{FROM}|c?import\s+(?P<plain>[\w., ]+))", re.MULTILINE)


def imported_modules(source: str) -> list[str]:
    """Full names in a Cython source's imports, a name from a package being its member."""
    found = []
    for match in IMPORT.finditer(source):
        if match["plain"]:
            found += [part.split(" as ")[0].strip() for part in match["plain"].split(",")]
        elif match["module"] == "dask_fabric":
            found += [f"dask_fabric.{name.split()[0]}" for name in match["names"].split(",")]
        else:
            found.append(match["module"])
    return found


def is_declaration(module: str) -> bool:
    """Whether a module only declares the system's C functions: those belong to no layer."""
    path = CYTHON / module.replace(".", "/")
    return path.with_suffix(".pxd").exists() and not path.with_suffix(".pyx").exists()


def rank(layer: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if layer in names)


def violations(path: Path, source: str) -> list[str]:
    """Imports of one source that its layer is not allowed."""
    own = path.parts[1]
    wrong = []
    for module in imported_modules(source):
        top, _, rest = module.partition(".")
        target = rest.partition(".")[0]
        if module.startswith("."):
            wrong.append(module)  # relative names would hide the layer
        elif top == "distributed" and own not in MEETS_DISTRIBUTED:
            wrong.append(module)
        elif top != "dask_fabric" or target in FOR_ALL | {own} or is_declaration(module):
            continue
        elif rank(target) >= rank(own):
            wrong.append(module)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_compiled_modules_import_only_what_lies_below(path):
    assert path.parts[0] == "dask_fabric"
    if len(path.parts) > 2:
        assert violations(path, (CYTHON / path).read_text()) == []


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ("wire", "from dask_fabric.engine.channel cimport Channel"),
        ("codec", "from dask_fabric.engine cimport channel"),
        ("engine", "from dask_fabric import codec, memory"),
        ("memory", "    import dask_fabric.comm.backend"),
        ("paths", "cimport dask_fabric.engine.channel as channel"),
        ("engine", "import os, distributed"),
        ("engine", "from distributed.comm import core"),
        ("engine", "from .channel cimport Channel"),
    ],
)
def test_a_wrong_import_is_seen(layer, line):
    assert violations(Path("dask_fabric", layer, "x.pyx"), f"import sys\n{line}\n")


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ("engine", "from dask_fabric.memory.pool cimport (\n    Buffer, allocate)"),
        ("memory", "from dask_fabric import config, errors"),
        ("engine", "from dask_fabric.engine.channel cimport Channel"),
        ("comm", "from distributed.comm.core import Comm"),
    ],
)
def test_a_right_import_is_allowed(layer, line):
    assert violations(Path("dask_fabric", layer, "x.pyx"), line) == []


def test_there_is_something_to_check():
    assert any(path.suffix == ".pyx" for path in SOURCES)
    assert {Path(name).suffix for name in MEASURED} == {".py", ".pyx", ".pxd"}


def excesses(name: str, source: str) -> list[str]:
    """What is too long in one source; ruff measures the columns of those in Python."""
    lines = source.splitlines()
    found = [
        f"{name}:{number} has {len(line)} columns"
        for number, line in enumerate(lines, 1)
        if len(line) > COLUMNS_LIMIT
    ]
    if len(lines) > LINES_LIMIT:
        found.append(f"{name} has {len(lines)} lines")
    return found


@pytest.mark.parametrize("name", MEASURED)
def test_sources_are_short_and_narrow(name):
    assert excesses(name, (CYTHON.parent / name).read_text()) == []


def test_what_is_too_long_is_seen():
    assert excesses("a.pyx", "x" * 100 + "\n" * LINES_LIMIT) == []
    assert excesses("a.pyx", "\n" + "é" * 101) == ["a.pyx:2 has 101 columns"]
    assert excesses("a.py", "\n" * (LINES_LIMIT + 1)) == [f"a.py has {LINES_LIMIT + 1} lines"]


NAMELESS = (
    *("wire", "engine", "codec", "memory", "jobs", "config"),
    *("comm", "telemetry", "gpu", "bench", "cli"),
)
# `_` ends a word here.
PATH = re.compile(r"(?<![a-z])(cma|shm|ucx|ofi|lanes)(?![a-z])", re.IGNORECASE)
NO_PATH = (
    "fabric+ucx",  # a scheme
    "fabric+ofi",
    "dev/shm",
    "shm_bytes",  # its size
    "shm_free_bytes",
    '"-shm"',  # a file of SQLite's
)
NAMED_ON_PURPOSE = {
    "comm/backend.py": "the schemes that insist on UCX and libfabric",
    "bench/perftest.py": "a floor: UCX's own benchmark",
    "bench/fi_pingpong.py": "a floor: libfabric's own benchmark",
    "bench/floors.py": "their columns",
    "bench/results.py": "its column is a floor between processes",
    "bench/suite.py": "they are measured if a protocol uses UCX, or libfabric",
    "cli/bench.py": "the options of that floor, and of distributed-ucxx beside it",
}


def names_a_path(text: str) -> bool:
    for name in NO_PATH:
        text = text.replace(name, "")
    return PATH.search(text) is not None


def test_no_room_but_its_own_names_a_path():
    """A new path is a room under `paths`, and nothing else changes."""
    found = set()
    for tree in ("src", "cython"):
        root = Path(__file__).parents[1] / tree / "dask_fabric"
        for room in NAMELESS:
            found |= {
                str(file.relative_to(root))
                for file in (root / room).rglob("*.p*")
                if file.suffix != ".pyc" and names_a_path(file.read_text())
            }
    assert sorted(found) == sorted(NAMED_ON_PURPOSE)


@pytest.mark.parametrize("text", ["cma", "UCX's", "ucx_library", "find_shm()", "lanes.count"])
def test_the_name_of_a_path_is_seen(text):
    assert names_a_path(text)


@pytest.mark.parametrize("text", ["fabric+ucx://", "ucxx", "/dev/shm", "shm_free_bytes", "planes"])
def test_a_name_that_is_no_path_is_not_seen(text):
    assert not names_a_path(text)


WAITS_FOR_UCX = re.compile(
    r"(?:(?<![.\w])|ucx\.)(lock|open_endpoint|close_endpoint|fail|endpoint_error|is_wired|offer|post|cancel"
    r"|abandoned_count)\("
)


def calls_with_the_gil(source: str) -> list[str]:
    """Lines that call what waits for UCX's lock outside `nogil`."""
    found = []
    lines = source.splitlines()
    for number, line in enumerate(lines):
        is_definition = line.lstrip().startswith(("cdef", "def", "cpdef"))
        if is_definition or not WAITS_FOR_UCX.search(line.split("#")[0]):
            continue
        depth = len(line) - len(line.lstrip())
        for above in reversed(lines[:number]):
            indented = len(above) - len(above.lstrip())
            if not above.strip() or indented >= depth:
                continue
            depth = indented
            if above.split("#")[0].rstrip().endswith("nogil:"):
                break
        else:
            found.append(line.strip())
    return found


@pytest.mark.parametrize(
    "name", ["core", "endpoint", "python_endpoint", "frame_jobs", "operations", "receive", "worker"]
)
def test_nobody_waits_for_the_lock_of_ucx_with_the_gil(name):
    # UCX's thread holds it while it connects, which takes milliseconds: all of Python would wait.
    source = (CYTHON / f"dask_fabric/paths/ucx/{name}.pyx").read_text()
    assert calls_with_the_gil(source) == []


def test_a_call_with_the_gil_is_found():
    assert calls_with_the_gil("def a(self):\n    with nogil:\n        lock()\n    post(1)\n") == [
        "post(1)"
    ]

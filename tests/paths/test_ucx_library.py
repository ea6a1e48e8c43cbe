"""The choice of a UCX library: the order of the places, the probe, and the reasons."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.ucx import candidates as ucx_candidates
from dask_fabric.paths.ucx import library as ucx_library
from dask_fabric.paths.ucx.candidates import SONAME, Candidate, Host
from dask_fabric.paths.ucx.library import Library

SHARED = ("posix/memory", "tcp/eth0")
PLAIN = Library("/wheel/libucp.so.0", "PyPI wheel", (1, 22, 0), SHARED, ("host",))
CUDA = replace(PLAIN, path="/cuda", source="cuda", memory_types=("host", "cuda"))
VERBS = replace(PLAIN, path="/verbs", source="verbs", transports=(*SHARED, "rc_mlx5/mlx5_0:1"))
BROKEN = Library("/broken", "broken", error="cannot open shared object file")
RDMA = Host(("mlx5_0",))
GPU = Host(has_nvidia_gpu=True)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Let each test start as a process does that has probed and loaded nothing."""
    monkeypatch.setattr(ucx_candidates, "_loaded_library", lambda: None)
    monkeypatch.setattr(ucx_library, "probe", functools.cache(ucx_library.probe.__wrapped__))
    log = functools.cache(ucx_library._log_once.__wrapped__)
    monkeypatch.setattr(ucx_library, "_log_once", log)


@pytest.fixture
def found(monkeypatch):
    """Decide what the probes find."""

    def decide(*libraries):
        by_source = {library.source: library for library in libraries}
        places = [Candidate(library.source, library.path) for library in libraries]
        monkeypatch.setattr(ucx_library, "candidates", lambda explicit: places)
        monkeypatch.setattr(ucx_library, "probe", lambda path, source, variables: by_source[source])

    return decide


# ---- the choice


@pytest.mark.parametrize(
    ("libraries", "host", "expected"),
    [
        ((PLAIN, VERBS), Host(), PLAIN),
        ((PLAIN, VERBS), RDMA, VERBS),
        ((PLAIN, CUDA, VERBS), GPU, CUDA),
        ((CUDA, VERBS), Host(("mlx5_0",), True), VERBS),
        ((BROKEN, PLAIN), Host(), PLAIN),
        ((BROKEN, PLAIN), RDMA, PLAIN),
        ((BROKEN,), Host(), None),
        ((), Host(), None),
    ],
)
def test_the_first_with_most_of_what_the_host_needs(found, libraries, host, expected):
    found(*libraries)
    choice = ucx_library.choose(host=host, survey=True)
    assert choice.library == expected
    assert choice.reason
    assert {choice.library, *(refused for refused, _ in choice.refused)} >= set(libraries)
    assert all(reason for _, reason in choice.refused)


def test_what_is_missing_is_in_the_reason(found):
    found(PLAIN)
    assert "without verbs for mlx5_0" in ucx_library.choose(host=RDMA).reason


def test_a_library_of_two_places_is_one(found):
    found(PLAIN, replace(PLAIN, source="again"))
    choice = ucx_library.choose(host=Host(), survey=True)
    assert choice.library.source == "PyPI wheel"
    assert choice.refused[0][1] == "the same as PyPI wheel"


def test_the_choice_is_logged_once(found, caplog):
    caplog.set_level(logging.INFO, ucx_library.__name__)
    found(BROKEN, PLAIN)
    for _ in range(2):
        ucx_library.choose(host=Host())
    first, second = (record.getMessage() for record in caplog.records)
    assert "UCX 1.22.0" in first and "the first that works" in first
    assert "cannot open shared object file" in second


def test_no_library_is_a_warning(found, caplog):
    found(BROKEN)
    ucx_library.choose(host=Host())
    assert {record.levelname for record in caplog.records} == {"WARNING"}


# ---- explicit, and already loaded


def test_an_explicit_library_that_fails_is_an_error(tmp_path):
    with pytest.raises(UnavailableError, match=r"fabric\.ucx\.library is '.*no such file"):
        ucx_library.choose(str(tmp_path / "no such file"))


def test_an_explicit_folder_stands_for_the_library_in_it(tmp_path):
    path = str(tmp_path / SONAME)
    assert ucx_candidates.candidates(str(tmp_path)) == [Candidate("fabric.ucx.library", path)]


def test_a_loaded_library_is_the_only_candidate(monkeypatch):
    monkeypatch.setattr(ucx_candidates, "_loaded_library", lambda: "/a/libucp.so.0")
    assert ucx_candidates.candidates() == [Candidate("already loaded", "/a/libucp.so.0")]
    assert len(ucx_candidates.candidates("/a/libucp.so.0")) == 1
    with pytest.raises(UnavailableError, match=r"has loaded /a/libucp\.so\.0"):
        ucx_candidates.candidates("/b/libucp.so.0")


def test_a_library_that_is_loaded_is_seen(library):
    program = f"""
        import ctypes, os
        ctypes.CDLL({library.path!r}, os.RTLD_LAZY)
        from dask_fabric.paths.ucx.candidates import candidates
        print(candidates())
    """
    output = subprocess.check_output([sys.executable, "-c", textwrap.dedent(program)], text=True)
    assert "already loaded" in output and os.path.realpath(library.path) in output


def test_places_in_their_order(monkeypatch, tmp_path):
    for name in ("site/lib", "conda/lib", "system"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / SONAME).touch()
    monkeypatch.setenv("EBROOTUCX", str(tmp_path / "site"))
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    monkeypatch.setattr(ucx_candidates, "SYSTEM_FOLDERS", (str(tmp_path / "system"),))
    paths = [candidate.path for candidate in ucx_candidates.candidates()]
    expected = [str(tmp_path / name / SONAME) for name in ("site/lib", "conda/lib", "system")]
    assert paths[0] == SONAME
    assert [path for path in paths if path.startswith(str(tmp_path))] == expected


# ---- the host


def test_devices_of_a_host(tmp_path):
    assert ucx_candidates.look(tmp_path) == Host()
    (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert ucx_candidates.look(tmp_path) == Host(("mlx5_0",), has_nvidia_gpu=True)


@pytest.mark.parametrize(
    ("enabled", "host", "expected"),
    [(None, Host(), False), (None, RDMA, True), (None, GPU, True), (False, RDMA, False),
     (True, Host(), True)],
)  # fmt: skip
def test_auto_asks_the_host(enabled, host, expected):
    wanted, reason = ucx_candidates.is_wanted(enabled, host)
    assert wanted is expected
    assert reason


# ---- the probe


def test_a_library_tells_of_itself(library):
    assert library.error == ""
    assert library.version >= ucx_library.OLDEST_VERSION
    assert library.has(("tcp/",)) and library.has(("posix/",)) and library.has(("host",))
    assert not library.has(ucx_candidates.VERBS) or os.path.exists("/sys/class/infiniband")


def test_options_reach_the_probe(library, monkeypatch):
    def transports(**options):
        variables = tuple(ucx_library.environment(options.items()).items())
        return ucx_library.probe(library.path, "test", variables).transports

    assert {name.split("/")[0] for name in transports(TLS="tcp,self")} == {"tcp", "self"}
    monkeypatch.setenv("UCX_TLS", "self,sysv")  # what the environment says wins
    assert {name.split("/")[0] for name in transports(TLS="tcp,self")} == {"self", "sysv"}


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os; os.kill(os.getpid(), 6)", "status -6"),
        ("import sys; sys.exit(3)", "status 3"),
        ("while True: print('x' * 100000)", "bytes of output"),
        ("print('no json')", "Expecting value"),
        ("print('[' * 1000000)", "the probe failed"),
        ("print('[1]')", "not an answer"),
        ("print('{}')", "version"),
        ('print(\'{"version": [1, 2, "x"], "transports": []}\')', "invalid literal"),
        ("print('{\"version\": 5}')", "the probe failed"),
        (
            'print(\'{"path": "a", "version": [1,9,0], "transports": [], "memory_types": []}\')',
            "UCX 1.9.0 is older than 1.11",
        ),
        ('print(\'{"error": "no such thing"}\')', "no such thing"),
    ],
)
def test_a_probe_may_say_anything(monkeypatch, tmp_path, program, error):
    monkeypatch.setattr(ucx_library, "PROGRAM", tmp_path / "probe.py")
    (tmp_path / "probe.py").write_text(program)
    found = ucx_library.probe("/some/libucp.so.0", "test")
    assert error in found.error
    assert found.source == "test"


@pytest.mark.parametrize("program", ["import time; time.sleep(1000)", "import os\nos.close(1)\n{}"])
def test_a_probe_that_hangs_is_ended(monkeypatch, tmp_path, program):
    monkeypatch.setattr(ucx_library, "PROGRAM", tmp_path / "probe.py")
    monkeypatch.setattr(ucx_library, "PROBE_SECONDS", 0.3)
    (tmp_path / "probe.py").write_text(program.format("import time; time.sleep(1000)"))
    assert "within 0.3 s" in ucx_library.probe("/some/libucp.so.0", "test").error


def test_a_probe_that_hangs_ends_without_its_parent_too(tmp_path):
    for name in ("libucm.so.0", SONAME):
        os.mkfifo(tmp_path / name)  # to open it waits for a writer
    path = str(tmp_path / SONAME)
    program = [sys.executable, "-I", "-S", str(ucx_library.PROGRAM), path, "1"]
    assert subprocess.run(program, timeout=20).returncode == -signal.SIGALRM


def test_a_probe_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert "No such file" in ucx_library.probe("/some/libucp.so.0", "test").error


def test_a_library_that_is_not_there_is_named(tmp_path):
    path = str(tmp_path / "libucp.so.0")
    assert ucx_library.probe(path, "test").error.endswith(f"No such file or directory: '{path}'")


def test_a_path_is_probed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(ucx_library, "_run_probe", lambda *args: calls.append(args) or b"{}")
    for _ in range(2):
        ucx_library.probe("/some/libucp.so.0", "test")
    assert len(calls) == 1


# ---- UCX's environment


@pytest.fixture
def no_variables(monkeypatch):
    """No variable of UCX is set: neither by who runs the tests, nor while UCX starts in them."""
    for name in [name for name in os.environ if name.startswith("UCX_")]:
        monkeypatch.delenv(name)


def test_the_environment_wins_over_options_and_they_over_defaults(no_variables, monkeypatch):
    monkeypatch.setenv("UCX_TLS", "tcp")
    found = ucx_library.environment([("TLS", "rc"), ("HANDLE_ERRORS", "bt"), ("X", "1")])
    assert found["UCX_HANDLE_ERRORS"] == "bt" and found["UCX_X"] == "1"
    assert "UCX_TLS" not in found


def test_ucx_may_warn_of_misspelt_options(no_variables):
    assert "UCX_WARN_UNUSED_ENV_VARS" in ucx_library.environment([], (1, 22, 0))
    assert "UCX_WARN_UNUSED_ENV_VARS" not in ucx_library.environment([("X", "1")], (1, 22, 0))
    assert "UCX_MEM_BISTRO_GRACE_DURATION" not in ucx_library.environment([], (1, 13, 1))

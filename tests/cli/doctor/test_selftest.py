"""The self-test: reports of real processes, and missing ones."""

from __future__ import annotations

import json
import sys

import dask.config
import psutil
import pytest
from tests.conftest import ucx_libraries

from dask_fabric.cli.doctor.pair import PATHS, why_not_moved
from dask_fabric.cli.doctor.selftest import PathResult, SelfTest, how_it_ended, read_results

WORKS = {"path": "stream", "bandwidth_bytes_per_second": 2e9, "round_trip_seconds": 5e-5}
REFUSED = {"path": "unix", "reason": "somebody took the name"}


def python(program: str) -> SelfTest:
    return SelfTest([sys.executable, "-c", f"import os, sys, time\n{program}"])


def by_path(results) -> dict[str, PathResult]:
    assert [result.path for result in results] == list(PATHS)
    return {result.path: result for result in results}


@pytest.mark.parametrize("tail", ["", '{"path": "cma"', "5", "[]", '{"odd": 1}', "UCX  WARN"])
def test_results_are_read_as_far_as_they_go(tail):
    output = f"{json.dumps(WORKS)}\n{json.dumps(REFUSED)}\n{tail}"
    found = by_path(read_results(output, "it was not tried"))
    assert found["stream"] == PathResult("stream", True, "", 2e9, 5e-5)
    assert found["unix"] == PathResult("unix", False, "somebody took the name")
    assert found["cma"] == PathResult("cma", False, "it was not tried")


@pytest.mark.parametrize(
    ("status", "errors", "expected"),
    [
        (-11, "", "SIGSEGV"),
        (-6, "a\nassertion failed\n", "SIGABRT assertion failed"),
        (1, "Traceback ...\nImportError: no numpy\n", "ImportError: no numpy"),
        (3, "", "exit status 3"),
    ],
)
def test_the_end_of_a_process_in_words(status, errors, expected):
    assert how_it_ended(status, errors) == expected


def test_a_crash_leaves_the_paths_that_were_tried():
    program = f"print({json.dumps(WORKS)!r}, flush=True); os.kill(os.getpid(), 11)"
    found = by_path(python(program).finish())
    assert found["stream"].works
    assert found["ucx"].reason == "the self-test gave no result: SIGSEGV"


def test_a_path_that_hangs_is_ended_with_all_processes():
    program = f"""
if child := os.fork():
    print({json.dumps(WORKS)!r})
    print({{"child": child}}, flush=True)
time.sleep(600)
"""
    test = python(program)
    try:
        # It must have begun: only what was printed can be looked at.
        children = psutil.Process(test._process.pid)
        while not children.children():
            assert test._process.poll() is None
        (child,) = children.children()
        found = by_path(test.finish(patience_seconds=1))
    finally:
        test.stop()
    assert found["cma"].reason == "the self-test gave no result: it was stopped after 1 seconds"
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_program_that_cannot_start():
    with pytest.raises(OSError):
        SelfTest(["/no/such/program"])


def test_paths_of_this_host():
    with dask.config.set({"fabric": {}}):
        found = by_path(SelfTest().finish(60))
    for name in ("stream", "unix"):
        assert found[name].works, found[name].reason
        assert found[name].bandwidth_bytes_per_second > 1e6
        assert 0 < found[name].round_trip_seconds < 1
    assert found["tls"].reason == "Dask's configuration has no certificates"
    for name in ("cma", "ucx"):
        assert found[name].works or found[name].reason


@pytest.mark.slow
def test_a_path_that_is_switched_off():
    with dask.config.set({"fabric": {"unix-sockets": False}}):
        found = by_path(SelfTest().finish(60))
    assert found["stream"].works
    assert found["unix"].reason == "fabric.unix-sockets is false"


@pytest.mark.skipif(not ucx_libraries(), reason="no UCX on this host")
@pytest.mark.slow
def test_a_ucx_that_cannot_connect_does_not_work(monkeypatch):
    monkeypatch.setenv("UCX_TLS", "self")  # it starts, and reaches nobody but itself
    with dask.config.set({"fabric": {"ucx": {"enabled": True}}}):
        found = by_path(SelfTest().finish(60))
    assert not found["ucx"].works and found["ucx"].reason
    assert found["stream"].works


@pytest.mark.slow
def test_what_a_pair_of_fabric_takes_instead_of_cma_is_told():
    with dask.config.set({"fabric": {"cma": {"enabled": False}, "ucx": {"enabled": False}}}):
        found = by_path(SelfTest().finish(60))
    assert (found["cma"].works, found["cma"].instead) == (False, "stream")


@pytest.mark.slow
def test_a_library_that_is_not_there_is_the_reason(tmp_path):
    library = tmp_path / "libucp.so.0"
    with dask.config.set({"fabric": {"ucx": {"library": str(library)}}}):
        found = by_path(SelfTest().finish(60))
    assert found["ucx"].reason == (
        f"fabric.ucx.library is '{library}', which cannot be used: "
        f"[Errno 2] No such file or directory: '{library}'"
    )


@pytest.mark.skipif(not ucx_libraries(), reason="no UCX on this host")
@pytest.mark.slow
def test_warnings_of_ucx_are_no_answers():
    with dask.config.set({"fabric": {"ucx": {"enabled": True, "options": {"MISSPELT": "1"}}}}):
        found = by_path(SelfTest().finish(60))
    assert found["stream"].works, found["stream"].reason


@pytest.mark.parametrize("path", ["cma", "ucx"])
@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"frames_sent": 3}, ""),
        ({"frames_sent": 3, "fallbacks_sent": 1}, "failed: large frames were sent on"),
        ({"frames_sent": 3, "fallbacks_received": 1}, "failed: large frames were sent on"),
        ({}, "no large frame used it"),
    ],
)
def test_only_frames_that_went_by_a_path_show_that_it_works(path, counts, reason):
    nothing = {"frames_sent": 0, "fallbacks_sent": 0, "fallbacks_received": 0}
    told = {"traffic": {"stream": nothing, path: {**nothing, **counts}}}
    found = why_not_moved(path, told)
    assert reason in found and bool(reason) == bool(found)
    assert why_not_moved("unix", told) == ""


def test_what_ucx_complains_of_is_told_where_it_fails():
    complaint = "[17.05] [vm:24:0]   select.c:549  UCX  ERROR   no transport to nobody: self"
    refused = json.dumps({"path": "ucx", "reason": "it failed"})
    found = by_path(read_results(f"{complaint}\n{json.dumps(REFUSED)}\n{refused}", ""))
    assert found["ucx"].reason == "it failed. UCX: no transport to nobody: self"
    assert found["unix"].reason == REFUSED["reason"]
    works = json.dumps({**WORKS, "path": "ucx"})
    assert by_path(read_results(f"{complaint}\n{works}", ""))["ucx"].reason == ""


@pytest.mark.slow
def test_what_dask_is_configured_to_is_kept_to(certificates):
    settings = {"distributed.comm.require-encryption": True, **certificates}
    with dask.config.set({"fabric": {"unix-sockets": False}, **settings}):
        found = by_path(SelfTest().finish(60))
    assert found["tls"].works and found["stream"].works
    for name in ("unix", "cma"):
        assert "encryption" in found[name].reason


@pytest.mark.slow
def test_encryption_by_the_key():
    settings = {"fabric.auth.encrypt": True, "fabric.auth.key": "ab" * 32}
    with dask.config.set(settings):
        found = by_path(SelfTest().finish(60))
    assert found["tls"].works and found["stream"].works and found["unix"].works
    assert "never encrypts" in found["ucx"].reason

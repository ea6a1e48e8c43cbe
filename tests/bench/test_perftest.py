"""ucx_perftest as a floor: the UCX that it runs on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from types import SimpleNamespace

import pytest

from dask_fabric.bench import perftest

PROGRAM = """#!/bin/sh
echo "$LD_LIBRARY_PATH" >"$(dirname "$0")/found"
echo "$*" >"$(dirname "$0")/told"
echo "Final: 100 1.0 2.0 3.0 4.0 1000.0 6.0"
case "$*" in *127.0.0.1) ;; *) sleep 5 ;; esac
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program of that name, in a folder ``bin``."""
    file = tmp_path / "ucx/bin/ucx_perftest"
    file.parent.mkdir(parents=True)
    file.write_text(PROGRAM)
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)
    return file


def test_that_of_the_wheel_will_do(program, monkeypatch):
    library = program.parent.parent / "lib/libucp.so.0"
    library.parent.mkdir()
    library.touch()
    wheel = SimpleNamespace(submodule_search_locations=[str(program.parent.parent)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: wheel)
    monkeypatch.setenv("PATH", "/nowhere")
    assert perftest.own_library() == str(library)


def test_the_library_that_it_came_with(program):
    """The loader would find none, or that of another UCX."""
    library = program.parent.parent / "lib/libucp.so.0"
    library.parent.mkdir()
    library.touch()
    assert perftest.own_library() == str(library)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("libucp.so.0 => /x/libucp.so.0 (0x7f)", "/x/libucp.so.0"),
        ("libucp.so.0 => not found", None),
    ],
)
def test_the_library_that_it_is_linked_to(program, monkeypatch, said, expected):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert perftest.own_library() == expected


def test_what_the_loader_was_told_holds_too(program, monkeypatch):
    """CUDA's driver may be found by it."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/driver")
    assert perftest.bandwidth("/ucx/libucp.so.0", 1000, 10, None, "cuda") == 1000 * 2**20 / 1e9
    assert (program.parent / "found").read_text() == "/ucx:/driver\n"


@pytest.mark.parametrize("window", [1, 4])
def test_how_many_are_in_flight(program, window):
    """Its own choice is 32, and `-w` is something else."""
    perftest.bandwidth("/ucx/libucp.so.0", 1000, 10, None, window=window)
    assert f" -O {window} " in (program.parent / "told").read_text()

"""fi_pingpong as a floor: library and provider are those that fabric+ofi would use."""

from __future__ import annotations

import os
import shutil

import dask
import pytest

from dask_fabric.bench import fi_pingpong, floors
from dask_fabric.errors import PairError
from dask_fabric.paths.ofi.kinds import BY_NAME
from dask_fabric.paths.ofi.library import Choice, Library

from ..conftest import ofi_libraries, ofi_settings

PROGRAM = """#!/bin/sh
echo "$LD_LIBRARY_PATH $FI_PROVIDER" >"$(dirname "$0")/found"
echo "$*" >"$(dirname "$0")/told"
echo "bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec"
echo "9.5m    20      =20      381m        0.31s   1295.28    7720.35       0.00"
case "$*" in *127.0.0.1) ;; *) sleep 5 ;; esac
"""
CHOSEN = Choice(Library("/lib/libfabric.so.1", "a test"), BY_NAME["shm"], "")


@pytest.fixture
def program(tmp_path, monkeypatch):
    file = tmp_path / "bin/fi_pingpong"
    file.parent.mkdir()
    file.write_text(PROGRAM)
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/site")
    return file


def test_it_runs_with_library_and_provider(program):
    assert fi_pingpong.bandwidth(CHOSEN, 10_000_000, 20) == 1.29528
    assert (program.parent / "found").read_text() == "/lib:/site shm\n"
    told = (program.parent / "told").read_text()
    assert "-p shm -e rdm -S 10000000 -I 20" in told and "-d" not in told


def test_it_runs_with_the_same_card(program):
    with dask.config.set({"fabric.ofi.domain": "mlx5_1"}):
        assert fi_pingpong.bandwidth(CHOSEN, 10_000_000, 20)
    assert "-d mlx5_1" in (program.parent / "told").read_text()


def test_the_server_may_tidy_up(program):
    """One that is killed leaves files in /dev/shm."""
    folder = program.parent
    trap = f"trap 'echo >{folder}/tidy; exit' TERM"
    serving = f"{trap}; echo >{folder}/ready; while :; do sleep 0.1; done"
    waiting = f"until [ -e {folder}/ready ]; do sleep 0.05; done"
    text = PROGRAM.replace("sleep 5", serving).replace("127.0.0.1)", f"127.0.0.1) {waiting}")
    program.write_text(text)
    assert fi_pingpong.bandwidth(CHOSEN, 10_000_000, 20) == 1.29528
    assert (program.parent / "tidy").exists()


@pytest.mark.parametrize("said", ["", "no provider", "9.5m 20 =20 381m 0.31s"])
def test_without_a_figure_there_is_no_floor(program, said, monkeypatch):
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    monkeypatch.setattr("dask_fabric.bench.programs._START_SECONDS", 0.2)
    floor = floors.FiPingpong(CHOSEN)
    with pytest.raises(PairError, match="fi_pingpong does not run"):
        floor.ask("send", nbytes=10_000_000, count=1)


@pytest.mark.parametrize("provider", [None, "cxi"])
def test_none_without_a_device(program, provider):
    """No provider in software is taken unless it is named."""
    with dask.config.set({"fabric.ofi.provider": provider}):
        assert fi_pingpong.choice() is None


def test_none_without_the_program(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with dask.config.set(ofi_settings("tcp")):
        assert fi_pingpong.choice() is None


def test_a_library_that_does_not_work(program, tmp_path):
    settings = {"fabric.ofi.provider": "tcp", "fabric.ofi.library": str(tmp_path / "none.so.1")}
    with dask.config.set(settings):
        assert fi_pingpong.choice() is None


@pytest.mark.skipif(not ofi_libraries(), reason="no libfabric here")
@pytest.mark.parametrize("provider", ["tcp", "shm"])
def test_the_real_one(provider):
    if shutil.which("fi_pingpong") is None:
        pytest.skip("no fi_pingpong here (Debian: libfabric-bin)")
    with dask.config.set(ofi_settings(provider)):
        chosen = fi_pingpong.choice()
        assert chosen.kind.name == provider
        assert floors.FiPingpong(chosen).ask("send", nbytes=10_000_000, count=1)["seconds"] > 0

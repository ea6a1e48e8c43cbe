"""The commands as a user types them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dask_fabric.cli import main
from dask_fabric.cli.doctor import pair, report
from dask_fabric.cli.doctor.pair import PATHS
from dask_fabric.cli.doctor.report import Facts
from dask_fabric.cli.doctor.selftest import PathResult
from dask_fabric.cli.main import fabric

from ..conftest import NO_DASHBOARD, ucx_libraries


def run(*arguments: str):
    return CliRunner().invoke(fabric, arguments, prog_name="dask fabric")


@pytest.fixture
def only_stream(monkeypatch):
    """A host where the stream works, and nothing else."""
    facts = Facts(paths=tuple(PathResult(path, path == "stream", "a reason") for path in PATHS))
    monkeypatch.setattr(report, "inspect_all", lambda: facts)


def test_as_a_command_of_dask():
    command = [sys.executable, "-m", "dask", "fabric", "doctor", "--json", "--require", "stream"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    paths = {result["path"]: result for result in told["paths"]}
    assert paths["stream"]["works"] and told["failures"] == {}
    assert set(told["schemes"]) == {
        "fabric",
        "fabric+tcp",
        "fabric+tls",
        "fabric+ucx",
        "fabric+ofi",
    }
    assert {one["about"] for one in told["advice"]} >= {
        path for path in PATHS if not paths[path]["works"]
    }


def test_dask_finds_the_command_without_loading_distributed():
    code = "import sys, dask_fabric.cli.main; print('distributed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_help():
    assert "doctor" in run("--help").output
    shown = run("doctor", "--help").output
    for option in ("--json", "--require", "--peer"):
        assert option in shown
    assert run("--version").output.startswith("dask-fabric, version ")


def test_names_of_paths_are_those_of_the_self_test():
    assert main._PATHS == pair.PATHS


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--require", "rdma"], "'rdma' is not one of 'stream', 'unix'"),
        (["--require"], "requires an argument"),
        (["--peers", "x"], "No such option"),
        (["x"], "unexpected extra argument"),
    ],
)
def test_wrong_options(arguments, complaint):
    done = run("doctor", *arguments)
    assert done.exit_code == 2
    assert complaint in done.output


def test_what_is_required_and_works(only_stream):
    done = run("doctor", "--require", "stream")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Schemes" in done.stdout


def test_what_is_required_and_does_not_work(only_stream):
    done = run("doctor", "--json", "--require", "tls", "--require", "stream", "--require", "cma")
    assert done.exit_code == 1
    json.loads(done.stdout)
    first, second = done.stderr.splitlines()
    assert first.startswith("tls is required, but not in use: a reason -> ")
    assert second == "cma is required, but not in use: a reason"


@pytest.mark.parametrize("address", ["", "127.0.0.1", "tcp://127.0.0.1:1", "fabric://x:y"])
def test_addresses_that_are_none(address):
    done = run("doctor", "--peer", address)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: cannot ask ") and done.stderr.count("\n") == 1


def test_the_log_is_as_before(only_stream):
    before = logging.getLogger("dask_fabric").level
    run("doctor")
    assert logging.getLogger("dask_fabric").level == before


class TestPeer:
    @pytest.fixture
    def address(self, request):
        """The address of a scheduler in a process of its own."""
        scheme = getattr(request, "param", "fabric")
        where = {"protocol": scheme, "host": "127.0.0.1", "port": 0, **NO_DASHBOARD}
        program = (
            "import asyncio, sys\n"
            "from distributed import Scheduler\n"
            "async def main():\n"
            f"    async with Scheduler(**{where}) as scheduler:\n"
            "        print(scheduler.address, flush=True)\n"
            "        await asyncio.to_thread(sys.stdin.read)\n"
            "asyncio.run(main())\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "UCX_TLS": "posix,self"},
        ) as process:  # fmt: skip
            yield process.stdout.readline().strip()
            process.stdin.close()
            process.wait(30)

    def test_a_server(self, address):
        done = run("doctor", "--peer", address, "--require", "stream")
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{address}\n") and "Scheduler-" in done.stdout
        bare = address.removeprefix("fabric://")
        done = run("doctor", "--peer", bare, "--json", "--require", "tls")
        assert done.exit_code == 1
        assert json.loads(done.stdout)["kind"] == "Scheduler"
        assert done.stderr.startswith("tls is required, but not in use: ")

    @pytest.mark.skipif(not ucx_libraries(), reason="no UCX on this host")
    @pytest.mark.parametrize("address", ["fabric+ucx"], indirect=True)
    @pytest.mark.parametrize("transports", ["posix,self", "tcp"])
    def test_a_path_is_tried_where_it_is_agreed_on(self, address, transports):
        command = [sys.executable, "-m", "dask", "fabric", "doctor", "--peer", address]
        done = subprocess.run(
            [*command, "--json", "--require", "ucx"], capture_output=True, text=True, timeout=60,
            env={**os.environ, "UCX_TLS": transports},
        )  # fmt: skip
        if transports == "tcp":  # the server has none in common with it
            assert (done.returncode, done.stdout) == (1, "")
            reason = "cannot be used between the two processes: UCX has neither shared memory"
            assert reason in done.stderr
            return
        told = json.loads(done.stdout)
        assert told["paths"] == {"host": "ucx"}
        assert told["trials"] == {"ucx": ""} and "ucx" in told["used"]
        assert done.returncode == 0

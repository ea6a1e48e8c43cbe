"""``dask fabric worker``: options, and whole workers without a GPU."""

from __future__ import annotations

import contextlib
import operator
import os
import signal
import subprocess
import sys
from inspect import signature

import pytest
from click.testing import CliRunner
from dask.system import CPU_COUNT
from distributed import Client, Nanny, Worker

from dask_fabric.cli import worker
from dask_fabric.cli.main import fabric

from ..conftest import scheduler_alone

SECONDS = 30


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def scheduler():
    with scheduler_alone() as cluster:
        yield cluster


@contextlib.contextmanager
def started(*arguments: str, **how):
    """A process of the command, and its standard error, past and future."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", "fabric", "worker", *arguments],
        stderr=subprocess.PIPE, text=True, **how,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def options_of(*arguments: str) -> list[dict]:
    """The keyword arguments of the nannies that a command line would start."""
    given = worker.worker.make_context("worker", list(arguments)).params
    given.pop("pid_file")
    nannies: list[dict] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distributed.Nanny", lambda **options: nannies.append(options))
        worker._plan(**given)()
    return nannies


class TestProcess:
    @pytest.mark.parametrize(
        "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT]
    )
    def test_a_computation_and_an_orderly_end(self, scheduler, number, tmp_path):
        pid_file = tmp_path / "pid"
        arguments = ("--nworkers", "2", "--nthreads", "3", "--name", "w", "--resources", "X=2")
        where = ("--local-directory", str(tmp_path), "--pid-file", str(pid_file))
        with (
            started(scheduler.scheduler_address, *arguments, *where) as process,
            Client(scheduler) as client,
        ):
            client.wait_for_workers(2, timeout=SECONDS)
            infos = client.scheduler_info(n_workers=-1)["workers"]
            assert all(address.startswith("fabric://") for address in infos)
            assert {info["name"] for info in infos.values()} == {"w-0", "w-1"}
            assert [info["nthreads"] for info in infos.values()] == [3, 3]
            task = client.submit(operator.add, 1, 2, resources={"X": 2})
            assert task.result(timeout=SECONDS) == 3
            assert pid_file.read_text() == str(process.pid)
            process.send_signal(number)
            _, said = process.communicate(timeout=SECONDS)
            assert process.returncode == 0
            assert not client.scheduler_info(n_workers=-1)["workers"]
        first, second = said.splitlines()[:2]
        assert first == "no GPU here, so CPU workers: CUDA_VISIBLE_DEVICES names none"
        assert second == "workers: 2, threads of each: 3"
        assert "Worker closed" in said and "Traceback" not in said
        assert not pid_file.exists()

    def test_control_c_at_a_terminal_reaches_all_processes(self, scheduler):
        with (
            started(
                scheduler.scheduler_address, "--nworkers", "2", start_new_session=True
            ) as process,
            Client(scheduler) as client,
        ):
            client.wait_for_workers(2, timeout=SECONDS)
            os.killpg(process.pid, signal.SIGINT)
            _, said = process.communicate(timeout=SECONDS)
            assert process.returncode == 0
            assert "killing" not in said and said.count("Worker closed") == 2

    def test_nobody_answers(self):
        with started("fabric://127.0.0.1:1", "--death-timeout", "1s") as process:
            _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert said.splitlines()[-1].startswith("Error: ") and "timed out" in said

    @pytest.mark.slow
    def test_the_last_worker_is_retired(self, scheduler):
        with started(scheduler.scheduler_address) as process, Client(scheduler) as client:
            client.wait_for_workers(1, timeout=SECONDS)
            client.retire_workers()
            process.communicate(timeout=SECONDS)
            assert process.returncode == 0


class TestOptions:
    def test_left_out(self):
        (options,) = options_of("fabric://127.0.0.1:1")
        assert options["scheduler_ip"] == "fabric://127.0.0.1:1"
        assert (options["nthreads"], options["name"]) == (CPU_COUNT, None)
        assert (options["memory_limit"], options["resources"]) == ("auto", None)

    @pytest.mark.parametrize(("given", "count"), [("3", 3), ("-1", CPU_COUNT), ("auto", None)])
    def test_number_of_workers(self, given, count):
        from distributed.deploy.utils import nprocesses_nthreads

        expected = (count, max(1, CPU_COUNT // count)) if count else nprocesses_nthreads()
        found = options_of("fabric://127.0.0.1:1", "--nworkers", given)
        assert (len(found), found[0]["nthreads"]) == expected

    def test_every_option_is_one_of_nannies_or_of_workers(self):
        (options,) = options_of("fabric://127.0.0.1:1")
        known = {*signature(Nanny).parameters, *signature(Worker).parameters}
        assert set(options) <= known

    @pytest.mark.parametrize(("given", "expected"), [("7", 7), ("a", "a"), (None, None)])
    def test_name(self, given, expected):
        arguments = () if given is None else ("--name", given)
        assert options_of("fabric://127.0.0.1:1", *arguments)[0]["name"] == expected

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ([], "name the scheduler"),
            (["nonsense"], "the scheduler 'nonsense': missing port number"),
            (["none://x:1"], "unknown address scheme 'none'"),
            (["127.0.0.1:1", "--nworkers", "0"], "at least one worker"),
            (["127.0.0.1:1", "--nworkers", "-999"], "at least one worker"),
            (["127.0.0.1:1", "--nworkers", "many"], "expected a number, or auto"),
            (["127.0.0.1:1", "--resources", "GPU"], "expected a form like GPU=1"),
            (["127.0.0.1:1", "--nworkers", "2", "--worker-port", "9000"], "2 workers need 2 ports"),
            (["127.0.0.1:1", "--worker-port", "a:b"], "--worker-port a:b"),
            (["127.0.0.1:1", "--nannies"], "No such option"),
            (["127.0.0.1:1", "--cupy-pool-size", "1GB", "--rmm-pool-size", "1GB"], "not both"),
            (["127.0.0.1:1", "--cupy-pool-size", "all"], "fabric.gpu.pool is 'all'"),
        ],
    )
    def test_wrong_ones(self, arguments, complaint):
        done = CliRunner().invoke(fabric, ["worker", *arguments], prog_name="dask fabric")
        assert done.exit_code in (1, 2)
        assert complaint in done.output and "Traceback" not in done.output

    def test_gpus_that_are_named_and_not_there(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "97")
        done = CliRunner().invoke(fabric, ["worker", "fabric://127.0.0.1:1"])
        assert done.exit_code == 1
        assert "CUDA_VISIBLE_DEVICES" in done.output

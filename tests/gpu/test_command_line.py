"""``dask fabric worker`` on a host whose GPUs are stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from distributed import Client
from distributed.system import MEMORY_LIMIT

from ..conftest import scheduler_alone
from .conftest import CPUS, uuid

SECONDS = 30


@pytest.fixture
def scheduler():
    with scheduler_alone() as cluster:
        yield cluster


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dask", "fabric", "worker", *arguments, "--no-dashboard"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_worker_for_each_gpu(two_gpus, scheduler):
    process = start(scheduler.scheduler_address, "--resources", "X=3")
    try:
        with Client(scheduler) as client:
            client.wait_for_workers(2, timeout=SECONDS)
            infos = client.scheduler_info(n_workers=-1)["workers"].values()
            assert [info["resources"] for info in infos] == [{"GPU": 1, "X": 3}] * 2
            assert [info["nthreads"] for info in infos] == [1, 1]
            assert [info["memory_limit"] for info in infos] == [MEMORY_LIMIT // 2] * 2
            visible = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
            assert sorted(visible.values()) == ["0,1", "1,0"]
            process.terminate()
            _, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert said.splitlines()[:3] == [
        "GPU 0 (NVIDIA Stand-in), 1 CPUs",
        "GPU 1 (NVIDIA Stand-in), 1 CPUs",
        "workers: 2, threads of each: 1",
    ]


def test_a_gpu_that_does_not_work_is_told(gpus, driver, scheduler, monkeypatch):
    gpus({"cpus": CPUS})
    monkeypatch.setenv("DASK_FABRIC_TEST_UUIDS", uuid(5))
    process = start(scheduler.scheduler_address)
    try:
        _, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("Error: the first GPU that CUDA sees in this worker")

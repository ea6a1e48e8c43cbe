"""Whole clusters: with GPUs that are stand-ins, and without any."""

from __future__ import annotations

import os
from collections import Counter

import dask.config
import pytest
from distributed import Client, Worker

import dask_fabric
from dask_fabric.errors import UnavailableError
from dask_fabric.gpu import context
from dask_fabric.gpu.cluster import LocalFabricCluster
from dask_fabric.gpu.launch import Nannies
from dask_fabric.gpu.worker import METRIC, STARTUP

from .conftest import CPUS, uuid

SECONDS = 30
QUIET = {
    "dashboard_address": None,
    "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},
    "memory_limit": 0,
}


class Watching(Worker):
    """Notes whether there was a CUDA context before it was made, and so before it listened."""

    def __init__(self, *arguments, **options):
        self.had_context = context.has_context()
        super().__init__(*arguments, **options)


def look(dask_worker) -> dict:
    """How a worker's process is set up."""
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    return {
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "order": os.environ["CUDA_DEVICE_ORDER"],
        "had_context": getattr(dask_worker, "had_context", None),
        "cores": set().union(*(os.sched_getaffinity(thread) for thread in threads)),
        "mine": os.environ.get("MINE"),
    }


def infos(client: Client) -> list[dict]:
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def test_named_by_the_package():
    assert dask_fabric.LocalFabricCluster is LocalFabricCluster
    with pytest.raises(AttributeError, match="no attribute 'LocalFabricClusters'"):
        dask_fabric.LocalFabricClusters  # noqa: B018


def test_without_a_gpu(gpus):
    with (
        LocalFabricCluster(n_workers=1, threads_per_worker=2, **QUIET) as cluster,
        Client(cluster) as client,
    ):
        assert cluster.seats == () and "NVML" in cluster.no_gpu_reason
        assert cluster.scheduler_address.startswith("fabric://")
        (info,) = infos(client)
        assert (info["resources"], info["nthreads"]) == ({}, 2)
        assert client.submit(sum, [1, 2]).result(timeout=SECONDS) == 3


def test_one_worker_for_each_gpu(two_gpus):
    with (
        LocalFabricCluster(worker_class=Watching, env={"MINE": 1}, **QUIET) as cluster,
        Client(cluster) as client,
    ):
        found = sorted(client.run(look).values(), key=lambda one: one["visible"])
        assert [one["visible"] for one in found] == ["0,1", "1,0"]
        assert all(one["order"] == "PCI_BUS_ID" and one["mine"] == "1" for one in found)
        assert all(one["had_context"] for one in found)
        assert [one["cores"] for one in found] == [{CPUS[0]}, {CPUS[-1]}]
        assert [info["nthreads"] for info in infos(client)] == [1, 1]
        assert [info["resources"] for info in infos(client)] == [{"GPU": 1}] * 2


@pytest.mark.slow
def test_what_workers_tell_of_their_gpus(two_gpus):
    with LocalFabricCluster(**QUIET) as cluster, Client(cluster) as client:
        by_uuid = {
            state.extra[STARTUP]["uuid"]: state for state in cluster.scheduler.workers.values()
        }
        first, second = by_uuid[uuid(0)], by_uuid[uuid(1)]
        assert first.extra[STARTUP]["cores"] == tuple(CPUS[:1])
        assert first.extra["gpu"] == {"memory-total": 1 << 30, "name": "NVIDIA Stand-in"}
        client.run(heartbeat)
        assert first.metrics["gpu"] == {"utilization": 7, "memory-used": 5}
        assert second.metrics["gpu"] == {"utilization": 8, "memory-used": 6}
        assert first.metrics[METRIC] == {"memory-used": 3, "pool-used": None, "pool-total": None}
        assert second.metrics[METRIC]["memory-used"] is None


async def heartbeat(dask_worker) -> None:
    await dask_worker.heartbeat()


@pytest.mark.slow
def test_more_workers_than_gpus_and_fewer(two_gpus):
    options = {"CUDA_VISIBLE_DEVICES": "1,0", "resources": {"GPU": 2, "X": 1}}
    with LocalFabricCluster(n_workers=3, **options, **QUIET) as cluster, Client(cluster) as client:
        client.wait_for_workers(3, timeout=SECONDS)
        found = Counter(one["visible"] for one in client.run(look).values())
        assert found == {"1,0": 2, "0,1": 1}
        assert infos(client)[0]["resources"] == {"GPU": 2, "X": 1}
        tasks = client.map(abs, range(3), resources={"GPU": 2})
        assert client.gather(tasks) == [0, 1, 2]
        cluster.scale(4)
        client.wait_for_workers(4, timeout=SECONDS)
        found = Counter(one["visible"] for one in client.run(look).values())
        assert found == {"1,0": 2, "0,1": 2}


@pytest.mark.slow
def test_a_worker_that_has_died_comes_back_to_its_seat(two_gpus):
    with (
        LocalFabricCluster(CUDA_VISIBLE_DEVICES=1, worker_class=Watching, **QUIET) as cluster,
        Client(cluster) as client,
    ):
        client.restart(timeout=SECONDS)
        (found,) = client.run(look).values()
        assert (found["visible"], found["had_context"]) == ("1", True)
        assert found["cores"] == {CPUS[-1]}


@pytest.mark.asyncio
@pytest.mark.slow
async def test_in_an_event_loop(two_gpus):
    async with (
        LocalFabricCluster(asynchronous=True, protocol="fabric+tcp", **QUIET) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert cluster.scheduler_address.startswith("fabric+tcp://")
        assert len(await client.run(look)) == 2


def why_no_worker_starts() -> str:
    with pytest.raises(RuntimeError, match="Nanny failed to start") as caught:
        LocalFabricCluster(silence_logs=50, **QUIET)
    return str(caught.value.__cause__)


def test_a_gpu_that_does_not_work_is_told(two_gpus, monkeypatch):
    monkeypatch.setenv("DASK_FABRIC_TEST_UUIDS", f"{uuid(1)},{uuid(0)}")  # the driver disagrees
    assert "the first GPU that CUDA sees in this worker is" in why_no_worker_starts()


@pytest.mark.slow
def test_the_pool_is_that_of_the_configuration_here(two_gpus):
    with dask.config.set({"fabric.gpu.pool": 1024}):
        assert "a pool of cupy, which cannot be imported" in why_no_worker_starts()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"processes": False}, ValueError, "each needs its own process"),
        ({"worker_class": dict}, TypeError, "expected a subclass of Worker"),
        ({"CUDA_VISIBLE_DEVICES": "5"}, UnavailableError, "names 5, which is no GPU"),
        ({"cupy_pool_size": 1, "rmm_pool_size": 1}, UnavailableError, "not both"),
    ],
)
def test_wrong_options(two_gpus, options, error, message):
    with pytest.raises(error, match=message):
        LocalFabricCluster(**options, **QUIET)


def test_seats_that_are_left_are_taken_again(two_gpus, monkeypatch):
    from distributed.core import Status

    from dask_fabric.gpu import launch
    from dask_fabric.gpu.allocator import Pool
    from dask_fabric.gpu.seats import find_seats

    class Nanny:
        status = Status.running

        def __init__(self, *arguments, env, **options):
            self.visible = env["CUDA_VISIBLE_DEVICES"]

    monkeypatch.setattr(launch, "Nanny", Nanny)
    make = Nannies(find_seats()[0], Pool("cupy", None))
    one, two, three, four = (make() for _ in range(4))
    assert [nanny.visible for nanny in (one, two, three, four)] == ["0,1", "1,0", "0,1", "1,0"]
    two.status = four.status = Status.closed
    assert [make().visible, make().visible] == ["1,0", "1,0"]

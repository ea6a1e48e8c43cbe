"""Which processes have a CUDA context, on which GPU, and what others receive."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from distributed import Client

from dask_fabric.gpu.cluster import LocalFabricCluster
from dask_fabric.gpu.context import has_context
from dask_fabric.gpu.seats import find_seats
from dask_fabric.gpu.worker import METRIC, STARTUP

from .conftest import SECONDS

MIB = 1 << 20
QUIET = {
    "dashboard_address": None,
    "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},
}


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_makes_no_context():
    program = """if 1:
        import dask_fabric, dask_fabric.comm.backend, dask_fabric.gpu.cluster
        import distributed
        from dask_fabric.gpu.context import has_context
        print(has_context())
    """
    assert run(program) == "False"


def test_a_cluster_makes_no_context_in_the_process_of_its_scheduler_and_client():
    program = f"""if 1:
        from dask_fabric import LocalFabricCluster
        from dask_fabric.gpu.context import has_context
        from distributed import Client
        def make():
            import cupy
            return cupy.arange(1000)
        if __name__ == "__main__":
            with LocalFabricCluster(n_workers=2, **{QUIET}) as cluster, Client(cluster) as client:
                one, two = client.scheduler_info(n_workers=-1)["workers"]
                made = client.submit(make, workers=[one])
                print(client.submit(lambda x: int(x.sum()), made, workers=[two]).result())
                print(has_context())
    """
    assert run(program).split() == ["499500", "False"]


def place_of_context() -> str:
    import cupy

    return cupy.cuda.Device().pci_bus_id.lower()


def test_each_worker_has_its_own_gpu_first():
    seats, _ = find_seats()
    with LocalFabricCluster(**QUIET) as cluster, Client(cluster) as client:
        client.wait_for_workers(len(seats), timeout=SECONDS)
        infos = client.scheduler_info(n_workers=-1)["workers"]
        assert len(infos) == len(seats)
        assert {info["resources"]["GPU"] for info in infos.values()} == {1}
        states = cluster.scheduler.workers
        places = {seat.device.uuid: seat.device.address for seat in seats}
        for address, found in client.run(place_of_context).items():
            expected = places[states[address].extra[STARTUP]["uuid"]].lower()
            assert expected.endswith(found)  # the driver writes more zeros
        assert all(client.run(has_context).values())
        cores = client.run(lambda: sorted(os.sched_getaffinity(0)))
        for address, found in cores.items():
            asked = states[address].extra[STARTUP]["cores"]
            assert found == list(asked) or not asked


def hold(nbytes: int) -> None:
    import cupy

    hold.kept = cupy.zeros(nbytes, "u1")
    cupy.cuda.Device().synchronize()


async def heartbeat(dask_worker) -> None:
    await dask_worker.heartbeat()


def test_metrics():
    size = 256 * MIB
    with (
        LocalFabricCluster(n_workers=1, cupy_pool_size=size, **QUIET) as cluster,
        Client(cluster) as client,
    ):
        client.run(heartbeat)
        (state,) = cluster.scheduler.workers.values()
        before = state.metrics[METRIC]
        assert before["pool-total"] >= size and before["pool-used"] < size
        client.run(hold, size)
        client.run(heartbeat)
        after = state.metrics[METRIC]
        assert after["pool-used"] - before["pool-used"] >= size
        assert state.metrics["gpu"]["memory-used"] >= size
        assert 0 <= state.metrics["gpu"]["utilization"] <= 100
        assert state.extra["gpu"]["memory-total"] >= state.metrics["gpu"]["memory-used"]
        # In a container the driver may know the process by another number.
        assert after["memory-used"] is None or after["memory-used"] >= size


@pytest.fixture
def cluster_without():
    """Two workers on a GPU, and a scheduler and a client that see none."""
    with pytest.MonkeyPatch.context() as patch:
        first = find_seats()[0][0].device.uuid
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        with (
            LocalFabricCluster(n_workers=2, CUDA_VISIBLE_DEVICES=[first], **QUIET) as cluster,
            Client(cluster) as client,
        ):
            yield client, list(client.scheduler_info(n_workers=-1)["workers"])


def make_on_device(count: int):
    import cupy

    return cupy.arange(count)


def test_a_scheduler_and_a_client_without_a_gpu(cluster_without):
    client, (one, two) = cluster_without
    made = client.submit(make_on_device, 1_000_000, workers=[one])
    found = client.submit(lambda x: x.get(), made, workers=[two]).result(timeout=SECONDS)
    np.testing.assert_array_equal(found, np.arange(1_000_000))


def test_device_memory_for_a_client_without_a_gpu_is_a_clear_error():
    """In a process of its own: this one may have CuPy, and see the GPU."""
    program = f"""if 1:
        import os, sys
        from dask_fabric import LocalFabricCluster
        from distributed import Client
        def make():
            import cupy
            return cupy.arange(1000_000)
        if __name__ == "__main__":
            sys.modules["cupy"] = None
            with LocalFabricCluster(n_workers=1, **{QUIET}) as cluster, Client(cluster) as client:
                made = client.submit(make)
                try:
                    print("got", type(made.result(timeout={SECONDS})))
                except Exception as exc:
                    print("error", exc)
                print(client.submit(sum, [1, 2]).result(timeout={SECONDS}))
    """
    *said, last = run(program).splitlines()
    assert said[0].startswith("error") and last == "3"

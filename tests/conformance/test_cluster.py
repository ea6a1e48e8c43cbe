"""Real clusters: several processes, every way in which a program names the protocol."""

from __future__ import annotations

import operator
import socket

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, Worker
from distributed.comm import get_address_host

from ..conftest import LOCAL_CLUSTER, NO_DASHBOARD, OFI_SCHEME, UCX_SCHEME


def local_cluster(scheme, security, **kwargs):
    options = {"n_workers": 2, "threads_per_worker": 1, **LOCAL_CLUSTER, **kwargs}
    return LocalCluster(protocol=scheme, security=security, **options)


def scheduler(scheme, security, **kwargs) -> Scheduler:
    return Scheduler(protocol=scheme, port=0, security=security, **NO_DASHBOARD, **kwargs)


def addresses(client: Client) -> list[str]:
    info = client.scheduler_info(n_workers=-1)
    nannies = [worker["nanny"] for worker in info["workers"].values() if worker["nanny"]]
    return [info["address"], *info["workers"], *nannies]


def check_work(client: Client) -> None:
    left, right = list(client.scheduler_info(n_workers=-1)["workers"])[:2]
    block = client.submit(np.arange, 1 << 20, workers=[left])
    total = client.submit(np.sum, block, workers=[right])
    assert total.result() == (1 << 20) * ((1 << 20) - 1) // 2
    assert client.submit(operator.add, 1, 2).result() == 3
    np.testing.assert_array_equal(block.result(), np.arange(1 << 20))


@pytest.mark.clusters
@pytest.mark.parametrize("suffix", ["", "://"])
def test_local_cluster_of_processes(scheme, security, suffix):
    with local_cluster(scheme + suffix, security) as cluster, Client(cluster) as client:
        check_work(client)
        found = addresses(client)
        assert len(found) == 5
        assert all(address.startswith(f"{scheme}://127.0.0.1:") for address in found)


def test_a_client_by_address(scheme, security):
    with (
        local_cluster(scheme, security, processes=False) as cluster,
        Client(cluster.scheduler_address, security=security) as client,
    ):
        assert client.scheduler.address.startswith(f"{scheme}://")
        check_work(client)


def test_security_temporary_as_users_write_it(scheme):
    if scheme in ("tcp", "fabric+tcp", UCX_SCHEME, OFI_SCHEME):
        pytest.skip("this scheme cannot encrypt")
    with (
        local_cluster(scheme, True, n_workers=1, processes=False) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(operator.add, 1, 2).result() == 3


async def test_the_default_scheme(scheme, security):
    with dask.config.set({"distributed.comm.default-scheme": scheme}):
        async with (
            scheduler(scheme, security) as server,
            Worker(server.address.split("://")[1], security=security) as worker,
            Client(server.address.split("://")[1], asynchronous=True, security=security) as client,
        ):
            assert worker.scheduler.address.startswith(f"{scheme}://")
            assert await client.submit(operator.add, 1, 2) == 3


async def test_workers_follow_the_schedulers_scheme(scheme, security):
    async with (
        scheduler(scheme, security, host="127.0.0.1") as server,
        Nanny(server.address, nthreads=1, security=security) as nanny,
    ):
        assert nanny.address.startswith(f"{scheme}://127.0.0.1:")
        assert nanny.worker_address.startswith(f"{scheme}://127.0.0.1:")


@pytest.mark.own
async def test_a_range_of_ports(scheme, security):
    async with scheduler(scheme, security, host="127.0.0.1") as server:
        first = 30_000 + server.port % 10_000
        ports = f"{first}:{first + 9}"
        async with (
            Worker(server.address, port=ports, security=security) as one,
            Worker(server.address, port=ports, security=security) as two,
        ):
            assert first <= one.port < two.port <= first + 9


async def test_ipv6(scheme, security, has_ipv6):
    # distributed 2025.1 fails to serve its dashboard at an address of IPv6.
    own = {"security": security, "dashboard_address": "127.0.0.1:0"}
    async with (
        scheduler(scheme, security, host="[::1]") as server,
        Worker(server.address, **own) as worker,
        Client(server.address, asynchronous=True, security=security) as client,
    ):
        assert server.address.startswith(f"{scheme}://[::1]:")
        assert get_address_host(worker.address) == "::1"
        assert await client.submit(operator.add, 1, 2) == 3


@pytest.mark.parametrize("how", [{"host": "127.0.0.2"}, {"interface": "lo"}], ids=["host", "lo"])
async def test_host_and_interface_of_a_worker(scheme, security, how):
    async with (
        scheduler(scheme, security, host="127.0.0.1") as server,
        Worker(server.address, protocol=scheme, security=security, **how) as worker,
    ):
        expected = how.get("host", "127.0.0.1")
        assert worker.address.startswith(f"{scheme}://{expected}:")
        assert worker.listen_address == worker.address


async def test_a_contact_address(scheme, security):
    async with scheduler(scheme, security, host="127.0.0.1") as server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        async with Worker(
            server.address,
            host="127.0.0.1",
            port=port,
            contact_address=f"{scheme}://127.0.0.1:{port}",
            security=security,
        ) as worker:
            assert list(server.workers) == [f"{scheme}://127.0.0.1:{port}"]
            assert worker.contact_address == f"{scheme}://127.0.0.1:{port}"

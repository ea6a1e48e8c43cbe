"""Workers with UCX in two versions, with libfabric, with both and with neither, in one cluster."""

from __future__ import annotations

import operator

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

import dask_fabric

from ..conftest import NO_DASHBOARD_OPTIONS, ofi_settings, ucx_libraries
from .conftest import commands, unused_port

LIBRARIES = ucx_libraries()  # now: a process that has loaded one finds no other
VARIABLES = {
    "DASK_FABRIC__SHM__ENABLED": "false",
    "DASK_FABRIC__CMA__ENABLED": "false",
    "DASK_FABRIC__UCX__ENABLED": "true",
    "DASK_LOGGING__DISTRIBUTED": "warning",
}


def two_libraries():
    """Two UCX of different versions, or a skip."""
    by_version = {library.version: library for library in LIBRARIES}
    if len(by_version) < 2:
        pytest.skip("two versions of UCX are needed")
    return [by_version[version] for version in sorted(by_version)[:: len(by_version) - 1]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A client, and names of the workers by their addresses."""
    old, new = two_libraries()
    libfabric = ofi_settings()
    ofi = {
        "DASK_FABRIC__OFI__PROVIDER": libfabric["fabric.ofi.provider"],
        "DASK_FABRIC__OFI__LIBRARY": libfabric["fabric.ofi.library"],
    }
    no_ofi = {"DASK_FABRIC__OFI__ENABLED": "false"}
    no_ucx = {"DASK_FABRIC__UCX__ENABLED": "false"}
    environments = {
        "old": {"DASK_FABRIC__UCX__LIBRARY": old.path, **no_ofi},
        "new": {"DASK_FABRIC__UCX__LIBRARY": new.path, **no_ofi},
        "both": {"DASK_FABRIC__UCX__LIBRARY": new.path, **ofi},
        "ofi": {**no_ucx, **ofi},
        "none": {**no_ucx, **no_ofi},
    }
    port = unused_port()
    scheduler = f"fabric://127.0.0.1:{port}"
    config = {f"fabric.{name}.enabled": False for name in ("shm", "cma", "ucx", "ofi")}
    with commands(tmp_path_factory.mktemp("logs")) as run, dask.config.set(config):
        run("scheduler", "--protocol", "fabric", "--host", "127.0.0.1", "--port", str(port),
            *NO_DASHBOARD_OPTIONS, **{**VARIABLES, **environments["old"]})  # fmt: skip
        for name, environment in environments.items():
            run("worker", scheduler, "--name", name, "--no-nanny", "--nthreads", "1",
                "--no-dashboard", **{**VARIABLES, **environment})  # fmt: skip
        with Client(scheduler, timeout=30) as client:
            client.wait_for_workers(len(environments), timeout=60)
            workers = client.scheduler_info()["workers"]
            yield client, {address: worker["id"] for address, worker in workers.items()}


def exchange(client, names) -> None:
    """Have each worker fetch a large array from each of the others."""
    arrays = {
        address: client.submit(np.full, 1_000_000, 2.0, pure=False, workers=[address])
        for address in names
    }
    sums = [
        client.submit(operator.add, arrays[far], 1.0, pure=False, workers=[near])
        for near in names
        for far in names
        if near != far
    ]
    assert all((total == 3.0).all() for total in client.gather(sums))


def moved_between(client, names) -> dict:
    """The statistics of the comms that one end opened to another, by the names of both."""
    told = client.run(dask_fabric.statistics)
    return {
        (names[near], names[comm["peer_address"]]): comm
        for near, statistics in told.items()
        for comm in statistics["comms"]
        if comm["peer_address"] in names
    }


def reasons(near: str, far: str) -> dict[str, str]:
    """What is told against a path that a pair does not use."""
    have_ucx, have_ofi = {"old", "new", "both"}, {"both", "ofi"}
    told = {}
    if not {near, far} <= have_ucx:
        told["ucx"] = "fabric.ucx.enabled is false"
    elif "old" in (near, far):
        told["ucx"] = "the same version"
    if not {near, far} <= have_ofi:
        told["ofi"] = "fabric.ofi.enabled is false"
    return told


def test_each_pair_takes_what_it_has_and_tells_why(cluster):
    client, names = cluster
    exchange(client, names)
    found = moved_between(client, names)
    assert set(found) == {(a, b) for a in names.values() for b in names.values() if a != b}
    for (near, far), comm in found.items():
        told = reasons(near, far)
        path = next((one for one in ("ucx", "ofi") if one not in told), "stream")
        assert comm["paths"] == {"host": path}, (near, far)
        assert comm["traffic"][path]["bytes_received"] >= 8_000_000, (near, far)
        for refused, reason in {**told, "cma": "fabric.cma.enabled is false"}.items():
            assert reason in comm["refused"][refused], (near, far)


@pytest.mark.slow
def test_a_transpose(cluster):
    assert len(cluster[1]) == 5
    x = da.random.default_rng(1).random((2000, 2000), chunks=(500, 500)).persist()
    assert float((x - x.T).sum().compute()) == pytest.approx(0, abs=1e-6)
    assert float((x + x.T).sum().compute()) == pytest.approx(2 * float(x.sum().compute()))


@pytest.mark.slow
def test_those_with_the_same_version_use_it(cluster):
    client, names = cluster
    exchange(client, names)
    told = client.run_on_scheduler(dask_fabric.statistics)
    paths = {
        names[comm["peer_address"]]: comm["paths"]["host"]
        for comm in told["comms"]
        if comm["peer_address"] in names
    }
    others = dict.fromkeys(("new", "both", "ofi", "none"), "stream")
    assert paths in ({}, {"old": "ucx", **others})
    assert client.submit(np.ones, 10, workers=["old"]).result().sum() == 10

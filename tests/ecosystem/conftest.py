"""A cluster for each module, and time limits; `make ecosystem` installs what these tests need.

They are not a part of ``make test``, which installs neither torch nor xgboost. To see what is
Dask's own behaviour: ``DASK_FABRIC_TEST_SCHEMES=tcp make ecosystem``.
"""

from __future__ import annotations

import os
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

from ..conftest import LOCAL_CLUSTER, REFERENCES

PATIENCE_SECONDS = 100  # of every wait; a test has more than that for all of them
FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))
            # Other libraries warn of what they will change; that is no failure of ours.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(
    scope="module", params=os.environ.get("DASK_FABRIC_TEST_SCHEMES", "fabric").split(",")
)
def scheme(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _promises_of_ours(request, scheme):
    if scheme in REFERENCES and request.node.get_closest_marker("own"):
        pytest.skip("a promise of dask-fabric, not of distributed's own comms")


def start(scheme: str, **options) -> LocalCluster:
    """A cluster of two worker processes, or of what the options say.

    With one thread each: netCDF4 may crash where several threads open files.
    """
    usual = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": "4 GiB", **LOCAL_CLUSTER}
    return LocalCluster(protocol=scheme, **{**usual, **options})


def addresses(client: Client) -> list[str]:
    """The addresses of the workers. `scheduler_info` may have none of them for a moment."""
    return sorted(client.nthreads())


@pytest.fixture(scope="module")
def client(scheme):
    # The manager drops copies of what several workers have. A test that changes the copy of one
    # worker, and then looks at that of the other, must find both.
    with (
        dask.config.set({"distributed.scheduler.active-memory-manager.start": False}),
        start(scheme) as cluster,
        Client(cluster, timeout=PATIENCE_SECONDS) as client,
    ):
        assert client.scheduler.address.startswith(f"{scheme}://")
        yield client


@pytest.fixture(scope="module")
def left(client) -> str:
    return addresses(client)[0]


@pytest.fixture(scope="module")
def right(client) -> str:
    return addresses(client)[1]

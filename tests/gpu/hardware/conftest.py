"""A real GPU: every test below this folder needs one, and CuPy; `check.sh` runs them."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest
from distributed import Client

from dask_fabric.errors import FabricError
from dask_fabric.gpu.cluster import LocalFabricCluster
from dask_fabric.gpu.seats import find_seats

from ...conftest import TLS_SCHEMES, scheme_params

HERE = Path(__file__).parent
SECONDS = 120


@functools.cache
def reason_to_skip() -> str:
    """Give the reason why these tests cannot run here. Asks the driver: no CUDA context is made."""
    try:
        seats, reason = find_seats()
    except FabricError as exc:
        return str(exc)
    if not seats:
        return f"no NVIDIA GPU: {reason}"
    return "" if importlib.util.find_spec("cupy") else "CuPy is not installed"


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")
            item.add_marker(pytest.mark.timeout(300))
            # Warnings of CuPy and similar libraries are not ours.
            item.add_marker(pytest.mark.filterwarnings("default"))
            if reason_to_skip():
                item.add_marker(pytest.mark.skip(reason_to_skip()))


@pytest.fixture(autouse=True)
def no_gpus_named():
    """Keep the user's choice of GPUs here."""


@pytest.fixture(scope="module", params=scheme_params())
def workers(request):
    """A client of two workers on the same GPU, and their addresses, over each scheme."""
    security = None
    if request.param in TLS_SCHEMES:
        security = request.getfixturevalue("temporary_security")
    first = find_seats()[0][0].device.uuid
    with (
        LocalFabricCluster(
            n_workers=2,
            CUDA_VISIBLE_DEVICES=[first],
            protocol=request.param,
            security=security,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster, timeout=SECONDS) as client,
    ):
        client.wait_for_workers(2, timeout=SECONDS)
        yield client, list(client.scheduler_info(n_workers=-1)["workers"])

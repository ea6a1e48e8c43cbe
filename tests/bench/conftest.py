"""Clusters within the process of the tests."""

from __future__ import annotations

import contextlib

import pytest
from distributed import LocalCluster


@pytest.fixture(scope="module")
def local_cluster():
    """A function that starts one of so many workers, which ends with the module."""
    with contextlib.ExitStack() as stack:

        def local_cluster(scheme: str, worker_count: int) -> LocalCluster:
            cluster = LocalCluster(
                n_workers=worker_count,
                threads_per_worker=1,
                processes=False,
                protocol=scheme,
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                silence_logs=False,
            )
            return stack.enter_context(cluster)

        yield local_cluster

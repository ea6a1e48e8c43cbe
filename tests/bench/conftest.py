"""Clusters in the process of the tests."""

from __future__ import annotations

import contextlib

import pytest
from distributed import LocalCluster

from ..conftest import LOCAL_CLUSTER


@pytest.fixture(scope="module")
def local_cluster():
    """A function that starts a cluster of *n* workers, which ends with the module."""
    with contextlib.ExitStack() as stack:

        def local_cluster(scheme: str, worker_count: int) -> LocalCluster:
            cluster = LocalCluster(
                n_workers=worker_count,
                threads_per_worker=1,
                processes=False,
                protocol=scheme,
                silence_logs=False,
                **LOCAL_CLUSTER,
            )
            return stack.enter_context(cluster)

        yield local_cluster

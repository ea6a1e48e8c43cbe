"""A worker process is killed while results travel."""

from __future__ import annotations

import operator
import os
import signal

import numpy as np
import pytest
from distributed import Client, LocalCluster, as_completed

from ..conftest import LOCAL_CLUSTER

pytestmark = pytest.mark.clusters


def test_a_killed_worker_does_not_stop_the_computation(security, scheme):
    with (
        LocalCluster(
            protocol=scheme, security=security, n_workers=2, threads_per_worker=1,
            **LOCAL_CLUSTER,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        workers = client.run(os.getpid)
        left, right = workers
        blocks = [
            client.submit(
                np.full,
                2_000_000,
                n,
                pure=False,
                workers=[(left, right)[n % 2]],
                allow_other_workers=True,
            )
            for n in range(16)
        ]
        # Each needs a block of the other worker.
        sums = [
            client.submit(operator.add, blocks[n], blocks[n - 1], pure=False) for n in range(16)
        ]
        next(iter(as_completed(sums)))
        os.kill(workers[left], signal.SIGKILL)
        for n, total in enumerate(client.gather(sums)):
            assert (total == n + (n - 1) % 16).all()
        client.wait_for_workers(2, timeout=30)
        assert workers[left] not in client.run(os.getpid).values()

"""Clusters whose workers change, or that run out of memory; each test has one of its own."""

from __future__ import annotations

import os
import threading

import dask
import numpy as np
from distributed import Client, wait
from distributed.diagnostics.plugin import SchedulerPlugin

from .conftest import PATIENCE_SECONDS, addresses, start

COUNT = 1 << 20  # 8 MiB
TOTAL = COUNT * (COUNT - 1) // 2


class Gone(SchedulerPlugin):
    """Says when the last worker has gone."""

    def __init__(self) -> None:
        self.last = threading.Event()

    def remove_worker(self, scheduler, worker, **kwargs):
        if not scheduler.workers:
            self.last.set()


def test_adaptive_scaling(scheme):
    with start(scheme, n_workers=0) as cluster, Client(cluster) as client:
        gone = Gone()
        cluster.scheduler.add_plugin(gone)
        cluster.adapt(minimum=0, maximum=2, interval="100 ms", wait_count=2)
        arrays = [client.submit(np.arange, COUNT, pure=False) for _ in range(8)]
        total = client.submit(lambda arrays: int(sum(map(np.sum, arrays))), arrays)
        assert total.result(PATIENCE_SECONDS) == 8 * TOTAL
        del arrays, total
        assert gone.last.wait(PATIENCE_SECONDS)
        again = client.submit(np.sum, np.arange(10))
        assert again.result(PATIENCE_SECONDS) == 45


def test_a_restart(scheme):
    with start(scheme) as cluster, Client(cluster) as client:
        old = set(client.run(os.getpid).values())
        array = client.submit(np.arange, COUNT)
        wait(array, PATIENCE_SECONDS)
        client.restart(timeout=PATIENCE_SECONDS)
        assert array.status == "cancelled"
        assert not old & set(client.run(os.getpid).values())
        left, right = addresses(client)
        array = client.submit(np.arange, COUNT, workers=[left])
        total = client.submit(np.sum, array, workers=[right])
        assert total.result(PATIENCE_SECONDS) == TOTAL


def test_what_a_retired_worker_had_is_kept(scheme):
    with start(scheme) as cluster, Client(cluster) as client:
        left, right = addresses(client)
        arrays = client.map(np.full, [COUNT] * 5, range(5), workers=[left])
        wait(arrays, PATIENCE_SECONDS)
        retired = client.retire_workers([left], close_workers=True)
        assert set(retired) == {left}
        assert {who for (who,) in client.who_has(arrays).values()} == {right}
        for number, array in enumerate(client.gather(arrays)):
            np.testing.assert_array_equal(array, np.full(COUNT, number))


def spilled_count(dask_worker) -> int:
    return len(dask_worker.data.slow)


def test_spilled_data_is_sent(scheme):
    limits = {
        "distributed.worker.memory.target": 0.1,  # of 1 GiB: 13 arrays
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
    }
    with (
        dask.config.set(limits),
        start(scheme, memory_limit="1 GiB") as cluster,
        Client(cluster) as client,
    ):
        left, right = addresses(client)
        arrays = client.map(np.full, [COUNT] * 30, range(30), workers=[left])
        wait(arrays, PATIENCE_SECONDS)
        assert client.run(spilled_count, workers=[left])[left] >= 10
        totals = client.map(np.sum, arrays, workers=[right])
        assert client.gather(totals) == [number * COUNT for number in range(30)]
        assert client.run(spilled_count, workers=[right])[right] >= 10  # the copies there, too
        assert client.submit(np.sum, arrays[0], workers=[left]).result(PATIENCE_SECONDS) == 0

"""All workloads, by name; those of dataframes need pandas and are imported when they run."""

from __future__ import annotations

from collections.abc import Callable

from distributed import Client

from dask_fabric.bench.work import arrays, tasks
from dask_fabric.bench.work.extent import Extent, Outcome, Workload


def _shuffle(client: Client, extent: Extent) -> Callable[[], Outcome]:
    from dask_fabric.bench.work import frames

    return frames.shuffle(client, extent)


def _merge(client: Client, extent: Extent) -> Callable[[], Outcome]:
    from dask_fabric.bench.work import frames

    return frames.merge(client, extent)


WORKLOADS = {
    one.name: one
    for one in (
        Workload("tasks", "tasks/s", "4,000 tiny tasks", tasks.tiny_tasks),
        Workload("fetch", "GB/s", "fetch of 400 MB, worker to worker", arrays.fetch),
        Workload("busy-fetch", "GB/s", "fetch of 100 MB, both workers busy", arrays.busy_fetch),
        Workload("transpose-sum", "s", "(x + x.T).sum()", arrays.transpose_sum),
        Workload("rechunk", "s", "blocks to columns, all to all", arrays.rechunk),
        Workload("broadcast", "GB/s", "400 MB from one worker to all others", arrays.broadcast),
        Workload("shuffle", "s", "dataframe shuffled by a key", _shuffle),
        Workload("merge", "s", "two dataframes merged by a key", _merge),
    )
}

"""All workloads, by name; those with dataframes need pandas, and are imported when they run."""

from __future__ import annotations

from collections.abc import Callable

from distributed import Client

from dask_fabric.bench.work import arrays, tasks
from dask_fabric.bench.work.extent import Extent, Outcome, Workload

_BUSY_FETCH = "fetch of {busy_fetch}, both workers busy"
_BLOCKS = "{size} x {size} in chunks of {chunk_size}"
_ROWS = "{partitions} x {partition_rows:,} rows"


def _shuffle(client: Client, extent: Extent) -> Callable[[], Outcome]:
    from dask_fabric.bench.work import frames

    return frames.shuffle(client, extent)


def _merge(client: Client, extent: Extent) -> Callable[[], Outcome]:
    from dask_fabric.bench.work import frames

    return frames.merge(client, extent)


WORKLOADS = {
    one.name: one
    for one in (
        Workload("tasks", "tasks/s", "{task_count:,} tiny tasks", tasks.tiny_tasks),
        Workload("fetch", "GB/s", "fetch of {fetch}, worker to worker", arrays.fetch),
        Workload("busy-fetch", "GB/s", _BUSY_FETCH, arrays.busy_fetch),
        Workload("transpose-sum", "s", "(x + x.T).sum(), " + _BLOCKS, arrays.transpose_sum),
        Workload("rechunk", "s", "blocks to columns, all to all, " + _BLOCKS, arrays.rechunk),
        Workload("broadcast", "GB/s", "{fetch} from one worker to all others", arrays.broadcast),
        Workload("fanout", "MB", "memory of all workers that have the same {fetch}", arrays.fanout),
        Workload("shuffle", "s", "dataframe shuffled by a key, " + _ROWS, _shuffle),
        Workload("merge", "s", "two dataframes merged by a key, " + _ROWS, _merge),
    )
}

"""Many tiny tasks: measures the scheduler and its messages."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from functools import partial

from distributed import Client, wait

from dask_fabric.bench.work.extent import Extent, Outcome

_increment = partial(operator.add, 1)  # can be unpickled on every worker


def tiny_tasks(client: Client, extent: Extent) -> Callable[[], Outcome]:
    """A map of a function that adds one, until all are finished."""

    count = extent.task_count

    def run() -> Outcome:
        begin = time.perf_counter()
        futures = client.map(_increment, range(count), pure=False)
        wait(futures)
        seconds = time.perf_counter() - begin
        total = client.submit(sum, futures).result()
        return Outcome(count / seconds, total == count * (count + 1) // 2)

    return run

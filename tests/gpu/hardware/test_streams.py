"""What is enqueued on any stream is done before it is sent, and what has arrived is there."""

from __future__ import annotations

import pytest

from .conftest import SECONDS

COUNT = 20_000_000
STEPS = 500


def produce(kind: str):
    """Give an array on which a stream still works for some time."""
    import cupy

    stream = {
        "default": lambda: cupy.cuda.Stream.null,
        "blocking": cupy.cuda.Stream,
        "non-blocking": lambda: cupy.cuda.Stream(non_blocking=True),
        "per thread": lambda: cupy.cuda.Stream.ptds,
    }[kind]()
    with stream:
        array = cupy.zeros(COUNT, "i4")
        for _ in range(STEPS):
            array += 1
    return array


def consume(array, non_blocking: bool) -> list[int]:
    """Read at once, on a stream that waits for no other."""
    import cupy

    with cupy.cuda.Stream(non_blocking=non_blocking) as stream:
        extremes = array.min(), array.max()
        stream.synchronize()
        return [int(one) for one in extremes]


@pytest.mark.parametrize("non_blocking", [False, True])
@pytest.mark.parametrize("kind", ["default", "blocking", "non-blocking", "per thread"])
def test_order_of_streams(workers, kind, non_blocking):
    client, (source, target) = workers
    for _ in range(3):
        made = client.submit(produce, kind, workers=[source], pure=False)
        found = client.submit(consume, made, non_blocking, workers=[target], pure=False)
        assert found.result(timeout=SECONDS) == [STEPS, STEPS]

"""Counters, times and histograms."""

from __future__ import annotations

import time

import pytest

from dask_fabric.wire.metrics import (
    HISTOGRAM_BUCKET_COUNT,
    Metrics,
    histogram_of,
    time_of_counting,
)


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 20, 20), ((1 << 20) + 1, 21)],
)
def test_a_bucket_holds_what_is_up_to_its_power_of_two(value, bucket):
    told = histogram_of([value])
    assert told["counts"] == [0] * bucket + [1]
    assert told["sum"] == value


def test_what_is_larger_than_all_buckets_is_in_the_last():
    told = histogram_of([1 << 38, 1 << 39, (1 << 64) - 1 - (1 << 40)])
    assert len(told["counts"]) == HISTOGRAM_BUCKET_COUNT
    assert sum(told["counts"]) == 3
    assert told["counts"][-1] == 2


def test_a_histogram_counts_every_value():
    values = list(range(5000))
    told = histogram_of(values)
    assert sum(told["counts"]) == len(values)
    assert told["sum"] == sum(values)
    assert told["counts"] == [2, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 903]
    assert histogram_of([]) == {"counts": [], "sum": 0}


def test_the_time_of_counting_is_that_of_one_message():
    count = 100_000
    begin_ns = time.monotonic_ns()
    counting_ns = time_of_counting(count)
    assert 0 < counting_ns <= (time.monotonic_ns() - begin_ns) / count


def test_figures_add_up():
    one, other = Metrics(), Metrics()
    one.serialized(1_000_000_000)
    other.serialized(500_000_000)
    other.deserialized(250_000_000)
    copy = one.copy()
    one.add(other)
    told = one.as_dict()
    assert (told["serialize_seconds"], told["deserialize_seconds"]) == (1.5, 0.25)
    assert one.brief()[-1] == 1.75
    assert copy.as_dict()["serialize_seconds"] == 1.0
    assert other.as_dict()["serialize_seconds"] == 0.5

"""Two looks at a cluster."""

from __future__ import annotations

import math

import pytest

from dask_fabric.telemetry.cluster.dataframe import columns, quantile, table
from dask_fabric.telemetry.cluster.processes import Process
from dask_fabric.telemetry.cluster.rates import rates, slowest
from dask_fabric.wire.metrics import Metrics


def row(peer: str, path: str = "stream", **figures) -> dict:
    return {"peer": peer, "path": path, "open_comms": 1, **Metrics().as_dict(), **figures}


def worker(*rows: dict) -> Process:
    return Process("worker", "fabric://h:1", list(rows))


def test_rates_are_of_the_time_between():
    before = [worker(row("a", bytes_sent=100, messages_sent=1), row("b", bytes_sent=50))]
    after = [
        worker(
            row("a", bytes_sent=300, messages_sent=5, peer_seconds=1.0, fallbacks_sent=1),
            row("b", bytes_sent=250),
        )
    ]
    (rate,) = rates(before, after, 2.0)
    assert (rate.process, rate.path, rate.role) == ("fabric://h:1", "stream", "worker")
    assert rate.sent_bytes_per_second == 200
    assert rate.messages_per_second == 2
    assert rate.waits["peer"] == 0.5
    assert rate.fallbacks == 1


def test_a_worker_that_has_come_counts_from_nothing():
    (rate,) = rates([], [worker(row("a", bytes_received=10))], 1.0)
    assert rate.received_bytes_per_second == 10


def test_a_path_without_traffic_is_left_out():
    assert rates([], [worker(row("a", "cma"))], 1.0) == []


def test_the_slowest_pair_comes_first():
    fast = row("fast", "cma", bytes_received=1 << 30, receive_seconds=0.5)
    slow = row("slow", "stream", bytes_received=1 << 30, receive_seconds=10.0)
    little = row("little", "stream", bytes_received=100, receive_seconds=10.0)
    pairs = slowest([worker(fast, slow, little)])
    assert [pair.peer for pair in pairs] == ["slow", "fast"]
    assert pairs[0].bytes_per_second == pytest.approx((1 << 30) / 10)


def test_a_process_without_rows_is_not_in_the_table():
    assert table([Process("worker", "fabric://h:1", None, "why")]) == []
    (one,) = table([worker(row("a", bytes_sent=7))])
    assert list(one) == columns()
    assert (one["process"], one["peer"], one["bytes_sent"]) == ("fabric://h:1", "a", 7)


@pytest.mark.parametrize(
    ("counts", "q", "value"),
    [([1], 0.5, 1), ([0, 0, 3, 1], 0.5, 4), ([0, 0, 3, 1], 0.99, 8), ([0, 5, 0, 0], 0.99, 2)],
)
def test_quantiles_of_a_histogram(counts, q, value):
    assert quantile(counts, q) == value


def test_no_value_has_no_quantile():
    assert math.isnan(quantile([], 0.5))

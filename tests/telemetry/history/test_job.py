"""Summing up what workers report."""

from __future__ import annotations

import json

import pytest

from dask_fabric.telemetry.history.job import Job
from dask_fabric.telemetry.history.summary import TEXT_BYTES_LIMIT, from_text

WAITS = (0.1, 0.2, 0.3, 0.4, 0.5)
MIB = 1 << 20


def told(process: str, *rows: tuple) -> dict:
    return {"process": process, "peers": [row if len(row) > 5 else (*row, *WAITS) for row in rows]}


def both(sent: int, received: int) -> list:
    row = ("fabric://h:2", "cma", sent, received, 1)
    return [("fabric://h:1", told("p1", row)), ("fabric://g:2", None)]


def job() -> Job:
    return Job("fabric://h:8786", 1.0)


def test_what_was_moved_before_does_not_count():
    one = job()
    one.sample(both(100, 1000), 1)
    one.sample(both(150, 3000), 2)
    (path,) = one.summary().paths
    assert (path.bytes_sent, path.bytes_received, path.fallbacks) == (50, 2000, 0)
    assert path.bandwidth_max == 1000
    assert path.bandwidth_p50 == pytest.approx(1000, rel=0.05)
    summary = one.summary()
    assert (summary.workers, summary.workers_total, summary.hosts, summary.silent) == (2, 2, 2, 1)


def test_a_path_that_comes_later_counts_from_nothing():
    one = job()
    one.sample(both(0, 0), 1)
    row = ("fabric://h:2", "ucx", 5, 7, 2)
    one.sample([("fabric://h:1", told("p1", row))], 1)
    found = {path.path: path for path in one.summary().paths}
    assert (found["ucx"].bytes_sent, found["ucx"].fallbacks) == (5, 2)
    assert found["ucx"].peer_seconds == pytest.approx(0.4)


def test_workers_that_left_and_processes_that_began_anew_still_count():
    one = job()
    one.take(both(0, 0))
    one.take(both(10, 1000))
    one.take(both(3, 30))  # the same name, and less: another process
    one.sample([], 1)
    (path,) = one.summary().paths
    assert (path.bytes_sent, path.bytes_received) == (13, 1030)
    assert one.summary().workers == 0 and one.summary().workers_total == 2


def test_percentiles_of_bandwidth():
    one = job()
    received = 0
    one.sample(both(0, 0), 1)
    for rate in range(1, 101):
        received += rate * MIB
        one.sample(both(0, received), 1)
        one.sample(both(0, received), 1)  # where nothing moves there is no bandwidth
    (path,) = one.summary().paths
    found = [path.bandwidth_p50, path.bandwidth_p90, path.bandwidth_p99, path.bandwidth_max]
    assert [rate / MIB for rate in found] == pytest.approx([50, 90, 99, 100], rel=0.06)


def test_a_short_time_shows_no_bandwidth():
    one = job()
    one.sample(both(0, 0), 1)
    one.sample(both(0, 100), 0.1)
    (path,) = one.summary().paths
    assert path.bytes_received == 100 and path.bandwidth_max == 0
    one.sample(both(0, 200), 0.9)
    (path,) = one.summary().paths
    assert path.bandwidth_max == 200


def links(*speeds: float) -> Job:
    addresses = [f"fabric://h:{i}" for i in range(len(speeds) + 1)]
    one = job()
    one.take([(address, None) for address in addresses])
    rows = [
        (address, "stream", 0, 64 * MIB, 0, 0.0, 0.0, 64 * MIB / speed, 0.0, 0.0)
        for address, speed in zip(addresses[1:], speeds, strict=True)
    ]
    one.take([(addresses[0], told("p", *rows))])
    return one


def test_a_slow_link_is_named():
    (link,) = links(1e9, 1e9, 9e8, 1e8, 8e8).summary().slow_links
    assert (link.worker, link.peer, link.path) == ("fabric://h:0", "fabric://h:4", "stream")
    assert link.bytes_per_second == pytest.approx(1e8)


@pytest.mark.parametrize("speeds", [(1e9, 9e8, 5e8), (1e9, 1e8)])
def test_links_alike_and_too_few_say_nothing(speeds):
    assert links(*speeds).summary().slow_links == []


def test_a_summary_is_read_back_and_small_whatever_workers_call_themselves():
    many = "\U0001f600" * 200  # twice six characters each as JSON writes it
    one = Job(many * 2, 1.0)
    addresses = [f"{many[:198]}{i}" for i in range(10, 40)]
    one.take([(address, None) for address in addresses])
    for turn in (0, 1):
        rows = [
            (
                peer,
                f"{many[:197]}{i}",
                64 * MIB,
                turn,
                0,
                0.0,
                0.0,
                1.0 + 9 * (n % 5 == 0),
                0.0,
                0.0,
            )
            for i in range(100, 120)
            for n, peer in enumerate(addresses[:12])
        ]
        one.sample([(addresses[-1] + many, told("p2", *rows))], 1)
    text = one.summary().as_text()
    assert len(text) < TEXT_BYTES_LIMIT
    assert from_text(text) == one.summary()
    assert (len(one.summary().paths), len(one.summary().slow_links)) == (16, 8)


def test_whatever_workers_make_up_is_read_back():
    one = links(1e-3, 1e300, 1e300, 5e307)
    rows = [(f"fabric://h:{i}", "cma", 2**61, 2**61, 2**61, *[2.0**58] * 5) for i in range(256)]
    odd = ("fabric://h:0", "odd", 0, 5e-324, 0)
    one.sample(both(0, 0), 1)
    one.sample([("fabric://h:1", told("p1", odd, *rows))], 5.0)
    found = from_text(one.summary().as_text())
    assert found == one.summary()
    assert found.paths[0].bytes_sent == found.paths[0].bandwidth_max == 2**62
    assert found.slow_links[0].bytes_moved == 64 * MIB


def test_half_a_character_is_read_as_one_that_can_be_printed():
    text = Job("a\ud800", 1.0).summary().as_text()
    assert from_text(text).scheduler == "a?"


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -1, 2**70, 10**400, "1", None],
    ids=lambda value: str(value)[:20],
)
def test_what_no_worker_of_ours_sends_is_left_out(value):
    one = job()
    one.take(both(0, 0))
    one.take([("fabric://h:1", told("p1", ("fabric://h:2", "cma", 1, value, 0)))])
    assert json.loads(one.summary().as_text())["paths"] == []

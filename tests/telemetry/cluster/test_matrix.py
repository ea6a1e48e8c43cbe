"""Reports of workers, brought together."""

from __future__ import annotations

import pytest

from dask_fabric.telemetry.cluster.matrix import WORKERS_SHOWN, gather

WAITS = (0.1, 0.2, 0.3, 0.4, 0.5)


def told(process: str, *rows: tuple) -> dict:
    return {"process": process, "peers": [(*row, *WAITS) for row in rows]}


def test_the_one_who_has_connected_tells_of_both_directions():
    report = gather(
        [
            ("a", "fabric://h:1", told("p1", ("fabric://h:2", "cma", 10, 500, 0))),
            # What b has accepted has no port; it says nothing about who it is.
            ("b", "fabric://h:2", told("p2", ("fabric://h", "cma", 500, 10, 1))),
        ]
    )
    assert {key: cell.nbytes for key, cell in report.cells.items()} == {
        ("a", "b"): 10,
        ("b", "a"): 500,
    }
    assert report.cells["b", "a"].path == "cma"
    total = report.paths["cma"]
    assert (total.sent_bytes, total.received_bytes, total.fallback_count) == (510, 510, 1)
    assert total.waits["peer"] == pytest.approx(0.8)
    assert report.names == ["a", "b"] and report.silent == []


def test_the_path_of_a_pair_is_the_one_that_carried_most():
    rows = (("fabric://h:2", "stream", 10, 0, 0), ("fabric://h:2", "ucx", 1000, 0, 0))
    report = gather([("a", "fabric://h:1", told("p", *rows)), ("b", "fabric://h:2", None)])
    assert report.cells["a", "b"].path == "ucx"
    assert report.silent == ["b"]


def test_workers_of_one_process_count_once():
    row = ("fabric://h:9", "stream", 1, 1, 0)
    report = gather([("a", "fabric://h:1", told("p", row)), ("b", "fabric://h:2", told("p", row))])
    assert report.paths["stream"].sent_bytes == 1


@pytest.mark.parametrize(
    "report",
    [
        None,
        "text",
        {"peers": 5},
        {"peers": [None, (), ("a",), ("a", "b", "c", 0, 0, *WAITS)]},
        {"peers": [("a" * 5000, "cma", 1, 1, 0, *WAITS)]},
        {"peers": [("fabric://h:2", ["cma"], 1, 1, 0, *WAITS)]},
    ],
)
def test_what_no_worker_of_ours_sends_is_left_out(report):
    found = gather([("a", "fabric://h:1", report), ("b", "fabric://h:2", told("p"))])
    assert found.cells == {} and found.paths == {}


def test_of_many_workers_the_busiest_are_shown():
    count = 2 * WORKERS_SHOWN
    workers = [
        (str(i), f"fabric://h:{i}", told(str(i), (f"fabric://h:{i - 1}", "cma", i, 0, 0)))
        for i in range(1, count)
    ]
    names = gather(workers).names
    assert len(names) == WORKERS_SHOWN
    assert names == sorted(names, key=int)
    assert "126" in names and "1" not in names


def test_the_name_of_a_process_may_be_anything():
    odd = told(["p"], ("fabric://h:2", "cma", 10, 0, 0))
    report = gather([("a", "fabric://h:1", odd), ("b", "fabric://h:2", told("p2"))])
    assert report.cells["a", "b"].nbytes == 10

"""Two results against each other."""

from __future__ import annotations

import pytest

from dask_fabric.bench.compare import compare, render, warnings
from dask_fabric.bench.results import Results, Row


def results(unit: str = "GB/s", **rounds: list[float]) -> Results:
    row = Row("bandwidth", "numpy 1 MB", unit, unit.endswith("/s"), rounds=rounds)
    return Results({"cpu": "x", "date": "today"}, {}, list(rounds), [row])


def verdict(before: Results, after: Results, **options: float) -> tuple[float | None, str]:
    (one,) = compare(before, after, **options)
    return one.times_better, one.verdict


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, 1.1, 1.2], [2.2, 2.2, 2.3], "better"),
        ([2.2, 2.2, 2.3], [1.0, 1.1, 1.2], "worse"),
        ([1.0, 1.1, 1.2], [1.12, 1.12, 1.12], "within noise"),  # less than the threshold
        ([1.0, 2.0, 9.0], [1.0, 4.0, 4.5], "within noise"),  # the rounds overlap
        ([1.0], [2.0], "better"),
    ],
)
def test_verdicts(before, after, expected):
    assert verdict(results(tcp=before), results(tcp=after))[1] == expected


def test_less_is_better_for_times():
    ratio, said = verdict(results("us", tcp=[100.0]), results("us", tcp=[50.0]))
    assert (ratio, said) == (2, "better")


def test_threshold():
    pair = results(tcp=[1.0]), results(tcp=[1.2])
    assert verdict(*pair)[1] == "better"
    assert verdict(*pair, threshold=0.3)[1] == "within noise"


def test_what_only_one_has():
    before, after = results(tcp=[1.0], sockets=[3.0]), results(fabric=[2.0])
    assert [(c.column, c.verdict) for c in compare(before, after)] == [
        ("tcp", "gone"),
        ("fabric", "new"),
    ]
    after.rows[0].problems["tcp"] = "it has ended"
    assert {c.column: c.verdict for c in compare(before, after)}["tcp"] == "failed"


def matrix(there: float | None, back: float | None, trip: float | None) -> Results:
    link = {"one": "a", "other": "b", "there_gbs": there, "back_gbs": back, "round_trip_us": trip}
    return Results({}, {}, [], [], matrix={"protocol": "fabric", "links": [link]})


def test_links_of_two_matrices():
    found = compare(matrix(4.0, 4.0, 100.0), matrix(4.5, 2.0, 50.0))
    assert [(one.name, one.verdict) for one in found] == [
        ("a to b", "within noise"),  # a link is measured once: a tenth is noise
        ("b to a", "worse"),
        ("a and b", "better"),
    ]
    gone = compare(matrix(4.0, 4.0, 100.0), matrix(None, None, None))
    assert {one.verdict for one in gone} == {"failed"}
    assert "2.00" in render(found, False) and "b to a" in render(found, False)


def test_text_and_warnings():
    before, after = results(tcp=[1.0]), results(tcp=[2.0])
    assert render(compare(before, after), False).endswith("\n\n1 better")
    assert render([], False).endswith("nothing to compare")
    assert warnings(before, after) == []
    after.facts["cpu"], after.warnings = "y", ["noise"]
    assert warnings(before, after) == ["cpu: x in A, y in B", "B: noise"]

"""Rows, their JSON, and the tables."""

from __future__ import annotations

import json

import pytest

from dask_fabric.bench import results, tables
from dask_fabric.bench.results import Results, Row
from dask_fabric.errors import BenchError


def row(**rounds: list[float]) -> Row:
    return Row("bandwidth", "numpy 1 MB", "GB/s", rounds=rounds)


@pytest.fixture
def found() -> Results:
    slow = Row("pingpong", "round trip, p50", "us", False, {"tcp": [300.0], "fabric": [100.0]})
    slow.problems["ucx"] = "ucx://: it has ended"
    fast = row(tcp=[1.0, 2.0, 3.0], fabric=[4.0], sockets=[5.0], memcpy=[50.0])
    return Results({"cpu": "x"}, {"sizes": (1,)}, ["tcp", "fabric", "ucx"], [slow, fast])


@pytest.mark.parametrize("error", ["", "refused"])
def test_a_pair_that_could_not_be_measured_makes_a_result_incomplete(found, error):
    assert found.is_incomplete
    found.rows = []
    found.matrix = {"workers": [], "links": [{"error": ""}, {"error": error}]}
    assert found.is_incomplete == bool(error)


def test_median_spread_and_ratios():
    one = row(tcp=[1.0, 2.0, 3.0, 4.0, 5.0], fabric=[6.0])
    assert one.median("tcp") == 3 and one.quartiles("tcp") == (2, 4)
    assert one.spread("tcp") == pytest.approx(1 / 3)
    assert one.spread("fabric") == 0 and one.spread("ucx") is None
    assert one.times_better("fabric", "tcp") == 2
    one.higher_is_better = False
    assert one.times_better("fabric", "tcp") == 0.5
    assert one.times_better("fabric", "ucx") is None


def test_the_floor_is_the_best_between_two_processes():
    one = row(tcp=[2.0], sockets=[4.0], process_vm_readv=[8.0], memcpy=[50.0])
    assert one.floor() == "process_vm_readv" and one.part_of_floor("tcp") == 0.25
    one.higher_is_better = False
    assert one.floor() == "sockets" and one.part_of_floor("tcp") == 2
    assert row(tcp=[1.0]).part_of_floor("tcp") is None


def test_a_file_is_read_as_it_was_written(found, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(found.as_json())
    again = results.read(file)
    assert again.rows == found.rows and again.protocols == found.protocols
    assert json.loads(file.read_text())["rows"][1]["part_of_floor"]["fabric"] == 0.8


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Expecting value"),
        ("[]", "does not contain results"),
        ("{}", "it has no 'format'"),
        ('{"format": "dask-fabric-bench", "version": 99}', "its format is dask-fabric-bench 99"),
        ('{"format": "dask-fabric-bench", "version": 1, "rows": [{}]}', "it has no 'scenario'"),
    ],
)
def test_other_files_are_refused(text, complaint, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(BenchError, match=complaint):
        results.read(file)
    with pytest.raises(BenchError, match=r"cannot read .*: No such file"):
        results.read(tmp_path / "none")


def test_values_that_are_no_numbers_are_refused(found, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(found.as_json().replace("300.0", '"300"', 1))
    with pytest.raises(BenchError, match="not all values of 'round trip, p50'"):
        results.read(file)


def test_table(found):
    found.warnings.append("noise")
    lines = tables.render(found, markdown=False).splitlines()
    (ping,) = [line for line in lines if line.startswith("round trip")][:1]
    assert ping.split() == ["round", "trip,", "p50", "us", "300", "100", "3.00x", "failed"]
    (large,) = [line for line in lines if line.startswith("numpy")]
    assert large.split()[4:] == ["2", "±25%", "40%", "4", "2.00x", "80%", "5", "sockets"]
    assert "round trip, p50: ucx: ucx://: it has ended" in lines
    assert lines[-1] == "warning: noise"
    marked = tables.render(found, markdown=True).splitlines()
    assert "## pingpong" in marked
    assert any(line.startswith("| numpy 1 MB") for line in marked)


def test_noise_is_told():
    calm, wild = row(tcp=[1.0, 1.0, 1.0]), row(tcp=[1.0, 5.0, 9.0])
    assert results.noise_warnings([calm], ["tcp"]) == []
    (told,) = results.noise_warnings([calm, wild], ["tcp"])
    assert told.startswith("1 of 2 rows vary")

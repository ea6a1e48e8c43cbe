"""The gate on instructions per message; counting needs valgrind, these tests do not."""

from __future__ import annotations

import json
import shutil

import pytest
from benchmarks import instructions
from benchmarks.instructions import CountingError, Load, costs, main, read_counts

HERE = {"python": "3.11.7", "compiler": "GCC 12", "stream": "unix"}
ELSEWHERE = {**HERE, "compiler": "GCC 13"}
FIGURES = {"small message one way": 20_000.0, "round trip": 100_000.0}
BASELINE = [
    {"environment": ELSEWHERE, "figures": {"small message one way": 1, "round trip": 1}},
    {"environment": HERE, "figures": {"small message one way": 20_000, "round trip": 100_000}},
]
FEW_AND_MANY = [Load("a", 10, 30, None), Load("b", 1, 3, None)]


@pytest.fixture
def counted(monkeypatch):
    """A machine on which three runs give these figures; tests change them."""
    runs = {name: [value, value + 1, value - 1] for name, value in FIGURES.items()}
    monkeypatch.setattr(instructions, "count", lambda _: (runs, HERE))
    return runs


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(BASELINE))
    return path


def test_figures_of_the_baseline_pass(counted, baseline, capsys):
    assert main(["--baseline", str(baseline)]) == instructions.PASSED
    assert "REGRESSION" not in capsys.readouterr().out


@pytest.mark.parametrize(("times", "status"), [(1.009, 0), (1.011, 1), (0.5, 0)])
def test_what_is_above_the_baseline_fails(counted, baseline, times, status):
    counted["round trip"] = [100_000 * times]
    assert main(["--baseline", str(baseline)]) == status


def test_a_regression_is_named_with_its_size_and_the_way_out(counted, baseline, capsys):
    counted["round trip"] = [103_000.0]
    assert main(["--baseline", str(baseline)]) == instructions.WORSE
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("round trip: ")]
    assert "103,000 instructions, +3.00% against the baseline of 100,000" in line
    _, message = instructions.verdict(BASELINE, HERE, {"round trip": 103_000.0})
    assert "small message one way" not in message
    assert "make instructions RECORD=1" in message


def test_one_run_that_was_disturbed_does_not_fail(counted, baseline):
    counted["round trip"] = [100_000, 150_000, 100_001]
    assert main(["--baseline", str(baseline)]) == instructions.PASSED


def test_a_figure_without_a_baseline_fails():
    status, message = instructions.verdict(BASELINE, HERE, {**FIGURES, "new": 1.0})
    assert status == instructions.WORSE
    assert "new: not in the baseline" in message


def test_another_environment_is_no_regression(counted, baseline, capsys):
    baseline.write_text(json.dumps(BASELINE[:1]))
    assert main(["--baseline", str(baseline)]) == instructions.NO_BASELINE
    told = capsys.readouterr().out
    assert "compiler 'GCC 13', here 'GCC 12'" in told
    assert "make instructions RECORD=1" in told


def test_the_nearest_environment_is_the_one_that_is_told():
    far = {"environment": {"python": "2"}, "figures": {}}
    _, message = instructions.verdict([far, BASELINE[0]], HERE, FIGURES)
    assert "python" not in message


def test_no_baseline_at_all(counted, tmp_path):
    assert main(["--baseline", str(tmp_path / "none.json")]) == instructions.NO_BASELINE


def test_recording_replaces_this_environment_and_keeps_others(counted, baseline):
    counted["round trip"] = [110_000.4]
    assert main(["--baseline", str(baseline), "--record"]) == instructions.PASSED
    written = json.loads(baseline.read_text())
    assert written[0] == BASELINE[0]
    assert written[1]["figures"] == {"small message one way": 20_000, "round trip": 110_000}
    assert len(written) == 2
    assert main(["--baseline", str(baseline)]) == instructions.PASSED


def test_what_is_the_same_for_few_and_many_does_not_count():
    # Before the first mark; then few, many, and what lies between two rounds; b at the end.
    counts = [9_999, 150, 350, 7, 150, 350, 7, 50, 90, 7, 50, 90, 3]
    assert costs(counts, FEW_AND_MANY, rounds=2) == {"a": 10, "b": 20}


def test_the_median_of_rounds():
    counts = [0, 0, 200, 0, 0, 9_000, 0, 0, 240, 5]
    assert costs(counts, FEW_AND_MANY[:1], rounds=3) == {"a": 12}


def test_marks_of_somebody_else_are_noticed():
    with pytest.raises(CountingError, match="13 counts instead of 7"):
        costs([1] * 13, FEW_AND_MANY, rounds=1)


def test_counts_are_read_in_the_order_in_which_they_were_written(tmp_path):
    for part, total in ((2, 20), (10, 100), (1, 7)):
        text = f"# callgrind format\npart: {part}\n\nsummary: {total}\n\ntotals: {total}\n"
        (tmp_path / f"counts.{part}").write_text(text)
    (tmp_path / "counts").write_text("part: 11\ntotals: 3\n")
    (tmp_path / "other").write_text("part: 12\ntotals: 4\n")
    assert read_counts(tmp_path) == [7, 20, 100, 3]


def test_without_valgrind_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main([]) == instructions.NOT_COUNTED
    assert "valgrind is not installed" in capsys.readouterr().err


def test_the_committed_baseline_is_complete():
    recorded = json.loads(instructions.BASELINE.read_text())
    names = {load.name for load in instructions.LOADS}
    assert recorded
    assert all(entry["figures"].keys() == names for entry in recorded)

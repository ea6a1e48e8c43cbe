"""Rounds in which all sites take turns."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from dask_fabric.bench.figures import SCENARIOS, Extent, Figure, figures, size_name
from dask_fabric.bench.progress import progress
from dask_fabric.bench.rounds import Effort, measure
from dask_fabric.errors import PairError

EFFORT = Effort(rounds=3, round_seconds=0.1)


class Site:
    """Takes a known time for each repetition, and records the requests."""

    pids = ()

    def __init__(self, name: str, asked: list, seconds: float = 0.01) -> None:
        self.name, self._asked, self._seconds = name, asked, seconds
        self.fails_after = float("inf")

    def can(self, verb: str, arguments: dict) -> bool:
        return True

    def ask(self, verb: str, hog: tuple[bool, bool], **arguments) -> dict:
        self._asked.append((self.name, verb, arguments, hog))
        if len(self._asked) > self.fails_after:
            raise PairError(f"{self.name} has ended")
        quantiles = dict.fromkeys(("p50", "p90", "p99"), self._seconds)
        seconds = self._seconds * arguments.get("count", 1)
        return {"seconds": seconds, "quantiles": quantiles, "histogram": {"8": 2}}


def run(figure: Figure, *sites: Site):
    return measure(figure, sites, EFFORT, lambda steps, text=None: None)


def test_sites_take_turns_and_the_order_moves_on():
    asked = []
    (row,) = run(Figure("stream", "x", "1/s", "flood"), Site("a", asked), Site("b", asked))
    order = [name for name, _, arguments, _ in asked if arguments["count"] == 10]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert row.rounds == {"a": [pytest.approx(100)] * 3, "b": [pytest.approx(100)] * 3}
    assert row.higher_is_better


def test_quantiles_have_a_row_each_and_the_first_the_histogram():
    (ping,) = figures(["pingpong"], Extent((1,)))
    rows = run(ping, Site("a", []))
    assert [row.name.split(", ")[1] for row in rows] == ["p50", "p90", "p99"]
    assert rows[0].histograms == {"a": {"8": 6}} and rows[1].histograms == {}
    assert rows[2].rounds["a"] == [pytest.approx(10_000)] * 3 and not rows[2].higher_is_better


def test_hogs_are_asked_for():
    asked = []
    for figure in figures(["gil"], Extent((1,))):
        run(figure, Site(figure.name, asked))
    hogs = {name: hog for name, _, _, hog in asked}
    assert hogs["round trip, idle"] == (False, False)
    assert hogs["round trip, busy sender"] == (True, False)
    assert hogs["numpy 1 B, busy receiver"] == (False, True)


@pytest.mark.parametrize("when", [0, 4])
def test_a_site_that_fails_is_left_out_and_its_row_tells_why(when):
    failing, other = Site("a", []), Site("b", [])
    failing.fails_after = when
    (row,) = run(Figure("stream", "x", "1/s", "flood"), failing, other)
    assert row.problems == {"a": "a has ended"} and list(row.rounds) == ["b"]
    assert len(row.rounds["b"]) == 3


def test_units():
    figure = Figure("bandwidth", "x", "GB/s", "send", {"nbytes": 10**9}, 10**9)
    assert figure.values({"seconds": 2}, 4) == [2]
    assert Figure("cpu", "x", "s/GB", "cpu", {}, 10**9).values({"seconds": 2}, 4) == [0.5]
    assert Figure("x", "x", "us", "ping").values({"seconds": 2}, 4) == [500_000]


def test_bandwidth_has_a_row_for_each_size_way_and_number_of_comms():
    extent = Extent((1000, 10**9), comms=(1, 4))
    found = {one.name: one for one in figures(["bandwidth"], extent)}
    assert len(found) == 8
    both = found["numpy 1 GB, both ways, 4 at a time"]
    assert both.moved_bytes == 8 * 10**9 and both.arguments == {"nbytes": 10**9, "comms": 4}


def test_identities_are_unique():
    found = figures(SCENARIOS, Extent((1000, 10**6), comms=(1, 2)))
    rows = [(row.scenario, row.name) for figure in found for row in figure.rows()]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("size", "name"), [(1, "1 B"), (1000, "1 kB"), (64000, "64 kB"), (2_500_000_000, "2.5 GB")]
)
def test_size_names(size, name):
    assert size_name(size) == name


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds, to be set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        "dask_fabric.bench.progress.time", SimpleNamespace(monotonic=lambda: clock.now)
    )
    return clock


def test_progress_is_a_line_every_minute_in_a_pipe(clock):
    stream = io.StringIO()
    with progress(400, stream) as advance:
        for clock.now in range(0, 200, 10):
            advance(0, f"round {clock.now}")
            advance(2)
    assert stream.getvalue().splitlines() == [
        "12 of 400 done, now round 60",
        "24 of 400 done, now round 120",
        "36 of 400 done, now round 180",
    ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with progress(2, stream) as advance:
        advance(0, "half" * 20)
        advance(1)
    lines = [line.rpartition("\x1b[?25l")[2] for line in stream.getvalue().split("\r")]
    assert all(len(line) < 80 for line in lines)
    assert "0/2" in lines[2] and "halfhalf" in lines[2]
    assert "[##########----------]  1/2" in lines[3]

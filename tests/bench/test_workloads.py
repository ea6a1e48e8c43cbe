"""Workloads on small clusters: that they run, and that a wrong result is found."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from distributed import Client, secede

from dask_fabric.bench import workloads
from dask_fabric.bench.pairs import Protocol, Surroundings
from dask_fabric.bench.work import arrays, frames, tasks
from dask_fabric.bench.work.catalogue import WORKLOADS
from dask_fabric.bench.work.extent import Extent
from dask_fabric.bench.workloads import Work
from dask_fabric.errors import PairError

from ..conftest import NO_DASHBOARD_OPTIONS

SMALL = Extent(
    size=200,
    chunk_size=50,
    partitions=3,
    partition_rows=200,
    task_count=20,
    fetch_bytes=10_000,
    busy_fetch_bytes=10_000,
)


@pytest.fixture(scope="module")
def client(local_cluster):
    with Client(local_cluster("tcp", 2)) as client:
        yield client


def compute_gently(marker):
    """Replaces a task of pure Python: workers in this process share its GIL."""
    secede()
    while os.path.exists(marker):
        time.sleep(0.001)


@pytest.mark.filterwarnings("ignore")  # Dask's of shuffling within one process
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload(client, name, monkeypatch):
    monkeypatch.setattr(arrays, "_compute", compute_gently)
    run = WORKLOADS[name].prepare(client, SMALL)
    for _ in range(2):
        outcome = run()
        assert outcome.right
        assert outcome.value > 0 or name == "fanout"  # 10 kB may lie in memory that is there


def shifted(row, column):
    return row + column + 1.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "module", "function", "wrong"),
    [
        ("transpose-sum", arrays, "_element", shifted),
        ("rechunk", arrays, "_element", shifted),
        ("fetch", arrays, "_sum", len),
        ("broadcast", arrays, "_sum", len),
        ("fanout", arrays, "_sum", len),
        ("tasks", tasks, "_increment", abs),
        ("shuffle", frames, "_count", None),
        ("merge", frames, "_count", None),
    ],
)
def test_a_wrong_result_is_found(client, monkeypatch, name, module, function, wrong):
    if wrong is None:  # a row gets lost
        count, wrong = frames._count, lambda frame: count(frame.iloc[1:])
        run = WORKLOADS[name].prepare(client, SMALL)
        monkeypatch.setattr(module, function, wrong)
    else:
        monkeypatch.setattr(module, function, wrong)
        run = WORKLOADS[name].prepare(client, SMALL)
    assert not run().right


PROTOCOLS = [Protocol("tcp", "tcp"), Protocol("none", "none"), Protocol("fabric", "fabric")]


def measure(names: list[str], work: Work, protocols: list[Protocol]):
    return workloads.measure(names, work, protocols, Surroundings(), io.StringIO())


@pytest.mark.slow
def test_clusters_of_their_own_and_a_report(tmp_path):
    work = Work(runs=2, rounds=1, profile=str(tmp_path / "report.html"), extent=SMALL)
    rows, warnings = measure(["rechunk", "shuffle"], work, PROTOCOLS)
    assert [row.name for row in rows] == [
        "blocks to columns, all to all, 200 x 200 in chunks of 50",
        "dataframe shuffled by a key, 3 x 200 rows",
    ]
    for row in rows:
        assert {name: len(values) for name, values in row.rounds.items()} == {"tcp": 2, "fabric": 2}
        assert row.problems == {}
    assert len(warnings) == 1 and warnings[0].startswith("left out: none")
    assert {path.name for path in tmp_path.iterdir()} == {"report-tcp.html", "report-fabric.html"}


def test_every_round_has_new_clusters_in_another_order(monkeypatch):
    started = []

    class Answering:
        """In the place of the program: tells which of all this is, as the time of each run."""

        def __init__(self, name: str, command: list, config: dict, environment: dict) -> None:
            started.append((name, config["profile"]))
            self._answers = iter([name, *[{"values": [len(started)] * 2}] * 2, "written"])

        def read(self, patience_seconds: float) -> object:
            if started[-1][0] == "none":
                raise PairError("none: it ended")
            return next(self._answers)

        def end(self) -> None:
            pass

    monkeypatch.setattr(workloads, "Program", Answering)
    work = Work(runs=2, rounds=2, profile="/r.html", extent=SMALL)
    rows, warnings = measure(["tasks", "fetch"], work, PROTOCOLS)
    assert started == [
        ("tcp", None),
        ("none", None),
        ("fabric", None),
        ("fabric", "/r-fabric.html"),
        ("tcp", "/r-tcp.html"),
    ]
    assert [row.name for row in rows] == ["20 tiny tasks", "fetch of 10 kB, worker to worker"]
    assert all(row.rounds == {"tcp": [1, 1, 5, 5], "fabric": [3, 3, 4, 4]} for row in rows)
    assert warnings == ["left out: none: it ended"]


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("tasks", "4,000 tiny tasks"),
        ("fetch", "fetch of 400 MB, worker to worker"),
        ("busy-fetch", "fetch of 100 MB, both workers busy"),
        ("transpose-sum", "(x + x.T).sum(), 8000 x 8000 in chunks of 1000"),
        ("broadcast", "400 MB from one worker to all others"),
        ("fanout", "memory of all workers that have the same 400 MB"),
        ("merge", "two dataframes merged by a key, 16 x 100,000 rows"),
    ],
)
def test_rows_are_named_as_before(name, about):
    """Results of other versions are compared by these names."""
    ((row,), _) = measure([name], Work(rounds=0), PROTOCOLS)
    assert row.name == about


@pytest.mark.slow
def test_what_cannot_run_says_why():
    work = Work(runs=1, rounds=1, extent=Extent(size=10, chunk_size=5, kind="gpu"))
    rows, _ = measure(["transpose-sum"], work, [Protocol("tcp", "tcp")])
    if not rows[0].rounds:  # no cupy, or no GPU
        assert (
            "cupy" in rows[0].problems["tcp"].lower() or "cuda" in rows[0].problems["tcp"].lower()
        )


def test_a_cluster_that_is_there(local_cluster):
    where = {"address": local_cluster("fabric", 2).scheduler_address, "scheduler_file": None}
    work = Work(runs=1, extent=SMALL)
    (row,) = workloads.measure_on(where, ["tasks"], work, Surroundings(), io.StringIO())
    assert len(row.rounds["fabric"]) == 1


@pytest.fixture
def bare_cluster(tmp_path):
    """The file of a scheduler whose processes, and those of its two workers, lack this package."""
    path = tmp_path / "scheduler.json"
    boot = (
        "import sys; sys.modules['dask_fabric'] = None; from distributed.cli import {0}; {0}.main()"
    )
    ends = ("--host", "127.0.0.1", "--scheduler-file", str(path))
    commands = [("dask_scheduler", "--port", "0", *NO_DASHBOARD_OPTIONS)]
    commands += [("dask_worker", "--no-nanny", "--nthreads", "1", "--no-dashboard")] * 2
    with contextlib.ExitStack() as stack:
        for program, *options in commands:
            command = [sys.executable, "-c", boot.format(program), *options, *ends]
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            stack.callback(process.terminate)
        with Client(scheduler_file=str(path), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield str(path)


@pytest.mark.slow
def test_a_cluster_that_lacks_this_package(bare_cluster):
    names = ["tasks", "busy-fetch", "transpose-sum", "shuffle"]
    where = {"address": None, "scheduler_file": bare_cluster}
    rows = workloads.measure_on(
        where, names, Work(runs=1, extent=SMALL), Surroundings(), io.StringIO()
    )
    assert [row.problems for row in rows] == [{}] * len(names)
    assert all(len(row.rounds["tcp"]) == 1 for row in rows)


def test_the_memory_of_a_fanout_is_that_of_every_worker(client):
    extent = replace(SMALL, fetch_bytes=100_000_000)  # not of the heap
    outcome = WORKLOADS["fanout"].prepare(client, extent)()
    count = len(client.scheduler_info()["workers"])
    assert outcome.right
    assert outcome.value > 100 * count * 0.9

"""Short measurements between real processes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import threading
import types

import numpy as np
import pytest
from distributed import Client
from distributed.comm import listen

from dask_fabric.bench import cluster, floors, pairs, suite
from dask_fabric.bench.agent import Arrays, Asker, Hog, Responder
from dask_fabric.bench.figures import Extent
from dask_fabric.bench.pairs import Pair, Protocol, Surroundings
from dask_fabric.bench.rounds import Effort
from dask_fabric.errors import BenchError, PairError

SIZES = (1000, 1_000_000)
VERBS = (
    ("ping", {"count": 3}),
    ("flood", {"count": 3}),
    ("send", {"count": 2, "nbytes": 1_000_000, "comms": 2}),
    ("exchange", {"count": 2, "nbytes": 1000}),
    ("fetch", {"count": 2, "nbytes": 1000}),
    ("cpu", {"count": 2, "nbytes": 1_000_000}),
    ("connects", {"count": 5, "at_once": 3}),
)


@pytest.fixture
def pair():
    """A function that starts a pair of processes, which end with the test."""
    opened = []

    def pair(scheme: str, **around) -> Pair:
        opened.append(Pair(Protocol(scheme, scheme), Surroundings(**around)))
        return opened[-1]

    yield pair
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    "scheme",
    ["fabric", *(pytest.param(one, marks=pytest.mark.slow) for one in ("tcp", "fabric+tls"))],
)
def test_every_verb_of_a_pair(pair, scheme):
    security = pairs.temporary_security() if scheme.endswith("tls") else None
    one = pair(scheme, security=security)
    for verb, arguments in VERBS:
        assert one.ask(verb, **arguments)["seconds"] >= 0
    told = one.ask("ping", count=20)
    assert sum(told["histogram"].values()) == 20
    assert told["quantiles"]["p50"] <= told["quantiles"]["p90"] <= told["quantiles"]["p99"]
    assert one.ask("arrives", nbytes=1_000_000) == {"same": True}
    assert one.ask("memory")["memory_bytes"][0] > 10_000_000
    assert one.ask("paths")["encrypted"] is (scheme == "fabric+tls")


@pytest.mark.parametrize("hog", [(False, False), (True, False), (False, True), (True, True)])
async def test_hogs_run_for_the_time_of_a_verb(hog, monkeypatch):
    """A pair with both sides in this process, where their threads can be counted."""
    before = set(threading.enumerate())

    async def count(asker: Asker) -> int:
        return sum(thread not in before for thread in threading.enumerate())

    monkeypatch.setattr(Asker, "count", count, raising=False)
    async with contextlib.AsyncExitStack() as stack:
        served = listen("tcp://127.0.0.1:0", lambda comm: Responder(comm, Arrays()).run())
        listener = await stack.enter_async_context(served)
        asker = await stack.enter_async_context(Asker(listener.contact_address, {}))
        assert await asker.do("count", {}, hog) == sum(hog)
        assert await asker.do("count", {}) == 0


def test_a_hog_ends():
    before = set(threading.enumerate())
    hog = Hog()
    for on in (True, True, False, False):
        hog.set(on)
        assert len(set(threading.enumerate()) - before) == on


@pytest.mark.parametrize("scheme", ["none", "fabric+tls"])
def test_a_scheme_that_does_not_work_tells_why(pair, scheme):
    with pytest.raises(PairError, match=f"none://: ValueError: unknown|{scheme[:6]}.*TLS"):
        pair(scheme)


def test_a_pair_that_is_killed(pair):
    one = pair("tcp")
    os.kill(one.pids[1], 9)
    with pytest.raises(PairError, match=r"tcp://: .*Closed"):
        one.ask("ping", count=1)


def test_a_pair_that_does_not_answer(pair, monkeypatch):
    monkeypatch.setattr(pairs, "ANSWER_SECONDS", 0.5)
    one = pair("tcp")
    with pytest.raises(PairError, match=r"no answer within 0\.5 seconds"):
        one.ask("ping", count=10**7)


def test_a_gpu_that_is_not_there(pair):
    if importlib.util.find_spec("cupy"):
        pytest.skip("CuPy is here")
    with pytest.raises(PairError, match="tcp://: ModuleNotFoundError: No module named 'cupy'"):
        pair("tcp", module="cupy")


def test_another_python_needs_nothing_of_this_package(tmp_path):
    """A pair whose interpreter finds distributed, but not dask_fabric."""
    script = tmp_path / "python"
    code = "import sys; sys.modules['dask_fabric'] = None; "
    script.write_text(
        f'#!/bin/sh\nshift\nboot="$1"\nshift\nexec "{sys.executable}" -c "{code}$boot" "$@"\n'
    )
    script.chmod(0o755)
    one = Pair(Protocol("other", "tcp", str(script)), Surroundings())
    try:
        assert one.ask("ping", count=1)["seconds"] > 0
    finally:
        one.close()


def test_floors():
    opened = [floors.Sockets(), floors.MemoryCopies(1_000_000), floors.Mappings(1_000_000)]
    try:
        try:
            opened.append(floors.RemoteReads(1_000_000))
        except PairError as exc:
            assert "not allowed" in str(exc)
        for verb, arguments in VERBS:
            for floor in opened:
                if floor.can(verb, arguments):
                    assert floor.ask(verb, **arguments)["seconds"] >= 0
            assert opened[0].can(verb, arguments)
    finally:
        for floor in opened:
            floor.close()


def run(*scenarios: str, protocols: tuple[str, ...] = ("tcp", "fabric"), **options):
    plan = suite.Plan(
        scenarios=scenarios,
        protocols=tuple(Protocol(name, name) for name in protocols),
        extent=options.pop("extent", Extent(SIZES, ("one",))),
        effort=Effort(rounds=2, round_seconds=0.02),
        awake=False,
        **options,
    )
    return suite.run(plan, {}, io.StringIO())


@pytest.mark.slow
def test_a_run():
    results = run("pingpong", "bandwidth", "memory", message_count=10)
    columns = {row.name: set(row.rounds) for row in results.rows}
    assert results.protocols == ["tcp", "fabric"]
    assert {"tcp", "fabric", "sockets"} <= columns["round trip of a tiny message, p50"]
    assert {"tcp", "fabric", "sockets", "memcpy"} <= columns["numpy 1 MB, acknowledged"]
    assert "memcpy" not in columns["numpy 1 kB, acknowledged"]
    assert columns["its peak after 10 x 1 MB"] == {"tcp", "fabric"}
    assert all(len(values) == 2 for row in results.rows[:5] for values in row.rounds.values())
    assert min(values_of(results)) > 0


def values_of(results) -> list[float]:
    return [value for row in results.rows for found in row.rounds.values() for value in found]


@pytest.mark.slow
def test_a_run_beside_busy_threads():
    """Of one protocol: chunks that wait for the GIL take their time."""
    results = run("gil", protocols=("fabric",))
    assert len(results.rows) == 6
    assert all({"fabric", "sockets"} <= set(row.rounds) for row in results.rows)
    assert all(len(values) == 2 for row in results.rows for values in row.rounds.values())
    assert min(values_of(results)) > 0


@pytest.mark.slow
def test_arrays_that_arrive_otherwise_end_the_run(monkeypatch):
    ask = Pair.ask

    def garbled(pair, verb, hog, **arguments):
        told = ask(pair, verb, hog, **arguments)
        return {"same": False} if verb == "arrives" and pair.name == "fabric" else told

    monkeypatch.setattr(Pair, "ask", garbled)
    with pytest.raises(BenchError, match="fabric://: 1 kB did not arrive as sent"):
        run("bandwidth", has_floors=False)


@pytest.mark.slow
def test_a_protocol_that_cannot_send_arrays_is_left_out(monkeypatch):
    ask = Pair.ask

    def failing(pair, verb, hog, **arguments):
        if verb == "arrives" and pair.name == "fabric":
            raise PairError("fabric://: it broke")
        return ask(pair, verb, hog, **arguments)

    monkeypatch.setattr(Pair, "ask", failing)
    results = run("bandwidth", has_floors=False)
    assert "left out: fabric://: it broke" in results.warnings
    assert all(set(row.rounds) == {"tcp"} for row in results.rows)


def test_floors_alone_need_no_protocol():
    rows = run("floor", protocols=("none",)).rows
    assert {row.scenario for row in rows} == {"floor"}
    assert all("none" not in row.rounds and "sockets" in row.rounds for row in rows)


@pytest.mark.slow
def test_what_does_not_work_is_left_out_unless_it_is_all():
    results = run("stream", protocols=("none", "tcp"), has_floors=False)
    assert set(results.rows[0].rounds) == {"tcp"}
    assert results.warnings[0].startswith("left out: none://: ValueError: unknown address scheme")
    with pytest.raises(BenchError, match="unknown address scheme"):
        run("stream", protocols=("none",), has_floors=False)


@pytest.fixture(scope="module")
def local(local_cluster):
    return local_cluster("fabric", 3)


class TestOnACluster:
    @pytest.fixture
    def where(self, local) -> dict:
        return {"address": local.scheduler_address, "scheduler_file": None}

    def test_two_workers_measure_by_the_protocol_of_the_cluster(self, local, where):
        names = [str(name) for name in local.workers]
        results = run("pingpong", "bandwidth", where=where, between=(names[2], names[0]))
        assert results.protocols == ["fabric"]
        assert results.options["between"] == [names[2], names[0]]
        assert all(set(row.rounds) == {"fabric"} and not row.problems for row in results.rows)

    def test_a_worker_measures_beside_a_busy_thread(self, local):
        """One round trip: these workers share their GIL, and Dask's monitors need it often."""
        with Client(local) as client, cluster.prepared(client) as found:
            pair = cluster.WorkerPair(found, found.workers[0], found.workers[1])
            assert pair.ask("ping", (True, True), count=1)["seconds"] > 0

    def test_arrays_are_of_the_module_that_the_figure_names(self, where, monkeypatch):
        used = []
        fake = types.ModuleType("not_numpy")
        fake.__getattr__ = lambda name: used.append(name) or getattr(np, name)
        monkeypatch.setitem(sys.modules, "not_numpy", fake)
        extent = Extent((1000,), ("one",), module="not_numpy")
        (row,) = run("bandwidth", where=where, extent=extent).rows
        assert row.name == "not_numpy 1 kB, acknowledged" and row.rounds
        assert "arange" in used

    def test_a_module_that_workers_lack(self, where):
        with pytest.raises(BenchError, match="cannot measure: No module named 'no_such'"):
            run("bandwidth", where=where, extent=Extent((1000,), module="no_such"))

    def test_a_worker_that_is_none(self, where):
        with pytest.raises(BenchError, match="0 workers are called 'nobody'; there are 0, 1, 2"):
            run("pingpong", where=where, between=("0", "nobody"))

    @pytest.mark.parametrize("scenario", ["floor", "memory"])
    def test_what_is_of_one_host(self, scenario, where):
        with pytest.raises(BenchError, match=f"{scenario} is measured on one host"):
            run(scenario, where=where)

    def test_a_worker_that_fails(self, where, monkeypatch):
        monkeypatch.setattr(Asker, "flood", None)
        (row,) = run("stream", where=where).rows
        assert row.rounds == {} and "worker 0 to worker 1: " in row.problems["fabric"]


def test_a_matrix_needs_a_cluster():
    with pytest.raises(BenchError, match="give its --scheduler"):
        run("matrix")

"""All pairs of workers: their order, the measurements, and the findings."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from benchmarks.networks import cap_flows, cap_link
from distributed import Client

from dask_fabric.bench import matrix, tables
from dask_fabric.bench.cluster import Cluster, Worker, connected, prepared
from dask_fabric.bench.diagnosis import Link, better_of, diagnose, suspects
from dask_fabric.bench.results import Results
from dask_fabric.bench.tournament import rounds, tournament
from dask_fabric.bench.workers import OPERATION
from dask_fabric.errors import BenchError

from ..conftest import lab

SHORT = matrix.Effort(nbytes=1_000_000, round_trip_count=5, seconds=0.01, patience_seconds=20)


@pytest.mark.parametrize("count", range(2, 10))
def test_everybody_meets_everybody_in_as_few_rounds_as_can_be(count):
    players = [str(number) for number in range(count)]
    found = tournament(players)
    assert len(found) == count - 1 + count % 2
    met = [frozenset(pair) for pairing in found for pair in pairing]
    assert sorted(map(sorted, met)) == sorted(map(list, itertools.combinations(players, 2)))
    for pairing in found:
        playing = [player for pair in pairing for player in pair]
        assert len(set(playing)) == len(playing)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3,), (2, 3, 1), (4, 4)])
def test_no_host_takes_part_twice_in_a_round(sizes):
    hosts = {f"h{i}": [f"h{i}.{j}" for j in range(size)] for i, size in enumerate(sizes)}
    found = rounds(hosts)
    met = [frozenset(pair) for pairing in found for pair in pairing]
    workers = [worker for there in hosts.values() for worker in there]
    assert len(met) == len(set(met)) == len(list(itertools.combinations(workers, 2)))
    for pairing in found:
        assert pairing
        used = [host for pair in pairing for host in {worker.split(".")[0] for worker in pair}]
        assert len(set(used)) == len(used)


def cluster(*hosts: int) -> list[Worker]:
    """So many workers on each host."""
    return [
        Worker(f"{host}{letter}", f"tcp://10.0.0.{host}:{ord(letter)}", f"n{host}", f"n{host}")
        for host, count in enumerate(hosts)
        for letter in "abcd"[:count]
    ]


def links(workers: list[Worker], *odd: Link) -> list[Link]:
    """Good links between all pairs, except the given ones."""
    other_way = {(link.one, link.other): link for link in odd}
    good = {"path": "ucx", "round_trip_us": 20.0, "there_gbs": 10.0, "back_gbs": 9.0}
    return [
        other_way.get((a.name, b.name)) or Link(a.name, b.name, **good)
        for a, b in itertools.combinations(workers, 2)
    ]


def slow(one: str, other: str, there: float = 1.0, back: float = 1.0, trip: float = 20.0) -> Link:
    return Link(one, other, "ucx", {}, trip, there, back)


def test_nothing_odd():
    workers = cluster(1, 1, 1, 1)
    assert diagnose(workers, links(workers)) == []


def test_a_slow_link_is_named_with_its_direction():
    workers = cluster(1, 1, 1)
    (said,) = diagnose(workers, links(workers, slow("0a", "1a")))
    assert said == ("slow link: worker 0a and worker 1a, 1 GB/s; the better links have 9.75 GB/s")
    (said,) = diagnose(workers, links(workers, slow("0a", "1a", back=9.0)))
    assert said.startswith("slow link: worker 0a to worker 1a, 1 GB/s")
    (said,) = diagnose(workers, links(workers, slow("0a", "1a", there=10.0)))
    assert said.startswith("slow link: worker 1a to worker 0a, 1 GB/s")


@pytest.mark.parametrize("count", [3, 6])
def test_a_slow_node_is_named_once(count):
    workers = cluster(*[1] * count)
    odd = [slow("0a", worker.name) for worker in workers[1:]]
    (said,) = diagnose(workers, links(workers, *odd))
    assert said.startswith("slow node: worker 0a, 1 GB/s to all; ")


def test_a_late_link():
    workers = cluster(1, 1, 1)
    (said,) = diagnose(workers, links(workers, slow("0a", "1a", 10.0, 9.0, trip=5000.0)))
    assert said == "late link: worker 0a and worker 1a, 5,000 us; the better links have 20 us"


def test_what_all_workers_of_a_host_have_is_said_of_the_host():
    workers = cluster(2, 2, 1)
    odd = [slow(a, b) for a in ("0a", "0b") for b in ("1a", "1b")]
    (said,) = diagnose(workers, links(workers, *odd))
    assert said.startswith("slow link: host n0 (workers 0a, 0b) and host n1 (workers 1a, 1b), 1 ")
    odd = [slow("0a", worker.name) for worker in workers[2:]]
    (said,) = diagnose(workers, links(workers, *odd))
    assert said.startswith("slow node: worker 0a, 1 GB/s to all")


def test_links_within_a_host_are_held_against_their_own_kind():
    workers = cluster(2, 2)
    within = [slow("0a", "0b", 50.0, 50.0), slow("1a", "1b", 50.0, 50.0)]
    assert diagnose(workers, links(workers, *within)) == []
    within[0] = slow("0a", "0b", 9.0, 9.0)
    (said,) = diagnose(workers, links(workers, *within))
    assert said.startswith("slow link: worker 0a and worker 0b, 9 GB/s")


def test_a_worker_with_a_path_of_its_own_is_named_with_the_reason():
    workers = cluster(1, 1, 1, 1)
    refused = {"ucx": "no UCX found"}
    odd = [Link(w.name, "3a", "tcp", refused, 20.0, 10.0, 9.0) for w in workers[:3]]
    expected = ["worker 3a uses TCP to all others: no UCX found"]
    assert diagnose(workers, links(workers, *odd)) == expected
    assert diagnose(workers, links(workers, odd[0])) == [
        "worker 0a and worker 3a use TCP, most others UCX: no UCX found"
    ]


def test_links_that_cannot_be_measured():
    workers = cluster(1, 1, 1)
    broken = [Link("0a", name, error="timed out") for name in ("1a", "2a")]
    assert diagnose(workers, links(workers, broken[0])) == [
        "worker 0a to worker 1a could not be measured: timed out"
    ]
    assert diagnose(workers, links(workers, *broken)) == [
        "worker 0a could not be measured with any other: timed out"
    ]


def test_what_seems_slow_or_broken_is_suspect_and_the_better_of_two_counts():
    workers = cluster(1, 1, 1, 1)
    place = {worker.name: worker.place for worker in workers}
    bad, late = slow("0a", "1a"), slow("1a", "2a", 10.0, 9.0, trip=5000.0)
    gone = Link("2a", "3a", error="timed out")
    found = links(workers, bad, late, gone)
    assert suspects(found, place) == [gone, bad, late]
    assert suspects(links(workers), place) == []
    good = slow("0a", "1a", 10.0, 0.5, trip=30.0)
    assert better_of(bad, good) == slow("0a", "1a", 10.0, 1.0, trip=20.0)
    assert better_of(gone, good) == better_of(good, gone) == good


def test_pairs_whose_flow_is_capped_are_named():
    workers = cluster(1, 1, 1)
    capped = dataclasses.replace(slow("0a", "1a", 10.0, 9.0), flows=[(1, 0.05), (2, 0.1), (4, 0.2)])
    alone = dataclasses.replace(slow("1a", "2a", 10.0, 9.0), flows=[(1, 5.0), (2, 7.0)])
    assert diagnose(workers, links(workers, capped, alone)) == [
        "capped flow: worker 0a and worker 1a, one connection moves 0.05 GB/s, 4 together 0.2 GB/s"
    ]
    each = [
        dataclasses.replace(link, flows=[(1, 0.5), (number, 0.5 * number)])
        for number, link in zip((2, 8, 4), links(workers), strict=True)
    ]
    assert diagnose(workers, each) == [
        "capped flow: all pairs of workers between hosts, one connection moves 0.5 GB/s, several "
        "together 2 GB/s"
    ]


def test_a_pair_of_two_schemes_has_the_flows_of_the_one_that_knows():
    """A comm of tcp:// has no lanes."""
    here, there = (Worker(name, f"{name}://a", "", name) for name in ("tcp", "fabric"))
    flows = {"rates": [(1, 5e7), (2, 1e8)], "is_settled": True}
    figures = {
        "round_trip_seconds": 1.0,
        "there_bytes_per_second": 1e8,
        "back_bytes_per_second": 1e8,
    }

    class Client:
        def run(self, function, partners, *arguments, **options):
            more = {"tcp://a": {}, "fabric://a": {"path": "lanes", "flows": flows}}
            return {one: {**figures, **more[other]} for one, other in partners.items()}

    for workers in ([here, there], [there, here]):
        told = matrix.measure(Cluster(Client(), workers), SHORT, io.StringIO())
        assert any(said.startswith("capped flow: ") for said in told["findings"])


def handlers(dask_worker) -> bool:
    return "dask-fabric-bench" in dask_worker.handlers


@pytest.mark.parametrize("scheme", ["tcp", "fabric"])
def test_a_real_cluster(scheme, local_cluster):
    assert OPERATION == "dask-fabric-bench"
    with connected({"address": local_cluster(scheme, 3).scheduler_address}) as client:
        with prepared(client) as found:
            assert all(client.run(handlers).values())
            told = matrix.measure(found, SHORT, io.StringIO())
        assert not any(client.run(handlers).values())
    assert told["protocol"] == scheme
    json.dumps(told)
    grids = matrix.grids(told)
    for i, j in itertools.permutations(range(3), 2):
        assert grids["bandwidth"][i][j] > 0 and grids["round trip"][i][j] > 0
        assert grids["path"][i][j] == {"tcp": "tcp", "fabric": grids["path"][j][i]}[scheme]
    assert grids["bandwidth"][0][0] is None
    text = tables.render(Results({}, {}, [scheme], matrix=told), markdown=False)
    assert "bandwidth, GB/s, from row to column" in text


def test_each_way_goes_by_the_scheme_of_the_worker_that_has_the_data(local_cluster):
    cluster = local_cluster("tcp", 1)
    command = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address]
    options = ["--protocol", "fabric", "--no-nanny", "--no-dashboard", "--name", "ours"]
    with subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) as process:
        try:
            with connected({"address": cluster.scheduler_address}) as client:
                client.wait_for_workers(2, timeout=60)
                with prepared(client) as found:
                    told = matrix.measure(found, SHORT, io.StringIO())
        finally:
            process.terminate()
    names, paths = matrix.worker_names(told), matrix.grids(told)["path"]
    ours = names.index("ours")
    assert paths[1 - ours][ours] == "tcp" and paths[ours][1 - ours] != "tcp"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("fabric://127.0.0.1:1", r".*refused"),
        ("nowhere", "missing port number"),
        ("none://127.0.0.1:1", "unknown address scheme"),
    ],
)
def test_there_must_be_a_scheduler(address, reason, monkeypatch):
    monkeypatch.setattr("dask_fabric.bench.cluster._CONNECT_SECONDS", 1)
    expected = pytest.raises(BenchError, match=f"no scheduler at {address}: {reason}")
    with expected, connected({"address": address}):
        pass


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_file_that_no_scheduler_wrote(text, tmp_path):
    path = tmp_path / "file"
    path.write_text(text)
    expected = pytest.raises(BenchError, match="is not a file that a scheduler wrote")
    with expected, connected({"scheduler_file": str(path)}):
        pass


def test_there_must_be_two_workers(local_cluster):
    with Client(local_cluster("tcp", 1), set_as_default=False) as client:
        expected = pytest.raises(BenchError, match="there is 1")
        with expected, prepared(client):
            pass


@contextlib.contextmanager
def workers_on(hosts: list[str], scheme: str, folder) -> Iterator[list[str]]:
    """Run a scheduler and a worker on each host; give what starts commands on the first one."""
    address = f"{scheme}://10.99.0.1:8786"
    dask = [sys.executable, "-m", "dask"]
    inside = ["ip", "netns", "exec", hosts[0]]
    with contextlib.ExitStack() as stack:

        def start(number: int, *arguments: str) -> None:
            log = stack.enter_context((folder / f"{arguments[0]}{number}.log").open("w"))
            command = ["ip", "netns", "exec", hosts[number - 1], *dask, *arguments,
                       "--host", f"10.99.0.{number}", "--no-dashboard"]  # fmt: skip
            process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(process.kill)

        start(1, "scheduler", "--protocol", scheme)
        for number in range(1, len(hosts) + 1):
            start(number, "worker", address, "--name", str(number), "--no-nanny", "--nthreads", "1")
        wait = "import sys; from distributed import Client as C; C(sys.argv[1]).wait_for_workers("
        command = [*inside, sys.executable, "-c", f"{wait}{len(hosts)})", address]
        subprocess.run(command, check=True, timeout=60)
        yield [*inside, *dask, "fabric", "bench", "matrix", "--scheduler", address, "--json", "-"]


def matrix_of(command: list[str]) -> dict:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90)
    return json.loads(done.stdout)["matrix"]


@pytest.mark.netns
@pytest.mark.parametrize("scheme", ["tcp", "fabric+tcp"])
@pytest.mark.slow
def test_a_link_of_a_tenth_is_named(scheme, triangle, tmp_path):
    hosts, devices = triangle
    with lab():
        for (here, there), device in devices.items():
            cap_link(here, device, 40 if {here, there} == {*hosts[:2]} else 400)
    with workers_on(hosts, scheme, tmp_path) as command:
        told = matrix_of([*command, "--matrix-size", "2MB"])
    slow = [said for said in told["findings"] if said.startswith("slow ")]
    assert len(slow) == 1 and slow[0].startswith("slow link: worker 1 and worker 2, 0.00")
    assert {link["path"] for link in told["links"]} == {"tcp"}


@pytest.mark.netns
@pytest.mark.slow
def test_pairs_whose_single_flow_is_capped_are_named(triangle, tmp_path):
    hosts, devices = triangle
    with lab():
        for pair in (hosts[:2], hosts[1::-1]):
            cap_flows(pair[0], devices[tuple(pair)], 400)
    with workers_on(hosts, "fabric+tcp", tmp_path) as command:
        told = matrix_of(command)
    (capped,) = [said for said in told["findings"] if said.startswith("capped flow: ")]
    assert capped.startswith("capped flow: worker 1 and worker 2, one connection moves 0.0")
    (link,) = [link for link in told["links"] if (link["one"], link["other"]) == ("1", "2")]
    assert link["flows"][-1][0] > 1

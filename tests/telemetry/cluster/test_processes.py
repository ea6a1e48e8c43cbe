"""Asking real processes, as a table and by ``dask fabric top``."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster

import dask_fabric
from dask_fabric.cli.main import fabric
from dask_fabric.telemetry.cluster import processes

DATA_COUNT = 1_000_000


@pytest.fixture(scope="module", params=["fabric", "tcp"])
def cluster(request):
    with LocalCluster(
        protocol=request.param,
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",  # not Dask's own port, which others use
    ) as cluster:
        yield cluster


def exchange(client: Client) -> list[str]:
    """Let one worker fetch an array from the other; the addresses of both."""
    left, right = client.scheduler_info(n_workers=-1)["workers"]
    ones = client.submit(np.ones, DATA_COUNT, workers=[left], pure=False)
    assert client.submit(np.sum, ones, workers=[right], pure=False).result() == DATA_COUNT
    return [left, right]


def test_a_table_of_all_processes(cluster):
    pytest.importorskip("pandas", reason="needs pandas")
    with Client(cluster) as client:
        left, right = exchange(client)
        frame = dask_fabric.statistics(client)
    if left.startswith("tcp"):
        assert not frame["process"].isin([left, right]).any()
        return
    assert {left, right} <= set(frame["process"])
    assert {"worker", "scheduler"} <= set(frame["role"])
    received = frame[(frame["process"] == right) & (frame["peer"] == left)]
    assert received["bytes_received"].sum() >= 8 * DATA_COUNT
    assert not frame.duplicated(["process", "peer", "path"]).any()


async def test_a_table_from_an_asynchronous_client(cluster):
    pytest.importorskip("pandas", reason="needs pandas")
    async with Client(cluster.scheduler_address, asynchronous=True) as client:
        frame = await dask_fabric.statistics(client)
    assert {"role", "process", "peer", "path", "bytes_sent", "peer_seconds"} <= set(frame.columns)


def test_without_pandas_the_error_says_what_to_do(cluster, monkeypatch):
    with Client(cluster) as client:
        monkeypatch.setitem(sys.modules, "pandas", None)  # now: the client compares versions
        with pytest.raises(ImportError, match="install pandas"):
            dask_fabric.statistics(client)


def test_top_shows_what_moves(cluster):
    with Client(cluster) as client:
        left, right = exchange(client)
        arguments = ["top", cluster.scheduler_address, "--once", "--interval", "0.2"]
        text = CliRunner().invoke(fabric, arguments)
        lines = CliRunner().invoke(fabric, [*arguments, "--json"])
    assert text.exit_code == lines.exit_code == 0, text.output
    found = json.loads(lines.stdout)
    named = {rate["process"] for rate in found["rates"]}
    if left.startswith("tcp"):
        assert {left, right} <= set(found["idle"])
        assert f"{left} has had no comm of dask-fabric" in text.stdout
    else:
        assert {left, right} <= named
        assert left in text.stdout and right in text.stdout
        assert found["slowest"]  # of this process too, which may have tested others before
    assert found["silent"] == {}


async def test_a_process_that_is_asked_again_logs_nothing(cluster):
    async with Client(cluster.scheduler_address, asynchronous=True) as client:

        async def lines() -> int:
            logs = await client.get_worker_logs()
            logs["scheduler"] = await client.get_scheduler_logs()
            return sum("out-of-band" in text for of in logs.values() for _, text in of)

        collector = processes.Collector(client)
        first, before = await collector.collect(), await lines()
        second = await collector.collect()
        is_ours = cluster.scheduler_address.startswith("fabric")
        assert before > 0 and ((await lines()) == before) is is_ours
    assert [one.name for one in first] == [one.name for one in second]
    assert all(one.rows is not None for one in second)


def test_top_of_nothing():
    result = CliRunner().invoke(fabric, ["top", "nonsense://127.0.0.1:1", "--once"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: cannot watch the cluster at nonsense://127.0.0.1:1")


def test_containers_with_equal_names_and_pids_are_processes_of_their_own():
    one, other = (("host", 1, namespace, "boot") for namespace in (4026531836, 4026532500))
    found = processes._once_each(
        [
            ("worker", "a", (one, [], True)),
            ("worker", "b", (other, [], False)),
            ("worker", "c", (one, [], True)),
        ]
    )
    assert [process.name for process in found] == ["a", "b"]

"""The figures of a process's comms on Dask's own pages and in heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import subprocess
import sys

import dask
import msgpack
import numpy as np
import pytest
from distributed import Client, Scheduler, Worker
from distributed.comm import connect, listen
from tornado.httpclient import AsyncHTTPClient

from dask_fabric.telemetry import heartbeat, prometheus, registry
from dask_fabric.telemetry.sums import Sums
from dask_fabric.wire.metrics import Metrics, histogram_of

DATA_COUNT = 1_000_000
SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Nothing was closed before: of many peers a report has but the busiest."""
    monkeypatch.setattr(registry, "_sums", Sums())


async def metrics_of(server) -> dict[tuple[str, str], float]:
    """The samples of a server's page, by name and labels."""
    address = f"http://127.0.0.1:{server.http_server.port}/metrics"
    answer = await AsyncHTTPClient().fetch(address)
    found = (SAMPLE.match(line) for line in answer.body.decode().splitlines())
    return {(one["name"], one["labels"] or ""): float(one["value"]) for one in found if one}


def scheduler(protocol: str = "fabric") -> Scheduler:
    return Scheduler(protocol=protocol, host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0")


def worker(server) -> Worker:
    return Worker(server.address, host="127.0.0.1", dashboard_address="127.0.0.1:0")


async def test_metrics_of_a_scheduler_and_a_worker():
    pytest.importorskip("prometheus_client", reason="needs prometheus_client")
    async with (
        scheduler() as server,
        worker(server) as one,
        worker(server) as other,
        Client(server.address, asynchronous=True) as client,
    ):
        before = await metrics_of(one)
        ones = client.submit(np.ones, DATA_COUNT, workers=[one.address])
        assert await client.submit(np.sum, ones, workers=[other.address]) == DATA_COUNT
        for page in (await metrics_of(server), await metrics_of(one)):
            check_page(before, page)


def check_page(before: dict, page: dict) -> None:
    moved = {
        direction: sum(
            after - before.get((name, labels), 0)
            for (name, labels), after in page.items()
            if name == "dask_fabric_bytes_total" and f'direction="{direction}"' in labels
        )
        for direction in ("sent", "received")
    }
    assert min(moved.values()) >= 8 * DATA_COUNT
    count = page["dask_fabric_sent_message_bytes_count", ""]
    assert count == page["dask_fabric_sent_message_bytes_bucket", 'le="+Inf"'] > 0
    assert page["dask_fabric_sent_message_bytes_sum", ""] > 8 * DATA_COUNT
    assert page["dask_fabric_open_comms", ""] > 0
    assert page["dask_fabric_path_figures", 'figure="most_bytes",path="shm"'] > 0
    assert page["dask_fabric_transfer_seconds_total", 'on="loop",path="stream"'] >= 0
    assert any(name == "dask_worker_threads" or "dask_scheduler" in name for name, _ in page)


async def test_what_was_refused_is_counted():
    pytest.importorskip("prometheus_client", reason="needs prometheus_client")

    async def read(comm) -> None:
        with contextlib.suppress(OSError):
            while True:
                await comm.read()

    def now() -> dict[str, float]:
        metrics = {one.name: one for one in prometheus.FabricCollector().collect()}
        samples = metrics["dask_fabric_refused"].samples
        return {one.labels["what"]: one.value for one in samples if one.name.endswith("_total")}

    async def counted(what: str) -> None:
        while now() == before:
            await asyncio.sleep(0.01)
        assert {name for name, count in now().items() if count > before[name]} == {what}

    with dask.config.set({"fabric.limits.message": "1 MiB"}):
        async with listen("fabric+tcp://127.0.0.1", read) as listener:
            before = now()
            _, writer = await asyncio.open_connection(*listener.get_host_port())
            writer.write(b"neither a hello nor anything else")
            await asyncio.wait_for(counted("connection"), 30)
            writer.close()

            comm = await connect(listener.contact_address)
            before = now()
            await comm.write(bytes(2 << 20))  # an error is sent instead
            await counted("message")

            before = now()
            os.write(comm._channel.transport.sock.fileno(), b"\xff" * 100)  # no record
            await asyncio.wait_for(counted("comm"), 30)
            await comm.close()


def test_the_collector_is_registered_once():
    pytest.importorskip("prometheus_client", reason="needs prometheus_client")
    from prometheus_client import REGISTRY

    prometheus.register()
    prometheus.register()
    names = [metric.name for metric in REGISTRY.collect()]
    assert names.count("dask_fabric_open_comms") == 1


@pytest.mark.parametrize("values", [[], [1], [70, 5000, 5000, 1 << 45]])
def test_buckets_are_cumulative(values):
    counts = histogram_of(values)["counts"]
    buckets = prometheus._buckets(counts, prometheus._SIZE_POWERS, 1)
    for bound, count in buckets:
        assert count == sum(
            value <= (math.inf if bound == "+Inf" else int(bound)) for value in values
        )


async def test_a_worker_reports_with_its_heartbeats():
    async with scheduler() as server, worker(server) as one:
        await one.heartbeat()
        told = server.workers[one.address].metrics[heartbeat.METRIC]
        assert told["process"] == heartbeat.summary()["process"]
        peers = {(peer, path): row for peer, path, *row in told["peers"]}
        sent_bytes, received_bytes, *_ = peers[server.address, "stream"]
        assert sent_bytes > 0 and received_bytes > 0


async def test_under_another_scheme_nothing_is_reported():
    async with scheduler("tcp") as server, worker(server) as one:
        await one.heartbeat()
        assert heartbeat.METRIC not in server.workers[one.address].metrics


def test_a_report_is_small_however_many_peers_there_are():
    figures = Metrics()
    figures.serialized(123_456_789)
    for number in range(200):
        key = (f"fabric://[2001:db8::{number:x}]:40000", "stream")
        registry._sums.opened(key)
        registry._sums.add(key, figures)
    told = heartbeat.summary()
    assert len(told["peers"]) <= heartbeat.PEER_LIMIT + 1
    assert len(msgpack.packb(told)) < 6000


def test_processes_of_one_number_in_two_containers_have_two_names():
    code = (
        "import os; os.getpid = lambda: 7\n"
        "from dask_fabric.telemetry.heartbeat import summary\n"
        "print(summary()['process'], summary()['process'])"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=30)[0].split() for process in processes]
    assert all(one == other for one, other in told)
    assert told[0][0] != told[1][0]

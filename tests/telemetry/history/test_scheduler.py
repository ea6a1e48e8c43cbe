"""Real schedulers with a history."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, Scheduler, Worker
from tests.conftest import LOCAL_CLUSTER, NO_DASHBOARD, NO_DASHBOARD_OPTIONS

from dask_fabric.telemetry.history.file import Record, read

DATA_COUNT = 1_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.sqlite"


@pytest.fixture
def kept(path):
    """A configuration with a history, which what is started here reads."""
    with dask.config.set({"fabric.history.file": str(path), "fabric.history.interval": "200 ms"}):
        yield


def jobs(path) -> list[Record]:
    records, damaged = read(path)
    assert damaged == []
    return records


def moved_bytes(job: Record) -> tuple[int, int]:
    """What all workers have sent and received."""
    paths = job.summary.paths
    return sum(one.bytes_sent for one in paths), sum(one.bytes_received for one in paths)


def start_scheduler(path) -> subprocess.Popen:
    """A process of its own, whose job stands in the file when this returns."""
    before = len(jobs(path)) if path.exists() else 0
    command = [sys.executable, "-m", "dask", "scheduler", "--protocol", "fabric"]
    command += ["--host", "127.0.0.1", "--port", "0", *NO_DASHBOARD_OPTIONS]
    variables = {"DASK_FABRIC__HISTORY__FILE": str(path), "DASK_FABRIC__HISTORY__INTERVAL": "0.2"}
    process = subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    give_up = time.monotonic() + 25
    while not path.exists() or path.stat().st_size == 0 or len(jobs(path)) == before:
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.05)
    return process


def test_a_job_that_ends_before_its_first_sample_has_its_workers(path, kept):
    with (
        dask.config.set({"fabric.history.interval": "1 h"}),
        LocalCluster(protocol="fabric", n_workers=2, **LOCAL_CLUSTER) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=60)
    (job,) = jobs(path)
    assert job.summary.workers == 2 and job.summary.workers_total == 2


def test_a_job_tells_what_was_moved(path, kept):
    with (
        LocalCluster(
            protocol="fabric", n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        address = cluster.scheduler_address
        left, right = client.scheduler_info(n_workers=-1)["workers"]
        ones = client.submit(np.ones, DATA_COUNT, workers=[left])
        assert client.submit(np.sum, ones, workers=[right]).result() == DATA_COUNT
        give_up = time.monotonic() + 20  # the figures come with the next heartbeats
        while min(moved_bytes(jobs(path)[0])) < 8 * DATA_COUNT:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        (running,) = jobs(path)
        assert running.ended is None and running.state(time.time()) == "running"
    (job,) = jobs(path)
    assert job.state(time.time()) == "ended" and job.started < job.ended
    summary = job.summary
    assert summary.scheduler == address
    assert (summary.workers, summary.workers_total, summary.hosts, summary.silent) == (2, 2, 1, 0)
    for nbytes in moved_bytes(job):
        assert 8 * DATA_COUNT < nbytes < 9 * DATA_COUNT
    assert max(one.bandwidth_max for one in summary.paths) > 0


def test_killed_and_at_once(path):
    killed, stopped = start_scheduler(path), start_scheduler(path)
    killed.send_signal(signal.SIGKILL)
    stopped.send_signal(signal.SIGTERM)
    for process in (killed, stopped):
        process.communicate(timeout=25)
    later = time.time() + 60
    assert sorted(job.state(later) for job in jobs(path)) == ["ended", "lost"]
    third = start_scheduler(path)
    third.terminate()
    third.communicate(timeout=25)
    assert sorted(job.state(later) for job in jobs(path)) == ["ended", "ended", "lost"]


async def one_job(protocol: str = "fabric") -> None:
    async with (
        Scheduler(protocol=protocol, host="127.0.0.1", port=0, **NO_DASHBOARD) as scheduler,
        Worker(scheduler.address, host="127.0.0.1", dashboard_address="127.0.0.1:0"),
        Client(scheduler.address, asynchronous=True) as client,
    ):
        assert await client.submit(sum, (1, 2)) == 3


@pytest.mark.parametrize("content", ["of another program\n" * 10, None])
async def test_a_history_that_cannot_be_written_harms_nobody(path, kept, content, caplog):
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    await one_job()
    assert caplog.text.count("Cannot write the history") == 1
    assert content is None or path.read_text() == content


async def test_a_python_without_sqlite_harms_nobody(path, kept, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "dask_fabric.telemetry.history.file", None)
    await one_job()
    assert caplog.text.count("this Python lacks SQLite") == 1
    assert not path.exists()


async def test_no_history_without_its_key_or_under_another_scheme(path, tmp_path, kept):
    await one_job("tcp")
    with dask.config.set({"fabric.history.file": None}):
        await one_job()
    assert list(tmp_path.iterdir()) == []
    await one_job()
    assert len(jobs(path)) == 1

"""The figures of comms about their traffic."""

from __future__ import annotations

import asyncio
import logging
import pickle

import dask
import numpy as np
import pytest
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

import dask_fabric
from dask_fabric.memory import device
from dask_fabric.telemetry import prometheus, registry
from dask_fabric.telemetry.sums import Sums

from ..device import StandIn

DATA_BYTES = 5_000_000


@pytest.fixture(autouse=True)
def one_path_within_the_host():
    """Frames of this process lie in ordinary memory, so `shm` would take none."""
    with dask.config.set({"fabric.shm.enabled": False}):
        yield


async def moved(scheme: str):
    """Statistics of both ends of a comm by which one frame has gone, and of this process."""
    accepted = asyncio.Queue()
    async with listen(f"{scheme}://127.0.0.1", accepted.put) as listener:
        near = await connect(listener.contact_address)
        far = await accepted.get()
        await near.write({"x": to_serialize(np.ones(DATA_BYTES, "u1"))})
        await far.read()
        await far.write("thanks")
        await near.read()
        told = near.statistics(), far.statistics(), dask_fabric.statistics()
        await near.close()
        await far.close()
    return told


async def test_a_frame_on_the_stream_counts_there():
    near, far, _ = await moved("fabric+tcp")
    assert set(near["traffic"]) == {"stream"}
    assert near["sends_by"] == "stream"
    sent, received = near["traffic"]["stream"], far["traffic"]["stream"]
    assert (sent["frames_sent"], received["frames_received"]) == (1, 1)
    assert (sent["frames_received"], received["frames_sent"]) == (0, 0)
    assert DATA_BYTES < sent["bytes_sent"] < DATA_BYTES + 10_000
    assert DATA_BYTES < received["bytes_received"] < DATA_BYTES + 10_000
    assert received["receive_seconds"] >= 0


async def test_a_fetched_frame_counts_with_its_path():
    near, far, _ = await moved("fabric")
    path = near["paths"]["host"]
    if path == "stream":
        pytest.skip(f"no other path within this host: {near['refused']}")
    assert near["sends_by"] == path
    sent, received = near["traffic"][path], far["traffic"][path]
    assert (sent["frames_sent"], sent["bytes_sent"]) == (1, DATA_BYTES)
    assert (received["frames_received"], received["bytes_received"]) == (1, DATA_BYTES)
    assert received["receive_seconds"] > 0
    assert near["traffic"]["stream"]["bytes_sent"] < 10_000
    assert near["traffic"]["stream"]["frames_sent"] == 0
    assert near["unacknowledged_bytes"] == 0


def held(peer: str) -> dict[str, int]:
    """What peers of that name have on offer from this process and not fetched, by path."""
    rows = [row for row in dask_fabric.statistics()["peers"] if row["peer"] == peer]
    return {row["path"]: row["unacknowledged_bytes"] for row in rows}


async def test_what_is_not_fetched_counts_by_peer_and_path_until_it_is_or_the_end(
    caplog, monkeypatch
):
    monkeypatch.setattr(registry, "_sums", Sums())  # else only the largest are told apart
    accepted = asyncio.Queue()
    async with listen("fabric://127.0.0.1", accepted.put) as listener:
        peer = listener.contact_address
        near = await connect(peer)
        far = await accepted.get()
        path = near.paths["host"]
        if path == "stream":
            pytest.skip(f"no other path within this host: {near.refused_paths}")
        assert held(peer) == {path: 0, "stream": 0}
        await near.write({"x": to_serialize(np.ones(DATA_BYTES, "u1"))})
        await near.write({"x": to_serialize(np.ones(DATA_BYTES, "u1"))})
        assert held(peer) == {path: 2 * DATA_BYTES, "stream": 0}
        assert gauge(path) >= 2 * DATA_BYTES
        for _ in range(2):
            await far.read()
        await far.write("this takes the acknowledgements along")
        await near.read()
        assert held(peer) == {path: 0, "stream": 0}

        await near.write({"x": to_serialize(np.ones(DATA_BYTES, "u1"))})
        with caplog.at_level(logging.DEBUG, "dask_fabric.telemetry.registry"):
            near.abort()
        assert held(peer) == {path: 0, "stream": 0}
        told = dask_fabric.statistics()["closed"]["traffic"][path]
        assert told["unacknowledged_bytes"] == near.statistics()["unacknowledged_bytes"] == 0
        (line,) = (text for text in caplog.messages if f"to {peer}" in text)
        assert line.count(f"'unacknowledged_bytes': {DATA_BYTES}") == 2  # of the comm, and the path
        far.abort()


def gauge(path: str) -> float:
    """The metrics of the whole process for Prometheus."""
    pytest.importorskip("prometheus_client", reason="needs prometheus_client")
    families = {family.name: family for family in prometheus.FabricCollector().collect()}
    samples = families["dask_fabric_unacknowledged_bytes"].samples
    return next(sample.value for sample in samples if sample.labels == {"path": path})


async def test_the_process_tells_of_open_and_closed_comms():
    before = dask_fabric.statistics()["closed"]
    *_, during = await moved("fabric+tcp")
    assert len(during["comms"]) >= 2
    after = dask_fabric.statistics()
    assert not {comm["local_address"] for comm in after["comms"]} & {
        comm["local_address"] for comm in during["comms"]
    }
    assert after["closed"]["comm_count"] == before["comm_count"] + 2
    old_bytes = before["traffic"].get("stream", {}).get("bytes_sent", 0)
    assert after["closed"]["traffic"]["stream"]["bytes_sent"] > old_bytes + DATA_BYTES
    assert after["pool"] and after["engine"]


def test_the_process_tells_of_its_device():
    assert dask_fabric.statistics()["gpu"] is None
    device.install(StandIn())
    try:
        assert dask_fabric.statistics()["gpu"] == {"stand-in": True}
    finally:
        device.install(None)


async def test_a_closed_comm_is_logged_once(caplog):
    with caplog.at_level(logging.DEBUG, "dask_fabric.telemetry.registry"):
        near, *_ = await moved("fabric+tcp")
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith(f"Closed: {near['local_address']} to") for line in lines) == 1


def test_it_can_be_sent_to_workers():
    assert pickle.loads(pickle.dumps(dask_fabric.statistics)) is dask_fabric.statistics


async def test_a_comm_that_chose_nothing_else():
    with dask.config.set({"fabric.cma.enabled": False, "fabric.ucx.enabled": False}):
        near, _, _ = await moved("fabric")
    assert set(near["traffic"]) == {"stream"}
    assert near["refused"]["cma"]

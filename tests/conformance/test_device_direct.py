"""Device memory by UCX, from device to device, with the real UCX and a stand-in for the device.

Those tests of `test_device` that do not depend on the path run here again.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed.comm import CommClosedError, listen
from distributed.protocol import Serialized, serialize, to_serialize
from distributed.utils import wait_for

from dask_fabric.memory import device
from dask_fabric.memory.device import StagedFrame
from dask_fabric.paths.ucx import core as ucx
from dask_fabric.paths.ucx.python_endpoint import UCXEndpoint
from dask_fabric.telemetry import heartbeat, prometheus, registry

from ..conftest import ucx_libraries
from ..device import Array, StandIn, check_arrived, direct_path
from .test_device import (  # noqa: F401
    ARRAYS,
    MEBI,
    test_a_cluster_moves_device_memory,
    test_a_device_error_fails_one_message_and_not_the_comm,
    test_a_full_device_fails_one_message_and_not_the_comm,
    test_both_write_much_before_either_reads,
    test_host_and_device_memory_in_one_message,
    test_many_messages_keep_their_order,
    test_parts_of_arrays,
    test_the_event_loop_waits_for_no_device,
    test_whole_messages_come_before_an_orderly_close,
    test_writes_at_once_are_kept_apart,
)

pytestmark = [
    pytest.mark.own,
    pytest.mark.skipif(not ucx_libraries(), reason="no UCX on this host"),
]
PATIENCE_SECONDS = 30


@pytest.fixture(params=["fabric", "fabric+ucx"])
def scheme(request):
    return request.param


@pytest.fixture(autouse=True)
def gpu():
    paths = {"fabric.gpu.chunk": "1 MiB", "fabric.shm.enabled": False}
    with direct_path(), dask.config.set(paths):
        runtime = StandIn()
        device.install(runtime)
        yield runtime
        device.install(None)


async def exchange(a, b, gpu, values):
    """Write an array, and read it whole at the other end."""
    await a.write({"x": to_serialize(gpu.array(values)), "y": to_serialize(values)})
    message = await wait_for(b.read(), PATIENCE_SECONDS)
    assert type(message["x"]) is Array
    np.testing.assert_array_equal(message["x"].get(), values)
    np.testing.assert_array_equal(message["y"], values)


async def test_each_kind_of_memory_has_its_path(pair, scheme):
    a, b = pair
    await a.write("the server knows the paths when it has read")
    await b.read()
    host = "ucx" if scheme == "fabric+ucx" else "cma"
    assert a.paths == b.paths == {"host": host, "cuda": "ucx"}
    assert a.refused_paths == b.refused_paths
    assert a.statistics()["sends_devices"] and b.statistics()["sends_devices"]


async def test_each_path_counts_for_itself(pair, gpu, scheme):
    a, b = pair
    values = np.arange(MEBI)
    begin = time.monotonic()
    await exchange(a, b, gpu, values)
    await b.write("this takes the acknowledgement along")
    await a.read()
    elapsed = time.monotonic() - begin
    sent, received = a.statistics()["traffic"], b.statistics()["traffic"]
    frame_counts = (
        {"stream": 0, "ucx": 2} if scheme == "fabric+ucx" else {"stream": 0, "cma": 1, "ucx": 1}
    )
    assert set(sent) == set(received) == set(frame_counts)
    for path, count in frame_counts.items():
        assert sent[path]["frames_sent"] == received[path]["frames_received"] == count
        if path != "stream":
            moved = received[path]["bytes_received"]
            assert sent[path]["bytes_sent"] == moved == count * values.nbytes
            assert 0 < sent[path]["histograms"]["answer_ns"]["sum"] / 1e9 <= elapsed
            assert 0 < received[path]["receive_seconds"] <= elapsed
    assert 0 <= sent["ucx"]["send_seconds"] <= elapsed
    assert a.statistics()["bytes_sent"] == sum(of["bytes_sent"] for of in sent.values())
    check_reports(frame_counts)


def check_reports(paths):
    """The report of this process names each path."""
    pytest.importorskip("prometheus_client", reason="needs prometheus_client")
    metrics = prometheus.FabricCollector().collect()
    shown = {
        sample.labels["path"]
        for metric in metrics
        for sample in metric.samples
        if sample.name == "dask_fabric_bytes_total"
    }
    assert shown >= set(paths)
    assert {path for _, path, *_ in heartbeat.summary()["peers"]} >= set(paths)
    assert {row["path"] for row in registry.rows()} >= set(paths)


@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS.keys())
async def test_arrays_go_from_device_to_device(pair, gpu, values):
    a, b = pair
    await a.write({"x": to_serialize(gpu.array(values))})
    check_arrived((await b.read())["x"], values)
    moved = b.statistics()["traffic"]["ucx"]
    assert moved["frames_received"] == bool(values.nbytes)
    assert moved["bytes_received"] == values.nbytes
    assert gpu.copied_bytes == []


async def test_both_ways_from_the_first_message_on(pair, gpu):
    values = np.arange(MEBI)
    for one, other in (pair[::-1], pair):
        await exchange(one, other, gpu, values)
        assert one.statistics()["staged"]["frames_sent"] == 0
        assert one.statistics()["traffic"]["ucx"]["bytes_sent"] >= values.nbytes


async def test_memory_is_let_go_when_the_peer_has_it(pair, gpu):
    a, b = pair
    values = np.arange(MEBI)
    await a.write({"x": to_serialize(gpu.array(values)), "y": to_serialize(values[::2].copy())})
    assert a.statistics()["unacknowledged_bytes"] == 12 * MEBI
    by_path = {"stream": 0, "ucx": 8 * MEBI}
    by_path[a.paths["host"]] = by_path.get(a.paths["host"], 0) + 4 * MEBI
    assert unacknowledged(a) == by_path
    await wait_for(b.read(), PATIENCE_SECONDS)
    await b.write("this takes the acknowledgement along")
    await a.read()
    assert a.statistics()["unacknowledged_bytes"] == 0
    assert unacknowledged(a) == dict.fromkeys(by_path, 0)


def unacknowledged(comm) -> dict[str, int]:
    traffic = comm.statistics()["traffic"]
    return {path: figures["unacknowledged_bytes"] for path, figures in traffic.items()}


async def test_what_ucx_does_not_bring_comes_through_host_memory(pair, gpu, caplog):
    a, b = pair
    values = np.arange(MEBI)
    await exchange(a, b, gpu, values)
    break_ucx()
    gpu.watch_loop()
    for _ in range(2):
        await exchange(a, b, gpu, values)
    assert a.statistics()["fallbacks_sent"] == b.statistics()["fallbacks_received"] == 1
    assert not a.statistics()["sends_devices"]
    assert "the path ucx is broken" in caplog.text
    staged = a.statistics()["staged"]
    assert (staged["frames_sent"], staged["bytes_sent"]) == (1, values.nbytes)
    assert gpu.blocked_loop == []


def break_ucx():
    """End the connection of this process to itself, as another comm may that gives up."""
    endpoint = UCXEndpoint(ucx.address(), 2**64 - 1, 2**64 - 2)
    endpoint.fail()
    endpoint.close()


async def test_what_is_asked_for_comes_before_an_orderly_close(pair, gpu):
    a, b = pair
    values = np.arange(MEBI)
    await exchange(a, b, gpu, values)
    break_ucx()
    await a.write({"x": to_serialize(gpu.array(values))})
    closing = asyncio.ensure_future(a.close())
    message = await wait_for(b.read(), PATIENCE_SECONDS)
    np.testing.assert_array_equal(message["x"].get(), values)
    await wait_for(closing, PATIENCE_SECONDS)
    with pytest.raises(CommClosedError):
        await b.read()


async def test_an_abort_while_frames_are_brought_to_the_host(pair, gpu):
    a, b = pair
    await exchange(a, b, gpu, np.arange(MEBI))
    break_ucx()
    await a.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
    reading = asyncio.ensure_future(b.read())
    while not a.statistics()["fallbacks_sent"]:
        await asyncio.sleep(0)
    a.abort()
    with pytest.raises(CommClosedError):
        await wait_for(reading, PATIENCE_SECONDS)


async def test_an_error_of_the_device_while_frames_are_awaited_ends_the_comm(pair, gpu):
    a, b = pair
    await a.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
    gpu.error = RuntimeError("illegal memory access")
    with pytest.raises(CommClosedError, match="illegal memory access"):
        await wait_for(b.read(), PATIENCE_SECONDS)
    gpu.error = None


async def test_what_belongs_on_a_device_and_is_not_goes_in_chunks(pair, gpu):
    """The reader of a message with frames of both kinds cannot distinguish them otherwise."""
    a, b = pair
    values = np.arange(MEBI)
    header, _ = serialize(gpu.array(values), serializers=("cuda",))
    passed = Serialized(header, [StagedFrame.over(values.tobytes())])
    await a.write({"x": passed, "y": to_serialize(gpu.array(values))})
    message = await wait_for(b.read(), PATIENCE_SECONDS)
    for got in message.values():
        np.testing.assert_array_equal(got.get(), values)
    assert a.statistics()["staged"]["frames_sent"] == 2


# ---------------------------------------------------------------- two processes

PEER = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from distributed.comm import connect
from distributed.protocol import to_serialize
from tests.device import Array, StandIn, check_arrived, direct_path
from dask_fabric.memory import device
async def main():
    gpu = StandIn()
    device.install(gpu)
    comm = await connect(sys.argv[1])
    for size in (10, 100_000, 20_000_000):
        values = np.arange(size)
        await comm.write({"x": to_serialize(gpu.array(values)), "y": to_serialize(values)})
        message = await comm.read()
        assert type(message["x"]) is Array
        assert (message["x"].get() == values + 1).all() and (message["y"] == values + 1).all()
    print(comm.paths, gpu.copied_bytes, flush=True)
    await comm.read()
with direct_path():
    asyncio.run(main())
"""


@pytest.fixture
def start_peer():
    processes = []

    def start(address):
        command = [sys.executable, "-c", PEER, address, str(Path(__file__).parents[2])]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
async def test_two_processes(scheme, gpu, start_peer):
    accepted = asyncio.Queue()
    async with listen(f"{scheme}://127.0.0.1", accepted.put) as listener:
        peer = start_peer(listener.contact_address)
        comm = await wait_for(accepted.get(), PATIENCE_SECONDS)
        for _ in range(3):
            message = await wait_for(comm.read(), PATIENCE_SECONDS)
            x, y = message["x"].get(), message["y"]
            await comm.write({"x": to_serialize(gpu.array(x + 1)), "y": to_serialize(y + 1)})
        line = await asyncio.to_thread(peer.stdout.readline)
        assert line.strip() == f"{comm.paths} []"
        assert comm.paths["cuda"] == "ucx" and gpu.copied_bytes == []
        # Dies while it has frames of this side.
        await comm.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
        peer.kill()
        with pytest.raises(CommClosedError):
            await wait_for(comm.read(), PATIENCE_SECONDS)
        comm.abort()

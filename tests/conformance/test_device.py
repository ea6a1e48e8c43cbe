"""Device memory over every scheme, with a stand-in for the device."""

from __future__ import annotations

import asyncio
import operator

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.protocol import Serialized, to_serialize
from distributed.utils import wait_for

from dask_fabric.comm.runtime import settings
from dask_fabric.errors import UnavailableError
from dask_fabric.memory import device
from dask_fabric.memory.device import StagedFrame

from ..device import Array, StandIn, check_arrived, make_array

pytestmark = pytest.mark.own
MEBI = 1 << 20


@pytest.fixture(autouse=True)  # before there are comms
def gpu():
    # Larger chunks would be pinned, and the pool of this process would stay so.
    with dask.config.set({"fabric.gpu.chunk": "1 MiB"}):
        settings()  # applied now: it would be with the first comm
        runtime = StandIn()
        device.install(runtime)
        yield runtime
        device.install(None)


def fortran(values: np.ndarray) -> np.ndarray:
    return np.asfortranarray(values.reshape(-1, 16))


ARRAYS = {
    "tiny": np.arange(7.0),
    "a chunk": np.arange(MEBI // 4, dtype="i4"),
    "several chunks": np.arange(5 * MEBI // 4 + 3, dtype="i4").view("u4"),
    "C order": np.arange(3 * MEBI // 8).reshape(16, -1),
    "Fortran order": fortran(np.arange(3 * MEBI // 8)),
    "empty": np.zeros((4, 0, 3)),
    "no dimension": np.array(4.5),
    "bool": np.arange(100_000) % 3 == 0,
}


@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS.keys())
async def test_arrays_come_as_they_were(pair, gpu, values):
    a, b = pair
    await a.write({"x": to_serialize(gpu.array(values))})
    check_arrived((await b.read())["x"], values)


@pytest.mark.parametrize(
    "part", [np.s_[1000:], np.s_[::2], np.s_[::-1], np.s_[7:7]], ids=["rest", "step", "back", "no"]
)
async def test_parts_of_arrays(pair, gpu, part):
    a, b = pair
    values = np.arange(3 * MEBI // 8)
    await a.write({"x": to_serialize(gpu.array(values)[part])})
    np.testing.assert_array_equal((await b.read())["x"].get(), values[part])


async def test_host_and_device_memory_in_one_message(pair, gpu):
    a, b = pair
    values = [np.arange(n) for n in (3, 3 * MEBI // 8, 5, 2 * MEBI // 8, 2 * MEBI // 8 + 1)]
    objects = [gpu.array(v) if n % 2 else v for n, v in enumerate(values)]
    await a.write({"x": [to_serialize(x) for x in objects], "y": to_serialize(objects)})
    message = await b.read()
    received = [*message["x"], *message["y"]]
    for got, sent, expected in zip(received, objects * 2, values * 2, strict=True):
        assert type(got) is type(sent)
        np.testing.assert_array_equal(got.get() if type(got) is Array else got, expected)
    assert message["x"][0].flags.writeable


async def test_many_messages_keep_their_order(pair, gpu):
    a, b = pair
    for n in range(12):
        data = gpu.array(np.full(n * 30_000, n)) if n % 3 else n
        await a.write({"n": n, "x": to_serialize(data)})
    for n in range(12):
        message = await b.read()
        assert message["n"] == n
        if n % 3:
            assert (message["x"].get() == n).all()


async def test_writes_at_once_are_kept_apart(pair, gpu):
    a, b = pair
    values = [np.full(2 * MEBI + n, n, "u1") for n in range(6)]
    writing = [asyncio.ensure_future(a.write({"x": to_serialize(gpu.array(v))})) for v in values]
    got = [(await b.read())["x"].get() for _ in values]
    await asyncio.gather(*writing)
    assert sorted(x[0] for x in got) == list(range(6))
    for x in got:
        np.testing.assert_array_equal(x, values[x[0]])


async def test_both_write_much_before_either_reads(pair, gpu):
    values = np.arange(10 * MEBI // 8)
    for comm in pair:
        await wait_for(comm.write({"x": to_serialize(gpu.array(values))}), 30)
    for comm in pair:
        np.testing.assert_array_equal((await comm.read())["x"].get(), values)


async def test_the_event_loop_waits_for_no_device(pair, gpu):
    a, b = pair
    gpu.watch_loop()
    await a.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
    got = (await b.read())["x"]
    assert gpu.awaited_count >= 2 and gpu.blocked_loop == []
    assert (got.get() == np.arange(MEBI)).all()


async def test_who_has_no_device_says_what_to_do_and_stays_usable(pair, gpu):
    a, b = pair
    for count in (10, MEBI):
        await a.write({"x": to_serialize(gpu.array(np.arange(count)))})
        await a.write("next")
        device.install(None)
        with pytest.raises(UnavailableError, match=r"cupy\.asnumpy"):
            await b.read()
        assert await b.read() == "next"
        device.install(gpu)


async def test_a_scheduler_without_device_passes_on_what_it_does_not_read(open_pair, gpu):
    worker, scheduler = await open_pair(deserialize=False)
    forward, client = await open_pair()
    for values in (np.arange(10), fortran(np.arange(MEBI)), np.zeros((0, 3))):
        await worker.write({"x": to_serialize(gpu.array(values))})
        device.install(None)
        passed = (await scheduler.read())["x"]
        assert type(passed) is Serialized
        assert [type(frame) for frame in passed.frames] == [StagedFrame]
        await forward.write({"x": passed})
        device.install(gpu)
        got = (await client.read())["x"]
        assert got.strides == values.strides
        np.testing.assert_array_equal(got.get(), values)


async def test_who_comes_to_have_a_device_after_connecting_gets_frames_there(pair, gpu):
    a, b = pair
    await a.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
    device.install(None)
    reading = asyncio.ensure_future(b.read())
    await asyncio.sleep(0)
    device.install(gpu)
    np.testing.assert_array_equal((await reading)["x"].get(), np.arange(MEBI))


async def test_a_full_device_fails_one_message_and_not_the_comm(pair, gpu):
    a, b = pair
    gpu.capacity_bytes = 4 * MEBI
    await a.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
    with pytest.raises(MemoryError, match="the device has no"):
        await b.read()
    await a.write({"x": to_serialize(gpu.array(np.arange(10)))})
    np.testing.assert_array_equal((await b.read())["x"].get(), np.arange(10))


async def test_a_device_error_fails_one_message_and_not_the_comm(pair, gpu):
    a, b = pair
    gpu.error = RuntimeError("illegal memory access")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        await a.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
    gpu.error = None
    await a.write("next")
    assert await b.read() == "next"


async def test_whole_messages_come_before_an_orderly_close(pair, gpu):
    a, b = pair
    await a.write({"x": to_serialize(gpu.array(np.arange(MEBI)))})
    closing = asyncio.ensure_future(a.close())
    np.testing.assert_array_equal((await b.read())["x"].get(), np.arange(MEBI))
    await closing


async def test_without_device_memory_arrays_go_as_under_tcp(open_pair, gpu):
    with dask.config.set({"fabric.gpu.enabled": False}):
        a, b = await open_pair()
        assert device.current() is None
        await a.write({"x": to_serialize(np.arange(10))})
        np.testing.assert_array_equal((await b.read())["x"], np.arange(10))


async def test_statistics_count_what_was_staged(pair, gpu):
    a, b = pair
    await a.write({"x": to_serialize([gpu.array(np.arange(MEBI)), gpu.array(np.arange(2))])})
    await b.read()
    for comm, side in ((a, "sent"), (b, "received")):
        staged = comm.statistics()["staged"]
        assert (staged[f"frames_{side}"], staged[f"bytes_{side}"]) == (2, 8 * MEBI + 16)


def test_a_cluster_moves_device_memory(scheme, security, gpu):
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, protocol=scheme,
            dashboard_address=":0", security=security,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        one, two = client.scheduler_info(n_workers=-1)["workers"]
        whole = client.submit(make_array, np.arange(MEBI), workers=[one])
        part = client.submit(operator.getitem, whole, slice(5, None), workers=[two])
        np.testing.assert_array_equal(part.result().get(), np.arange(5, MEBI))

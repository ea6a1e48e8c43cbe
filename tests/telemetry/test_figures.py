"""The figures of comms: they agree with what was really moved, and their sums are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import pytest
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

import dask_fabric
from dask_fabric.paths.cma import copies
from dask_fabric.telemetry import heartbeat, registry
from dask_fabric.telemetry.sums import OTHER_PEERS, PEER_LIMIT, Sums
from dask_fabric.telemetry.tcp_info import parse_tcp_info
from dask_fabric.wire.metrics import Metrics

DATA_BYTES = 50_000_000
LONG_SECONDS = 0.3
ATTEMPTS = 10


@contextlib.asynccontextmanager
async def pair(scheme: str):
    accepted = asyncio.Queue()
    async with listen(f"{scheme}://127.0.0.1", accepted.put) as listener:
        near = await connect(listener.contact_address)
        far = await accepted.get()
        try:
            yield near, far
        finally:
            await near.close()
            await far.close()


def data(nbytes: int = DATA_BYTES) -> dict:
    return {"x": to_serialize(np.ones(nbytes, "u1"))}


def large_path(comm) -> str:
    if comm.paths["host"] == "stream":
        pytest.skip(f"no other path within this host: {comm.refused_paths}")
    return comm.paths["host"]


def count_of(histogram: dict) -> int:
    return sum(histogram["counts"])


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Nothing was closed before."""
    monkeypatch.setattr(registry, "_sums", Sums())


async def test_bytes_of_the_stream_are_those_that_the_kernel_counts():
    async with pair("fabric+tcp") as (near, far):
        for number in range(100):
            await near.write({"op": "echo", "number": number})
            await far.read()
        await asyncio.gather(near.write(data()), far.read())
        await far.write("thanks")
        await near.read()
        here, there = near.statistics(), far.statistics()
    if not here["kernel"].get("bytes_sent"):
        pytest.skip("this kernel does not count bytes")
    assert (
        here["kernel"]["bytes_sent"] - here["kernel"]["bytes_retransmitted"]
        == (there["bytes_received"])
    )
    assert here["kernel"]["bytes_received"] == here["bytes_received"]
    assert there["kernel"]["bytes_received"] == there["bytes_received"]
    assert there["traffic"]["stream"]["bytes_received"] == there["bytes_received"]
    # What is sent is counted without the hello, of some hundred bytes.
    assert 0 < there["bytes_received"] - here["traffic"]["stream"]["bytes_sent"] < 2000


@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
async def test_histograms_count_every_message_and_byte(scheme):
    sizes = [0, 10, 5_000, 70_000, 300_000, 5_000_000]
    async with pair(scheme) as (near, far):
        for nbytes in sizes:
            await asyncio.gather(near.write(data(nbytes)), far.read())
        await far.write("thanks")
        await near.read()
        sent, received = near.statistics(), far.statistics()
    sizes_sent = sent["traffic"]["stream"]["histograms"]["sent_message_bytes"]
    sizes_received = received["traffic"]["stream"]["histograms"]["received_message_bytes"]
    assert sizes_sent == sizes_received
    assert count_of(sizes_sent) == sent["messages_sent"]
    assert count_of(sizes_received) == received["messages_received"]
    assert sizes_sent["sum"] == sent["bytes_sent"]
    assert sizes_sent["sum"] == sum(of["bytes_sent"] for of in sent["traffic"].values())
    assert 0 <= sizes_sent["sum"] - sum(sizes) < 5000


async def test_a_path_beside_the_stream_carries_what_the_arrays_hold():
    async with pair("fabric") as (near, far):
        path = large_path(near)
        for _ in range(3):
            await asyncio.gather(near.write(data()), far.read())
        await far.write("thanks")
        await near.read()
        sent, received = (comm.statistics()["traffic"][path] for comm in (near, far))
    assert sent["bytes_sent"] == received["bytes_received"] == 3 * DATA_BYTES
    assert count_of(sent["histograms"]["answer_ns"]) == 3
    assert count_of(received["histograms"]["receive_ns"]) == 3
    assert received["wire_seconds"] > 0
    assert received["wire_seconds"] + received["loop_seconds"] == pytest.approx(
        received["receive_seconds"]
    )
    assert received["allocate_seconds"] > 0
    assert sent["peer_seconds"] == pytest.approx(sent["histograms"]["answer_ns"]["sum"] / 1e9)


async def test_who_does_not_read_is_waited_for():
    async with pair("fabric+tcp") as (near, far):
        await near.write(data())
        await asyncio.sleep(LONG_SECONDS)
        await far.read()
        while not (told := near.statistics()["traffic"]["stream"])["send_seconds"]:
            await asyncio.sleep(0)  # the loop has not looked at the end of the job yet
    assert told["peer_seconds"] > 0.8 * LONG_SECONDS
    assert told["wire_seconds"] < told["send_seconds"]


async def test_an_offer_that_nobody_takes_is_waited_for():
    async with pair("fabric") as (near, far):
        path = large_path(near)
        await near.write(data())
        await asyncio.sleep(LONG_SECONDS)
        await far.read()
        await far.write("thanks")
        await near.read()
        told = near.statistics()["traffic"][path]
    assert told["peer_seconds"] > 0.8 * LONG_SECONDS


@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
async def test_a_loop_that_is_busy_is_waited_for(scheme):
    async with pair(scheme) as (near, far):
        path = near.paths["host"]
        if path == "ucx":
            pytest.skip("no way to see that it has begun")
        for _ in range(ATTEMPTS):
            before = far.statistics()["traffic"][path]["histograms"]["receive_ns"]
            count = begun(far)
            reading = asyncio.ensure_future(far.read())
            await near.write(data())
            while begun(far) == count:
                await asyncio.sleep(0)
            time.sleep(LONG_SECONDS)  # a task that holds the GIL
            is_late = far.statistics()["traffic"][path]["histograms"]["receive_ns"] == before
            await reading
            if is_late:  # the loop had not taken notice of the job's end before
                break
        told = far.statistics()["traffic"][path]
    assert is_late and told["loop_seconds"] > 0.3 * LONG_SECONDS


def begun(comm) -> int:
    """How many large messages the engine has received, or fetches."""
    told = comm.statistics()
    return told["receive_jobs"] + told["fetched_frames"] + copies.statistics()["job_count"]


@pytest.mark.slow
async def test_serializing_is_timed_where_it_is_work():
    async with pair("fabric+tcp") as (near, far):
        await near.write("tiny")
        await far.read()
        assert near.statistics()["traffic"]["stream"]["serialize_seconds"] == 0
        await asyncio.gather(near.write(data()), far.read())  # by reference
        assert near.statistics()["traffic"]["stream"]["serialize_seconds"] == 0
        work = {"x": to_serialize(list(range(100_000)))}
        await asyncio.gather(near.write(work), far.read())
        sent = near.statistics()["traffic"]["stream"]
        received = far.statistics()["traffic"]["stream"]
    assert sent["serialize_seconds"] > 0 and sent["deserialize_seconds"] == 0
    assert received["deserialize_seconds"] > 0 and received["serialize_seconds"] == 0


async def test_open_and_closed_comms_of_a_peer_are_one_row():
    accepted = asyncio.Queue()
    async with listen("fabric+tcp://127.0.0.1", accepted.put) as listener:
        address = listener.contact_address
        for _ in range(3):
            near = await connect(address)
            far = await accepted.get()
            await near.write(data(1000))
            await far.read()
            await near.close()
            await far.close()
        near = await connect(address)
        far = await accepted.get()
        told = {(row["peer"], row["path"]): row for row in dask_fabric.statistics()["peers"]}
        await near.close()
        await far.close()
    there = told[address, "stream"]
    assert (there["messages_sent"], there["open_comms"]) == (3 + 4, 1)  # and Dask's handshakes
    assert 3000 < there["bytes_sent"] < 10_000
    clients = told["fabric+tcp://127.0.0.1", "stream"]  # whatever their ports were
    assert clients["messages_received"] == there["messages_sent"]


def spent_in(figures: Metrics) -> float:
    return figures.as_dict()["serialize_seconds"]


def moved(nbytes_spent: int) -> Metrics:
    figures = Metrics()
    figures.serialized(nbytes_spent)
    return figures


def test_sums_are_bounded_and_lose_nothing():
    sums, count = Sums(), 5 * PEER_LIMIT
    for number in range(count):
        key = (f"fabric://10.0.0.1:{number}", "stream")
        sums.opened(key)
        sums.add(key, moved(1_000_000))
        sums.closed(key, True)
    told = sums.totals(10 * PEER_LIMIT)
    assert len(told) <= PEER_LIMIT + 1
    assert sum(map(spent_in, told.values())) == pytest.approx(count / 1000)
    assert (OTHER_PEERS, "stream") in told
    # Who was heard of last is told apart.
    assert (f"fabric://10.0.0.1:{count - 1}", "stream") in told


def test_peers_with_open_comms_are_not_forgotten():
    sums, key = Sums(), ("fabric://10.0.0.9:1", "stream")
    sums.opened(key)
    sums.opened(key)
    sums.closed(key, True)
    for number in range(2 * PEER_LIMIT):
        other = (f"fabric://10.0.0.1:{number}", "stream")
        sums.opened(other)
        sums.closed(other, True)
    assert key in sums.totals(10 * PEER_LIMIT) and sums.open_count(key) == 1


def test_a_smaller_table_keeps_those_that_moved_most():
    sums = Sums()
    for number in range(20):
        key = (f"fabric://10.0.0.1:{number}", "stream")
        sums.opened(key)
        sums.add(key, moved(1_000_000_000))
    told = sums.totals(5)
    assert len(told) <= 6
    assert spent_in(told[OTHER_PEERS, "stream"]) >= 15


class Channel:
    """The part of a channel that the sums read; counts how often they do."""

    server_side = False
    error = None

    def __init__(self) -> None:
        self.observer = None
        self.tells_activity = False
        self.spent_ns = 0
        self.looks = 0

    def figures(self) -> dict:
        self.looks += 1
        return {"stream": moved(self.spent_ns)}

    def statistics(self) -> dict:
        return {}

    def move(self, spent_ns: int) -> None:
        if self.tells_activity:
            self.tells_activity = False
            self.observer.active()
        self.spent_ns += spent_ns


class Comm:
    local_address = "fabric://10.0.0.2:1"

    def __init__(self, number: int) -> None:
        self.peer_address = f"fabric://10.0.0.1:{number % 10}"  # of ten peers
        self._channel = Channel()

    def closed(self) -> bool:
        return False


@pytest.fixture
def comms(monkeypatch):
    """A thousand open ones, in a process that had none."""
    for name, empty in (("_open", {}), ("_active", {}), ("_closed", {}), ("_sums", Sums())):
        monkeypatch.setattr(registry, name, empty)
    comms = [Comm(number) for number in range(1000)]
    for comm in comms:
        registry.opened(comm, comm._channel)
    return comms


def looks(comms: list) -> int:
    return sum(comm._channel.looks for comm in comms)


def test_a_report_looks_at_those_comms_alone_that_have_moved_something(comms):
    registry.totals()
    registry.totals()
    before = looks(comms)
    for _ in range(10):
        registry.totals()
        heartbeat.summary()
        registry.rows()
    assert looks(comms) == before
    comms[7]._channel.move(5_000_000_000)
    told = {key: spent_in(figures) for key, figures in registry.totals().items()}
    assert told["fabric://10.0.0.1:7", "stream"] == 5 and sum(told.values()) == 5
    assert looks(comms) == before + 1


def test_however_many_are_active_a_report_looks_at_few(comms):
    for turn in range(1, 4):
        for comm in comms:
            comm._channel.move(1_000_000)
        before = looks(comms)
        told = registry.totals()
        assert looks(comms) - before <= registry.ACTIVE_LIMIT
        assert sum(map(spent_in, told.values())) == pytest.approx(turn)


def test_each_message_costs_a_look_at_most(comms):
    registry.totals()
    before = looks(comms)
    for _ in range(3):
        for comm in comms:
            comm._channel.move(1_000_000)
    assert looks(comms) - before <= 3 * len(comms)


def test_open_comms_are_counted_by_peer_without_a_walk(comms):
    assert {row["open_comms"] for row in registry.rows()} == {100}
    assert registry.open_count() == 1000
    for comm in comms[:500]:
        comm._channel.observer.closed(comm._channel)
    assert {row["open_comms"] for row in registry.rows()} == {50}
    assert registry.open_count() == 500


def test_a_comm_that_the_collector_closes_meanwhile_is_counted(comms, monkeypatch):
    """In the very thread that holds the lock, in the middle of a report."""
    victim = comms[0]._channel
    victim.move(7_000_000_000)
    add = Sums.add

    def collect(sums, *args):
        if victim.observer is not None:
            observer, victim.observer = victim.observer, None
            observer.closed(victim)
        add(sums, *args)

    registry.totals()
    monkeypatch.setattr(Sums, "add", collect)
    comms[1]._channel.move(1_000_000_000)
    registry.totals()
    told = registry.totals()
    assert sum(map(spent_in, told.values())) == 8
    assert spent_in(registry._closed["stream"]) == 7


@pytest.mark.parametrize("values", [[], [1], [70, 5000, 5000, 1 << 45]])
def test_what_was_counted_since(values):
    figures = Metrics()
    assert figures.packed() == b""
    for value in values:
        figures.serialized(value)
    packed = figures.packed()
    more = figures.copy()
    more.deserialized(9)
    more.subtract(packed)
    only = Metrics()
    only.deserialized(9)
    assert more.as_dict() == only.as_dict()
    figures.subtract(packed)
    assert figures.packed() == b""


async def test_the_sums_of_a_real_comm_are_those_of_its_statistics():
    accepted = asyncio.Queue()
    async with listen("fabric://127.0.0.1", accepted.put) as listener:
        peer = listener.contact_address
        near = await connect(peer)
        far = await accepted.get()
        for count in range(1, 4):
            await near.write({"x": to_serialize(np.ones(300_000, "u1"))})
            await far.read()
            await far.write("thanks")
            await near.read()
            own = near.statistics()["traffic"]
            rows = {r["path"]: r for r in registry.rows() if r["peer"] == peer}
            assert rows.keys() == own.keys()
            for path, row in rows.items():
                assert {name: row[name] for name in own[path]} == own[path], (count, path)
        await near.close()
        await far.close()


def test_an_old_kernel_tells_less():
    assert parse_tcp_info(b"") == {}
    told = parse_tcp_info((1_500_000).to_bytes(4, "little") * 26)
    assert told == {"rtt_seconds": 1.5}

"""Lanes: frames over several connections, between two addresses of loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl

import dask
import numpy as np
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.security import Security
from hypothesis import given
from hypothesis import strategies as st

from dask_fabric.comm.channels.negotiator import Negotiator
from dask_fabric.comm.connector import FabricConnector
from dask_fabric.comm.network.security import Scheme
from dask_fabric.errors import RefusedError
from dask_fabric.paths.lanes import endpoint, opener, provider
from dask_fabric.paths.lanes.provider import PROVIDER

PATIENCE_SECONDS = 60
# A connection from 127.0.0.1 to here is not within one address.
ELSEWHERE = "127.0.0.2"
NBYTES = 4_000_001


def numbers(nbytes: int = NBYTES, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, "u1")


async def until(condition) -> None:
    async def poll():
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), PATIENCE_SECONDS)


def path_of(comm):
    (path,) = [path for path in comm._channel.core.paths if path.name == "lanes"]
    return path


@contextlib.asynccontextmanager
async def pair(scheme="fabric+tcp", count=4, security=None, host=ELSEWHERE, front=None, **settings):
    """Give the connecting and the accepted end of a comm; *front* may change the address."""
    accepted = asyncio.Queue()
    settings = {f"fabric.{key}": value for key, value in settings.items()}
    known = {"fabric.lanes.count": count, "fabric.lanes.threshold": "64 KiB", **settings}
    listen_args = security.get_listen_args("scheduler") if security else {}
    connect_args = security.get_connection_args("client") if security else {}
    with dask.config.set(known):
        async with listen(f"{scheme}://{host}", accepted.put, **listen_args) as listener:
            address = listener.contact_address
            if front is not None:
                address = await front(address)
            near = await connect(address, **connect_args)
            far = await accepted.get()
            try:
                yield near, far
            finally:
                near.abort()
                far.abort()
    await until(lambda: endpoint.statistics()["open_count"] == 0)


async def move(sender, receiver, data) -> None:
    sending = asyncio.ensure_future(sender.write({"x": to_serialize(data)}))
    message = await asyncio.wait_for(receiver.read(), PATIENCE_SECONDS)
    assert np.array_equal(message["x"], data)
    await sending


async def widen(near, far, count=4) -> None:
    """Have the lanes opened."""
    await move(far, near, numbers())
    await until(lambda: path_of(near).lane_count == path_of(far).lane_count == count)


def traffic(comm, name="lanes"):
    return comm.statistics()["traffic"][name]


@given(st.lists(st.integers(0, 1024), min_size=1, max_size=8), st.integers(65_536, 1 << 47))
def test_parts_cover_a_frame_once(shares, nbytes):
    if not any(shares):
        shares[0] = 1
    parts = endpoint.bounds(shares, nbytes)
    end = 0
    for number, (begin, size) in enumerate(parts):
        assert size == 0 or begin == end
        assert size == 0 or shares[number]
        end = begin + size
    assert end == nbytes


def test_without_shares_a_frame_has_no_parts():
    assert {size for _, size in endpoint.bounds([0] * 8, 1 << 20)} == {0}


async def test_large_frames_go_over_all_lanes_in_both_directions():
    async with pair() as (near, far):
        assert near.statistics()["path_order"]["host"] == ("lanes", "stream")
        await widen(near, far)
        assert traffic(near)["bytes_received"] == 0  # the first message opens them
        for seed in range(5):
            data = numbers(seed=seed)
            await asyncio.gather(move(near, far, data), move(far, near, data))
        for comm in (near, far):
            assert traffic(comm)["bytes_sent"] == traffic(comm)["bytes_received"] == 5 * NBYTES
            assert comm.statistics()["connections"] == 5
            assert comm.statistics()["fallbacks_sent"] == 0


def test_the_same_on_uvloop():
    uvloop = pytest.importorskip("uvloop")
    uvloop.run(test_large_frames_go_over_all_lanes_in_both_directions())


@pytest.mark.parametrize("ends", [False, True])
async def test_lanes_may_come_before_the_comm_has_its_paths(ends, monkeypatch):
    """The server accepts them before it has read the client's PATHS record."""
    complete, held = Negotiator.complete_as_server, []
    monkeypatch.setattr(Negotiator, "complete_as_server", lambda *args: held.append(args))
    async with pair() as (near, far):
        await move(near, far, numbers())

        def early() -> list[socket.socket]:
            (candidate,) = provider._expected.values()
            return [connection.sock for _, connection in candidate._early]

        await until(lambda: len(early()) == 4)
        socks = early()
        if ends:
            far.abort()
            held.clear()
            gc.collect()
            assert {sock.fileno() for sock in socks} == {-1}
        else:
            complete(*held.pop())
            await until(lambda: path_of(near).lane_count == path_of(far).lane_count == 4)
            await move(far, near, numbers(seed=1))
            assert traffic(near)["bytes_received"] == NBYTES
        assert not provider._expected


async def test_many_messages_are_written_before_one_is_read():
    async with pair() as (near, far):
        await widen(near, far)
        sent = [numbers(seed=seed) for seed in range(10)]
        for data in sent:
            await near.write({"x": to_serialize(data), "y": [to_serialize(data[:70_000])] * 3})
        for data in sent:
            message = await asyncio.wait_for(far.read(), PATIENCE_SECONDS)
            assert np.array_equal(message["x"], data)
            assert all(np.array_equal(part, data[:70_000]) for part in message["y"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_there_are_none_within_one_address(host):
    async with pair(host=host) as (near, far):
        await move(far, near, numbers())
        assert "lanes" not in near.statistics()["path_order"]["host"]
        assert "on one host" in near.refused_paths["lanes"]
        assert near.refused_paths["lanes"] == far.refused_paths["lanes"]


@pytest.mark.parametrize("count", [0, 1])
async def test_none_are_wanted(count):
    async with pair(count=count) as (near, far):
        await move(far, near, numbers())
        assert "fabric.lanes.count" in near.refused_paths["lanes"]
        assert near.statistics()["connections"] == 1


async def test_the_smaller_number_of_both_sides_counts():
    async def front(address):
        dask.config.set({"fabric.lanes.count": 8})
        return address

    async with pair(count=2, front=front) as (near, far):
        await widen(near, far, 2)
        await move(near, far, numbers())
        assert near.statistics()["connections"] == 3


@pytest.fixture(scope="module")
def security():
    return Security.temporary()


async def test_lanes_are_encrypted_if_their_comm_is(security):
    async with pair("fabric+tls", security=security) as (near, far):
        await widen(near, far)
        for lane in path_of(near).lanes[:4]:
            assert isinstance(lane.connection.sock, ssl.SSLSocket) and lane.connection.is_encrypted
        for seed in range(5):
            data = numbers(seed=seed)
            await asyncio.gather(move(near, far, data), move(far, near, data))
        assert traffic(far)["bytes_received"] == 5 * NBYTES
        assert far.statistics()["fallbacks_sent"] == 0


@pytest.mark.parametrize("encrypts", [False, True])
async def test_lanes_prove_the_key(encrypts):
    settings = {"auth.key": "0f" * 32, "auth.encrypt": encrypts, "unix-sockets": False}
    settings |= {"cma.enabled": False, "shm.enabled": False, "ucx.enabled": False}
    async with pair("fabric", **settings) as (near, far):
        await widen(near, far)
        await move(near, far, numbers())
        assert path_of(near).lanes[0].connection.is_encrypted == encrypts
        assert traffic(far)["bytes_received"] == NBYTES


def wish_of(path, /, **changes):
    return {"path": "lanes", "token": path.token, "number": 0, "epoch": 1, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token": bytes(16)}, "does not exist"),
        ({"token": "x"}, "does not exist"),
        ({"token": None}, "does not exist"),
        ({"number": 4}, "4 at most"),
        ({"number": -1}, "4 at most"),
        ({"number": "a"}, "4 at most"),
        ({"number": True}, "4 at most"),
        ({"epoch": 256}, "epoch"),
        ({"epoch": None}, "epoch"),
        ({"path": "cma"}, "no connection can join"),
        ({"path": "other"}, "unknown path"),
        ({"path": 1}, "unknown path"),
        ({"path": [1]}, "unknown path"),
    ],
)
async def test_a_stranger_is_refused(changes, reason, caplog):
    async with pair() as (near, far):
        path, sockname = path_of(far), near._channel.peer_sockname
        connector = FabricConnector(Scheme("fabric+tcp", "never"))
        from dask_fabric.comm import runtime

        with pytest.raises(RefusedError, match=reason):
            await connector._join(
                (socket.AF_INET, sockname), runtime.settings(), None, "", False,
                wish_of(path, **changes),
            )  # fmt: skip
        assert path.lane_count == 0
        assert reason in caplog.text
        await move(near, far, numbers())


async def test_a_lane_that_is_open_is_not_taken_over():
    async with pair() as (near, far):
        await widen(near, far)
        lane = path_of(far).lanes[0]
        wish = wish_of(path_of(far), epoch=lane.epoch)
        assert "open already" in PROVIDER.refuse_joining(wish)
        assert PROVIDER.refuse_joining({**wish, "epoch": lane.epoch + 1}) == ""


async def test_a_comm_that_has_ended_takes_no_lane():
    async with pair() as (near, far):
        path = path_of(far)
        near.abort()
        await until(far.closed)
        far.abort()
        assert "has ended" in PROVIDER.refuse_joining(wish_of(path))


@pytest.mark.parametrize("closes", ["near", "far"])
async def test_a_close_closes_the_lanes_of_both(closes):
    async with pair() as ends:
        near, far = ends
        await widen(near, far)
        await (near if closes == "near" else far).close()
        with pytest.raises(CommClosedError):
            await (far if closes == "near" else near).read()
        assert endpoint.statistics()["open_count"] == 0


async def test_an_abort_while_lanes_are_dialled():
    async with pair() as (near, far):
        await move(far, near, numbers())
        near.abort()
        with pytest.raises(CommClosedError):
            await far.read()


async def test_a_read_is_cancelled_in_the_middle():
    async with pair() as (near, far):
        await widen(near, far)
        await near.write({"x": to_serialize(numbers(50_000_000))})
        reading = asyncio.ensure_future(far.read())
        await until(lambda: far._channel.core.inbox.is_fetching or reading.done())
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        await until(lambda: endpoint.statistics()["open_count"] == 0 or not far.closed())


def kill(path, chance) -> None:
    """Break one lane, as a network does that resets it."""
    lanes = [lane for lane in path.lanes if lane is not None and lane.connection is not None]
    if lanes:
        with contextlib.suppress(OSError):
            lanes[chance.integers(len(lanes))].connection.sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", ["fabric+tcp", "fabric+tls"])
async def test_a_lane_is_killed_in_the_middle_of_each_frame(scheme, count, security, monkeypatch):
    monkeypatch.setattr(opener, "PAUSE_SECONDS", 0.0)
    chance = np.random.default_rng(1)
    given = security if scheme == "fabric+tls" else None
    async with pair(scheme, security=given) as (near, far):
        await widen(near, far)
        data = numbers(20_000_000)
        for index in range(count):
            ends = (near, far) if index % 2 else (far, near)
            part = data[index : -1 - index]
            writing = asyncio.ensure_future(ends[0].write({"x": to_serialize(part)}))
            reading = asyncio.ensure_future(ends[1].read())
            for _ in range(int(chance.integers(1, 30))):
                await asyncio.sleep(0)
            kill(path_of(ends[int(chance.integers(2))]), chance)
            message = await asyncio.wait_for(reading, PATIENCE_SECONDS)
            assert np.array_equal(message["x"], part)
            await writing
        assert endpoint.statistics()["lost_count"] > 0
        assert path_of(near).offers and path_of(far).offers
        # What goes on is whole, and by lanes again.
        await until(lambda: not any(lane and not lane.connection for lane in path_of(near).lanes))
        await move(near, far, data)
        await move(far, near, data)


async def test_a_forked_child_has_no_lanes_and_those_of_the_parent_go_on():
    async with pair() as (near, far):
        await widen(near, far)
        pid = os.fork()
        if pid == 0:
            try:
                flows = near.statistics()["flows"] or far.statistics()["flows"]
                os._exit(1 if flows else 0)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for sender, receiver in ((near, far), (far, near)):
            await move(sender, receiver, numbers())
        assert path_of(near).lane_count == path_of(far).lane_count == 4


class Proxy:
    """Passes connections on, and can stop doing so for one of them."""

    def __init__(self):
        self.count = 0
        self.writers = []
        self.frozen = set()
        self.bytes_left = {}  # of connections that are frozen after as many
        self.tasks = set()

    async def front(self, address):
        scheme, _, rest = address.partition("://")
        self.host, _, self.port = rest.partition(":")
        self.server = await asyncio.start_server(self.accept, "127.0.0.3", 0)
        return f"{scheme}://127.0.0.3:{self.server.sockets[0].getsockname()[1]}"

    async def accept(self, reader, writer):
        number, self.count = self.count, self.count + 1
        far_reader, far_writer = await asyncio.open_connection(self.host, int(self.port))
        self.writers.append((writer, far_writer))
        for way in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self.pump(number, *way))
            self.tasks.add(task)

    async def pump(self, number, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if number in self.bytes_left:
                    self.bytes_left[number] -= len(data)
                if number in self.frozen or self.bytes_left.get(number, 0) < 0:
                    await asyncio.Event().wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in sum(self.writers, ()):
            writer.transport.abort()
        self.server.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("sender", [pytest.param("near", marks=pytest.mark.slow), "far"])
async def test_a_lane_stands_still_while_others_move(sender, monkeypatch):
    """As if its packets vanished: nobody is told, so it is noticed by the others' progress."""
    monkeypatch.setattr(endpoint, "TEND_SECONDS", 0.05)
    proxy = Proxy()
    async with pair(front=proxy.front, count=3) as (near, far):
        await widen(near, far, 3)
        proxy.frozen.add(2)  # the second lane
        data = numbers(30_000_000)
        ends = (near, far) if sender == "near" else (far, near)
        await move(*ends, data)
        assert traffic(ends[1])["fallbacks_received"] == 1
        assert path_of(ends[1]).lane_count == 2
        await until(lambda: path_of(ends[0]).lane_count == 2)
        await move(*ends, data)
        assert traffic(ends[1])["fallbacks_received"] == 1
    await proxy.close()


async def test_several_lanes_stop_at_once(monkeypatch):
    """Such as those that go over one link. The others have finished before that is noticed."""
    monkeypatch.setattr(endpoint, "LAST_SECONDS", 0.3)
    proxy = Proxy()
    async with pair(front=proxy.front) as (near, far):
        await widen(near, far)
        proxy.bytes_left = {3: 1 << 20, 4: 1 << 20}
        await move(far, near, numbers(8_000_000))
        assert traffic(near)["fallbacks_received"] == 1
        assert path_of(near).lane_count == 2
    await proxy.close()


def paced(comm, bytes_per_second: int) -> None:
    """Cap what one connection sends (SO_MAX_PACING_RATE)."""
    comm.setsockopt(socket.SOL_SOCKET, 47, bytes_per_second)


@pytest.mark.slow
@pytest.mark.parametrize("sender", ["near", "far"])
async def test_auto_finds_what_pays(sender, monkeypatch):
    """Flows that are capped, each for itself: the more, the faster."""
    monkeypatch.setattr(opener, "_findings", {})
    rate = 30_000_000
    async with pair(count="auto") as (near, far):
        ends = (near, far) if sender == "near" else (far, near)
        data = numbers(20_000_000)
        for _ in range(60):
            for comm in ends:
                paced(comm._channel.transport.sock, rate)
                for lane in path_of(comm).lanes:
                    if lane is not None and lane.connection is not None:
                        paced(lane.connection.sock, rate)
            await move(*ends, data)
            (found,) = opener._findings.values() or [None]
            if found is not None and found.policy.is_settled:
                break
        assert found.policy.is_settled and found.policy.count >= 4
        assert near.statistics()["connections"] >= 5


async def test_auto_gives_up_lanes_that_do_not_pay(monkeypatch):
    monkeypatch.setattr(opener, "_findings", {})
    async with pair(count="auto") as (near, far):
        data = numbers(10_000_000)
        for _ in range(6):
            await move(far, near, data)
        (found,) = opener._findings.values()
        found.policy.give_up()
        found.policy._index = 2  # four lanes
        await move(far, near, data)
        await until(lambda: path_of(far).lane_count == 4 == path_of(near).lane_count)
        await move(far, near, data)
        assert traffic(near)["bytes_received"] > 0
        found.policy._index = 1
        for _ in range(4):
            await move(far, near, data)
            await move(near, far, data)
        assert path_of(near).lane_count == path_of(far).lane_count == 2
        found.policy._index = 0
        for _ in range(4):
            await move(far, near, data)
            await move(near, far, data)
        assert path_of(near).lane_count == path_of(far).lane_count == 0
        assert near.statistics()["fallbacks_received"] == near.statistics()["fallbacks_sent"] == 0
        assert endpoint.statistics()["open_count"] == 0

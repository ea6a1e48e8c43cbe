"""Reading and writing: the contract of ``Comm`` as distributed really uses it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import weakref

import dask
import numpy as np
import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.comm.core import Comm
from distributed.protocol import Serialized, deserialize, serialize, to_serialize
from distributed.utils import wait_for

from dask_fabric.errors import MessageTooLargeError

MEBI = 1 << 20


async def eventually(condition, seconds: float = 5.0) -> None:
    async def poll():
        while not condition():
            await asyncio.sleep(0)

    await wait_for(poll(), seconds)


async def test_messages_arrive_whole_and_in_order(pair):
    a, b = pair
    messages = [{"op": "x", "n": n, "data": b"." * (n * 997)} for n in range(200)]
    for message in messages:
        await a.write(message)
    assert [await b.read() for _ in messages] == messages


async def test_both_directions_at_once(pair):
    async def echo(comm, count):
        for n in range(count):
            await comm.write({"n": n})
            assert (await comm.read()) == {"n": n}

    await asyncio.gather(*(echo(comm, 100) for comm in pair))


async def test_write_resolves_to_bytes_written(pair):
    a, b = pair
    data = to_serialize(np.zeros(MEBI, "u1"))
    coroutine = a.write({"data": data})
    assert inspect.iscoroutine(coroutine)
    written = await coroutine
    assert type(written) is int
    assert MEBI <= written < MEBI + 8192
    await b.read()


async def test_a_write_that_is_never_awaited_can_be_closed(pair):
    a, b = pair
    a.write({"lost": 1}).close()
    await a.write({"kept": 2})
    assert await b.read() == {"kept": 2}


async def test_both_write_much_before_either_reads(pair):
    data = np.arange(12 * MEBI // 8)
    for comm in pair:
        await wait_for(comm.write({"x": to_serialize(data)}), 30)
    for comm in pair:
        np.testing.assert_array_equal((await comm.read())["x"], data)


async def test_write_while_a_read_is_pending(pair):
    a, b = pair
    reading = asyncio.ensure_future(a.read())
    await asyncio.sleep(0)
    await a.write("ping")
    assert await b.read() == "ping"
    await b.write("pong")
    assert await reading == "pong"


async def test_dask_sets_attributes_and_keeps_comms_in_sets(pair):
    a, _ = pair
    for name in ("_pool", "_server", "name", "allow_offload", "local_info", "remote_info"):
        setattr(a, name, getattr(a, name, None))
    assert a in {a}
    assert weakref.ref(a)() is a
    assert a in Comm._instances


async def test_addresses_of_both_ends_agree(pair, scheme):
    a, b = pair
    assert a.local_address == b.peer_address
    assert b.local_address == a.peer_address
    assert (a._local_addr, a._peer_addr) == (a.local_address, a.peer_address)
    assert a.local_address.startswith(f"{scheme}://127.0.0.1:")


async def test_handshake_tells_each_end_of_the_other(pair):
    a, b = pair
    assert a.remote_info["address"] == a.peer_address
    assert b.local_info["address"] == b.local_address
    assert a.same_host and b.same_host
    assert a.handshake_options["compression"] is None


async def test_extra_info(pair, security):
    a, b = pair
    if security is None:
        assert a.extra_info == b.extra_info == {}
    else:
        for comm in pair:
            subject = dict(field[0] for field in comm.extra_info["peercert"]["subject"])
            assert subject["commonName"] == "dask-internal"
            assert len(comm.extra_info["cipher"]) == 3


async def test_repr_names_both_ends_and_tells_closed(pair):
    a, _ = pair
    assert a.local_address in repr(a) and a.peer_address in repr(a)
    assert "closed" not in repr(a)
    await a.close()
    assert "closed" in repr(a)


class _Unpicklable:
    def __reduce__(self):
        raise TypeError("I cannot be pickled")


async def test_serialization_error_leaves_the_comm_usable(pair):
    a, b = pair
    with pytest.raises(TypeError, match="Could not serialize"):
        await a.write({"x": to_serialize(_Unpicklable())}, on_error="raise")
    await a.write("still here")
    assert await b.read() == "still here"


def _fail_with(kind):
    raise kind("from the test")


class _FailsToUnpickle:
    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return _fail_with, (self.kind,)


@pytest.mark.parametrize("kind", [ValueError, OSError, AttributeError])
async def test_deserialization_error_leaves_the_comm_usable(pair, kind):
    a, b = pair
    await a.write({"x": to_serialize(_FailsToUnpickle(kind))})
    with pytest.raises(kind, match="from the test"):
        await b.read()
    assert not b.closed()
    await a.write("still here")
    assert await b.read() == "still here"


async def test_eoferror_in_deserialization_closes_the_comm(pair):
    a, b = pair
    await a.write({"x": to_serialize(_FailsToUnpickle(EOFError))})
    with pytest.raises(CommClosedError):
        await b.read()
    assert b.closed()
    with pytest.raises(CommClosedError):
        await a.read()


async def test_serializers_see_sender_recipient_and_options(pair):
    from distributed.protocol.serialize import pickle_loads, register_serialization_family

    seen = {}

    def dumps(x, context=None):
        seen.update(context)
        return {"serializer": "fabric-test"}, [b"payload"]

    register_serialization_family("fabric-test", dumps, lambda header, frames: "loaded")
    a, b = pair
    await a.write({"x": to_serialize(object())}, serializers=["fabric-test"], on_error="raise")
    assert (await b.read())["x"] == "loaded"
    assert seen["sender"]["address"] == a.local_address
    assert seen["recipient"]["address"] == a.peer_address
    assert seen["compression"] is None
    assert callable(pickle_loads)


async def test_deserializers_are_kept_to(pair):
    a, b = pair
    await a.write({"x": to_serialize(123)}, serializers=["pickle"])
    with pytest.raises(TypeError):
        await b.read(deserializers=["msgpack"])
    await a.write({"x": to_serialize(123)}, serializers=["pickle"])
    assert (await b.read(deserializers=["pickle"]))["x"] == 123


@pytest.mark.parametrize("payload", [123, b"z" * (8 * MEBI)], ids=["small", "large"])
async def test_pass_through_without_deserialization(open_pair, payload):
    a, b = await open_pair(deserialize=False)
    message = {"x": to_serialize(payload), "y": Serialized(*serialize(payload)), "z": "plain"}
    await a.write(message)
    await b.write(await b.read())
    passed = await a.read()
    assert passed["z"] == "plain"
    for key in "xy":
        got = passed[key]
        assert isinstance(got, Serialized)
        assert deserialize(got.header, got.frames) == payload


async def test_arrays_come_back_as_they_were(pair):
    a, b = pair
    frozen = np.arange(1000)
    frozen.flags.writeable = False
    arrays = [
        np.arange(MEBI),
        np.asfortranarray(np.random.default_rng(0).random((300, 200))),
        np.empty((0, 3)),
        np.array(7.0),
        frozen,
    ]
    await a.write({"arrays": [to_serialize(array) for array in arrays]})
    for got, sent in zip((await b.read())["arrays"], arrays, strict=True):
        np.testing.assert_array_equal(got, sent)
        assert got.dtype == sent.dtype
        assert got.flags.writeable == sent.flags.writeable


@pytest.mark.parametrize("allow_offload", [True, False])
async def test_offloading_runs_in_another_thread_only_where_allowed(pair, allow_offload):
    import threading

    a, b = pair
    a.allow_offload = b.allow_offload = allow_offload
    await a.write({"x": to_serialize(_NamesItsThread(64 * MEBI))})
    got = (await b.read())["x"]
    here = threading.current_thread().name
    assert (got.pickled_in != here) is allow_offload
    assert (got.unpickled_in != here) is allow_offload


class _NamesItsThread:
    def __init__(self, nbytes):
        self.data = bytes(nbytes)

    def __sizeof__(self):
        return len(self.data)

    def __getstate__(self):
        import threading

        return {"data": self.data, "pickled_in": threading.current_thread().name}

    def __setstate__(self, state):
        import threading

        self.__dict__.update(state, unpickled_in=threading.current_thread().name)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_an_interrupted_read_aborts_and_passes_unchanged(pair, how):
    a, b = pair
    if how == "timeout":
        with pytest.raises(asyncio.TimeoutError):
            await wait_for(a.read(), 0.01)
    else:
        task = asyncio.ensure_future(a.read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert a.closed()
    with pytest.raises(CommClosedError):
        await b.read()


@pytest.mark.own
async def test_a_comm_forgotten_while_open_is_closed_with_a_warning(
    scheme, listen_args, connect_args, caplog
):
    accepted = asyncio.Queue()
    async with listen(f"{scheme}://127.0.0.1", accepted.put, **listen_args) as listener:
        comm = await connect(listener.contact_address, **connect_args)
        peer = await accepted.get()
    await eventually(lambda: gc.collect() == 0)
    with caplog.at_level(logging.WARNING, "dask_fabric"):
        del comm
        gc.collect()
    assert "Closing dangling" in caplog.text
    with pytest.raises(CommClosedError):
        await wait_for(peer.read(), 5)
    await peer.close()


@pytest.mark.own
async def test_what_the_peer_would_refuse_is_not_sent(open_pair):
    with dask.config.set({"fabric.limits.frames": 2, "fabric.limits.message": "1 MiB"}):
        a, b = await open_pair()
    with pytest.raises(MessageTooLargeError, match=r"3 frames.*fabric\.limits\.frames"):
        await a.write({"op": "x", "data": [to_serialize(np.ones(10)) for _ in range(3)]})
    with pytest.raises(MessageTooLargeError, match=r"fabric\.limits\.message"):
        await a.write({"op": "x", "data": to_serialize(np.ones(1 << 20))})
    await a.write("small")
    assert await b.read() == "small"


@pytest.mark.own
async def test_statistics_count_messages_and_name_paths(pair):
    a, b = pair
    before = a.statistics()["messages_sent"]
    await a.write("x")
    await b.read()
    statistics = a.statistics()
    assert statistics["messages_sent"] == before + 1
    assert statistics["peer_address"] == a.peer_address
    scheme = a.local_address.partition("://")[0]
    path = {"fabric": "cma", "fabric+ucx": "ucx", "fabric+ofi": "ofi"}.get(scheme, "stream")
    assert statistics["paths"] == a.paths == {"host": path}

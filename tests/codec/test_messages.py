"""Messages without payloads, and payloads that are not arrays."""

import datetime
import enum
import gc
import logging
import operator
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dask.config import set as set_config
from distributed.protocol import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    register_serialization_family,
    serialize,
)
from distributed.protocol.serialize import families
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_fabric.codec.codec import Codec
from dask_fabric.comm.serialize.distributed import make_dialect

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.sets(st.integers(0, 99)),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(0, 9), inner)
    ),
    max_leaves=20,
)
marked = plain.map(Serialize) | plain.map(ToPickle)
messages = st.recursive(
    plain | marked,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Colour(enum.Enum):
    RED = 1


class Fragile:
    def __reduce__(self):
        raise ValueError("never to be pickled")


class Truncated:
    def __reduce__(self):
        return _end_of_file, ()


def _end_of_file():
    raise EOFError("the data ends here")


@given(message=messages)
def test_messages_arrive_as_they_do_by_tcp(channel, same, message):
    same(channel.send(message), channel.send_by_tcp(message))


@settings(max_examples=50)
@given(message=messages)
def test_messages_pass_through_a_scheduler(channel, same, message):
    same(channel.forward(message), channel.forward_by_tcp(message))


@settings(max_examples=50)
@given(message=messages)
def test_undeserialized_messages_are_what_tcp_makes_of_them(channel, same, message):
    same(channel.send(message, deserialize=False), channel.send_by_tcp(message, deserialize=False))


def test_a_message_without_payloads_is_its_msgpack(codec):
    message = {"op": "ping", 1: (b"x", 2.5)}
    assert codec.encode(message) == (msgpack.packb(message), [])


def test_a_header_may_arrive_in_any_memory(codec):
    header, frames = codec.encode({"x": Serialize(b"abc"), "y": 1})
    for received in (header, bytearray(header), memoryview(bytearray(header)), memoryview(header)):
        assert codec.decode(received, frames) == {"x": b"abc", "y": 1}
    assert codec.decode(memoryview(bytearray(b"\xa3abc")), []) == "abc"


@pytest.mark.parametrize(
    "value",
    [
        Serialize(Serialize(1)),
        Serialize(Serialized(*serialize([1, 2]))),
        Serialize([1, Serialize(np.arange(3)), ToPickle(2)]),
        Serialize({"a": np.arange(3), "b": (np.ones(2), {np.int64})}),
        Serialize({(1, "t"): np.arange(3)}),
        Serialize(memoryview(b"abcd")),
        Serialize(bytearray(b"abcd")),
        Serialize(np.float64(2.5)),
        Serialize(pa.table({"a": [1, 2], "b": ["x", None]})),
        Serialize(operator.add),
        ToPickle(np.arange(5)),
        ToPickle(np.arange(10_000)),
        ToPickle(b"x" * 100_000),
        ToPickle([np.arange(5), b"x" * 100_000]),
        {1, 2, (3, 4)},
        {"x": {"a", "b"}},
        datetime.datetime(2026, 1, 1),
        [1j, {"deep": [datetime.timedelta(1), object]}],
        {"__Pickled__": 1},
        {"__Payload__": 7},
        {"__Payload__": "x", "y": 1},
        {"__Payload__": 1, "y": Serialize(1)},
        {"__Payload__": True},
        {"__Payload__": 0},
        msgpack.ExtType(5, b"xyz"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_special_values(channel, same, value):
    if value == {"__Pickled__": 1}:
        assert channel.send(value) == value  # which tcp takes for one of its own
        return
    same(channel.send(value), channel.send_by_tcp(value))
    same(channel.send({"x": [value]}), channel.send_by_tcp({"x": [value]}))


def test_enums_need_their_module_to_be_allowed(channel):
    with set_config({"distributed.scheduler.allowed-imports": [__name__.partition(".")[0]]}):
        assert channel.send([Colour.RED]) == channel.send_by_tcp([Colour.RED])
    from distributed.core import Status

    assert channel.send(Status.running) is Status.running


def test_pandas(channel):
    frame = pd.DataFrame({"a": np.arange(5), "b": list("abcde")})
    frame["c"] = pd.Categorical(list("xyxyx"))
    for wrap in (Serialize, ToPickle):
        pd.testing.assert_frame_equal(channel.send({"df": wrap(frame)})["df"], frame)
    pd.testing.assert_frame_equal(channel.forward({"df": Serialize(frame)})["df"], frame)
    index = channel.send(Serialize({"i": frame.set_index("b").index}))["i"]
    pd.testing.assert_index_equal(index, frame.set_index("b").index)


def test_pickled_objects_keep_their_writeability(channel):
    readonly = np.arange(100.0)
    readonly.flags.writeable = False
    for array in (readonly, np.arange(100.0)):
        sent = pd.Series(array, copy=False)
        for message in (Serialize(sent), Serialize([sent]), ToPickle(sent)):
            received = channel.send(message)
            expected = channel.send_by_tcp(message)
            received, expected = (x[0] if type(x) is list else x for x in (received, expected))
            writeable = [x.array._ndarray.flags.writeable for x in (received, expected)]
            assert writeable[0] == writeable[1]


def test_what_was_pickled_or_serialized_before_is_sent_as_it_is(codec, channel):
    header, frames = serialize(np.arange(4))
    made = Serialized(header, frames)
    before = dict(header)
    np.testing.assert_array_equal(channel.send({"x": made})["x"], np.arange(4))
    assert made.header == before
    pickled = Pickled({"pickled-obj": pickle.dumps([1, 2]), "num-sub-frames": 0}, [])
    assert channel.send({"x": pickled}) == {"x": [1, 2]}
    assert channel.send({"x": pickled}, deserialize=False) == {"x": [1, 2]}


def test_shards_of_a_tcp_peer_can_be_forwarded(channel):
    array = np.arange(1000)
    sharded = channel.send_by_tcp(Serialize(array), deserialize=False, frame_split_size=999)
    assert len(sharded.frames) > 1
    np.testing.assert_array_equal(channel.send({"x": sharded})["x"], array)


def test_large_pickles_are_frames(codec):
    header, frames = codec.encode(ToPickle(b"x" * 100_000))
    assert len(header) < 100 and len(frames) == 1
    header, frames = codec.encode(ToPickle(b"x" * 1000))
    assert len(header) > 1000 and not frames


def test_frames_are_contiguous_bytes_and_not_sharded(codec):
    with set_config({"distributed.comm.shard": "1kiB"}):
        values = [np.ones((30, 40)).T, memoryview(np.arange(4000)), b"x" * 70_000_000]
        _, frames = codec.encode([Serialize(value) for value in values])
    assert [memoryview(frame).nbytes for frame in frames] == [9600, 32000, 70_000_000]
    for frame in frames:
        view = memoryview(frame)
        assert (view.ndim, view.itemsize, view.contiguous) == (1, 1, True)


def test_unknown_types_fall_back_to_pickle(channel, caplog):
    with caplog.at_level(logging.INFO, "distributed.protocol.core"):
        assert channel.send({"x": 1j, "y": Serialize(b"z")}) == {"x": 1j, "y": b"z"}
    assert "falling back to pickle" in caplog.text
    caplog.clear()
    assert channel.send({"x": 1}) == {"x": 1}
    assert not caplog.text


@pytest.mark.parametrize(
    "message", [{"x": 2**64}, {"x": object.__new__(Fragile)}, ["\ud800"]], ids=["int", "obj", "str"]
)
def test_messages_that_cannot_be_sent_fail_as_by_tcp(codec, channel, caplog, message):
    with pytest.raises(Exception) as by_tcp:
        channel.send_by_tcp(message)
    caplog.clear()
    with caplog.at_level(logging.INFO), pytest.raises(type(by_tcp.value)):
        codec.encode(message)
    said = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert ("distributed.protocol.core", "CRITICAL", "Failed to Serialize") in said
    assert ("distributed.comm.utils", "INFO", f"Unserializable Message: {message}") in said
    assert ("distributed.comm.utils", "ERROR") in [(name, level) for name, level, _ in said]
    assert codec.encode({"x": 1}) == (msgpack.packb({"x": 1}), [])


def test_on_error_decides_about_payloads(codec, channel):
    message = {"x": Serialize(Fragile())}
    header, frames = codec.encode(message, on_error="message")
    with pytest.raises(TypeError, match="Could not serialize object of type Fragile"):
        codec.decode(header, channel.receive(frames))
    assert codec.decode(header, frames, deserialize=False)["x"].header["serializer"] == "error"
    with pytest.raises(TypeError, match="Could not serialize object of type Fragile"):
        codec.encode(message, on_error="raise")


def test_serializers_and_deserializers_are_obeyed(channel):
    message = {"x": Serialize([1, 2]), "y": Serialize(np.arange(3))}
    with pytest.raises(TypeError, match="only able to deserialize"):
        channel.send(message, deserializers=["pickle"])
    with pytest.raises(TypeError, match="Could not serialize"):
        channel.send(message, serializers=["msgpack"], on_error="raise")
    for serializers in (["dask", "pickle"], ["pickle"], ["dask", "msgpack", "pickle"]):
        received = channel.send(message, serializers=serializers, deserializers=serializers)
        assert received["x"] == [1, 2] and received["y"].tolist() == [0, 1, 2]


def test_families_of_users(channel):
    def dump(value):
        return {"word": "mine"}, [str(value).encode()]

    def load(header, frames):
        return header["word"], bytes(frames[0])

    register_serialization_family("user", dump, load)
    try:
        for value in (7, np.arange(2)):
            assert channel.send(Serialize(value), serializers=["user"]) == (
                "mine",
                str(value).encode(),
            )
    finally:
        del families["user"]


def test_context_reaches_the_serializers(channel):
    seen = []

    def dump(value, context=None):
        seen.append(context)
        return {}, []

    register_serialization_family("user", dump, lambda header, frames: None)
    try:
        channel.send(Serialize(7), serializers=["user"], context={"sender": "me"})
    finally:
        del families["user"]
    assert seen == [{"sender": "me"}]


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_compression_is_as_negotiated(codec, channel, same, size):
    message = {
        "zeros": Serialize(b"\0" * size),
        "array": Serialize(np.zeros(size, "u1")),
        "mixed": Serialize([np.zeros(size, "u1"), np.random.default_rng(0).bytes(size)]),
        "pickle": ToPickle(np.zeros(size, "u1")),
    }
    context = {"compression": "zlib"}
    _, frames = codec.encode(message, context=context)
    assert (sum(map(len, frames)) < 1.1 * size) == (size > 10_000)
    same(channel.send(message, context=context), channel.send_by_tcp(message, context=context))
    forwarded = channel.forward(message, context=context)
    same(forwarded, channel.forward_by_tcp(message, context=context))
    same(
        channel.send(message, False, context=context),
        channel.send_by_tcp(message, False, context=context),
    )
    with pytest.raises(KeyError):
        codec.encode(message, context={"compression": "unheard of"})


def test_pickle_protocol_of_the_handshake(codec):
    _, frames = codec.encode(Serialize({1}), context={"pickle-protocol": 4})
    assert b"\x80\x04" in bytes(frames[0])[:2]


def test_failing_to_decode_is_logged(caplog):
    codec = Codec(make_dialect())  # which logs few of them
    header, frames = codec.encode(ToPickle(Truncated()))
    with pytest.raises(EOFError):
        codec.decode(header, frames)
    assert ("distributed.protocol.core", logging.CRITICAL, "Failed to deserialize") in (
        caplog.record_tuples
    )
    assert "truncated data stream" in caplog.text


def nest(depth, kind):
    message = 1
    for _ in range(depth):
        message = (message,) if kind is tuple else {"a": message}
    return message


def depth_of(message):
    """Without recursion, which Python limits more narrowly than msgpack."""
    depth = 0
    while type(message) is not int:
        (message,) = message.values() if type(message) is dict else message
        depth += 1
    return depth


@pytest.mark.parametrize("kind", [tuple, dict])
@pytest.mark.parametrize("depth", [100, 255, 511, 1000, 1022, 1023, 1024, 1025, 3000])
def test_deep_nesting_ends_where_it_does_by_tcp(channel, caplog, kind, depth):
    caplog.set_level(logging.CRITICAL + 1, "distributed.comm.utils")  # repr() recurses, too
    message = nest(depth, kind)
    try:
        channel.send_by_tcp(message)
    except Exception as error:
        with pytest.raises(type(error)):
            channel.send(message)
    else:
        assert depth_of(channel.send(message)) == depth


def test_a_message_inside_a_message(codec, channel):
    """Serializing a key of a user's may itself use the codec."""

    class Reentrant(dict):
        def items(self):
            self.inner = channel.send({"inner": {1}, "p": ToPickle(2)})
            return super().items()

    outer = Reentrant(a={1}, p=ToPickle(3))
    assert channel.send([outer, {2}]) in (({"a": {1}, "p": 3}, {2}), [{"a": {1}, "p": 3}, {2}])


def test_threads_share_a_codec(channel):
    barrier = threading.Barrier(4)

    def work(number):
        barrier.wait()
        for i in range(200):
            message = {"n": number, "i": i, "s": {number, i}, "p": ToPickle([number] * i)}
            assert channel.send(message) == {**message, "p": [number] * i}
        return True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)


def test_packers_of_failed_and_large_messages_leave_no_garbage(codec):
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(OverflowError):
            codec.encode({"x": 2**64})
        codec.encode({"x": b"x" * 2_000_000})
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [item for item in gc.garbage if isinstance(item, msgpack.Packer)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()

"""Large bytes and text of a message become frames, wherever they are in it."""

import gc
import pickle
import struct

import msgpack
import pytest
from distributed.protocol import Serialize, ToPickle
from hypothesis import given
from hypothesis import strategies as st

KIB, MIB = 1 << 10, 1 << 20

small = st.none() | st.integers(-5, 70_000) | st.text(max_size=40) | st.binary(max_size=300)
large = st.builds(
    lambda kind, letter, nbytes: kind(letter * nbytes),
    st.sampled_from([str, lambda text: text.encode(), lambda text: bytearray(text.encode())]),
    st.sampled_from("aé€"),
    st.integers(30 * KIB, 80 * KIB),
)
payloads = st.builds(Serialize, st.lists(small, max_size=2)) | st.builds(ToPickle, small)
messages = st.recursive(
    small | large | payloads,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(message=messages)
@pytest.mark.parametrize("deserialize", [True, False])
def test_they_arrive_as_they_do_by_tcp(channel, same, message, deserialize):
    ours = channel.send(message, deserialize=deserialize)
    assert_same_but_for_serialized(
        same, ours, channel.send_by_tcp(message, deserialize=deserialize)
    )


def assert_same_but_for_serialized(same, left, right):
    if type(left) in (dict, tuple):
        assert type(left) is type(right) and len(left) == len(right)
        if type(left) is dict:
            assert list(left) == list(right)
            left, right = left.values(), right.values()
        for a, b in zip(left, right, strict=True):
            assert_same_but_for_serialized(same, a, b)
    elif hasattr(left, "header"):
        assert type(left) is type(right)  # whose headers tell how it was split
    else:
        same(left, right)


@pytest.mark.parametrize("deserialize", [True, False])
@pytest.mark.parametrize(
    "value", [bytes(MIB), "x" * MIB, "€" * MIB], ids=["bytes", "text", "long characters"]
)
def test_the_header_stays_small(codec, value, deserialize):
    message = {"op": "x", "a": [value, {"b": value}], value: 1}
    header, frames = codec.encode(message)
    assert len(header) < 1 * KIB and len(frames) == 3
    frames = [memoryview(bytearray(frame)) for frame in frames]
    assert codec.decode(header, frames, deserialize) == {
        "op": "x", "a": (value, {"b": value}), value: 1
    }  # fmt: skip


def test_so_it_does_where_there_are_many_of_some_size(codec):
    for message in (
        [bytes(20 * KIB)] * 1000,
        ["x" * 20 * KIB] * 1000,
        [ToPickle("x" * 20 * KIB)] * 1000,
    ):
        header, frames = codec.encode(message)
        assert len(header) < 3 * MIB
        got = codec.decode(header, [memoryview(bytearray(frame)) for frame in frames])
        assert list(got) == [getattr(item, "data", item) for item in message]


def test_messages_of_some_size_stay_as_they_are(codec):
    for message in ([bytes(60 * KIB)], ["x" * 30 * KIB] * 2, [1] * 200_000):
        assert codec.encode(message) == (msgpack.packb(message), [])


def test_large_bytes_are_compressed_as_other_frames(codec):
    header, (frame,) = codec.encode({"x": bytes(MIB)}, context={"compression": "zlib"})
    assert len(frame) < 10 * KIB
    assert codec.decode(header, [frame]) == {"x": bytes(MIB)}


def test_compression_does_not_bring_pickles_back_into_the_header(codec):
    message = ToPickle([list(range(100_000)), bytearray(MIB), pickle.PickleBuffer(bytes(MIB))])
    header, frames = codec.encode(message, context={"compression": "zlib"})
    assert len(header) < 1 * KIB
    assert codec.decode(header, frames)[:2] == message.data[:2]


def test_what_they_look_like_to_a_peer(codec):
    """As any pickle with its buffers, which the first version has decoded too."""
    header, (frame,) = codec.encode([bytes(MIB)])
    mark, count, kind, frame_count, nbytes = struct.unpack_from("<BIBIQ", header)
    assert (mark, count, kind, frame_count) == (0xC1, 1, 3, 1)
    pickled = header[18 : 18 + nbytes]
    assert pickle.loads(pickled, buffers=[frame]) == bytes(MIB)
    assert msgpack.unpackb(header[18 + nbytes :]) == [{"__Payload__": 1}]


def test_the_collector_may_free_them_in_a_cycle(codec):
    header, frames = codec.encode([bytes(MIB), "x" * MIB])
    cycle = [codec.begin([bytes(MIB)]), frames, *frames, *map(memoryview, frames)]
    cycle.append(cycle)
    del cycle, frames
    gc.collect()
    assert len(header) < KIB


def test_what_is_no_bytes_is_left_alone(codec):
    message = [msgpack.ExtType(5, bytes(MIB)), msgpack.Timestamp(1)]
    header, frames = codec.encode(message)
    assert not frames and codec.decode(header, []) == tuple(message)

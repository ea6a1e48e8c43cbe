import numpy as np
import pytest
from distributed.protocol import Serialize, Serialized, dask_deserialize, dask_serialize, loads
from distributed.protocol import dumps as tcp_dumps
from distributed.protocol.numpy import deserialize_numpy_ndarray, serialize_numpy_ndarray
from distributed.protocol.serialize import families, merge_and_deserialize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

dtypes = hnp.scalar_dtypes() | hnp.array_dtypes() | st.just(np.dtype("M8"))
layouts = st.sampled_from(
    [
        lambda x: x,
        np.asfortranarray,
        lambda x: x.T,
        lambda x: x[..., ::2] if x.ndim else x,
        lambda x: x[::-1] if x.ndim else x,
        lambda x: np.broadcast_to(x, (2, *x.shape)),
        lambda x: np.broadcast_to(x[..., np.newaxis], (*x.shape, 3)),
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: x[:0] if x.ndim else x,
    ]
)


@st.composite
def arrays(draw):
    dtype = draw(dtypes)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = draw(layouts)(draw(hnp.arrays(dtype, shape)))
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


@given(array=arrays())
def test_arrays_arrive_as_they_do_by_tcp(channel, same, array):
    expected = channel.send_by_tcp(Serialize(array))
    same(channel.send(Serialize(array)), expected)
    same(channel.forward({"data": {"k": Serialize(array)}}), {"data": {"k": expected}})
    same(channel.send(Serialize({"k": [array]})), channel.send_by_tcp(Serialize({"k": [array]})))


@given(array=arrays())
def test_undeserialized_arrays_are_what_tcp_makes_of_them(channel, same, array):
    ours = channel.send(Serialize(array), deserialize=False)
    theirs = channel.send_by_tcp(Serialize(array), deserialize=False)
    assert type(ours) is Serialized
    if array.flags.forc and 1 not in array.shape and 0 not in array.strides:
        assert ours.header == theirs.header  # strides of axes of length one are arbitrary
    assert ours.header.keys() == theirs.header.keys()
    assert list(map(bytes, ours.frames)) == list(map(bytes, theirs.frames))
    same(loads(channel.receive(tcp_dumps(ours))), channel.send(Serialize(array)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4)),
        np.zeros((3, 4), order="F"),
        np.array(7.5),
        np.zeros(5, "M8[ns]"),
        np.arange(3).astype("m8[25s]"),
        np.array([b"abc", b"d"]),
        np.array(["abc", "dé"]),
        np.zeros(3, ">i4"),
        np.zeros(3, "g"),
        np.zeros(3, "?"),
        np.zeros(3, "F"),
    ],
    ids=lambda array: f"{array.dtype.str}-{array.shape}",
)
def test_plain_arrays_are_not_copied(codec, channel, array):
    header, (frame,) = codec.encode({"x": Serialize(array)})
    assert len(header) < 80
    assert np.shares_memory(np.frombuffer(frame, "u1"), array)
    (received,) = channel.receive([frame])
    decoded = codec.decode(header, [received])["x"]
    assert np.shares_memory(np.frombuffer(received, "u1"), decoded)
    assert decoded.flags.writeable and decoded.dtype == array.dtype


def test_a_readonly_array_comes_back_readonly_over_its_frame(codec, channel):
    array = np.arange(10)
    array.flags.writeable = False
    header, frames = codec.encode(Serialize(array))
    (received,) = channel.receive(frames)
    decoded = codec.decode(header, [received])
    assert not decoded.flags.writeable
    assert np.shares_memory(np.frombuffer(received, "u1"), decoded)


def test_a_frame_in_readonly_memory_is_copied_for_a_writeable_array(codec):
    header, frames = codec.encode(Serialize(np.arange(10)))
    decoded = codec.decode(header, [bytes(frames[0])])
    decoded += 1
    assert decoded.tolist() == list(range(1, 11))


def test_a_frame_keeps_its_array_alive(codec):
    header, frames = codec.encode(Serialize(np.arange(1000)))
    assert codec.decode(header, [bytearray(frames[0])]).tolist() == list(range(1000))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], object),
        np.zeros(3, [("a", "i4"), ("b", "U3")]),
        np.zeros(3, "V5"),
        np.zeros(3, "S0"),
        np.arange(4).reshape(2, 2).view(np.matrix),
        np.ma.masked_array([1, 2, 3], [True, False, False]),
        np.ma.masked,
        np.recarray(3, [("a", "i4")]),
        np.broadcast_to(np.arange(3), (1000, 3)),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}",
)
def test_special_arrays_are_left_to_distributed(channel, array):
    received = channel.forward({"x": Serialize(array)})["x"]
    expected = channel.send_by_tcp({"x": Serialize(array)})["x"]
    assert type(received) is type(expected) and received.dtype == array.dtype
    np.testing.assert_array_equal(np.ma.getdata(received), np.ma.getdata(array))
    np.testing.assert_array_equal(np.ma.getmaskarray(received), np.ma.getmaskarray(array))


def test_broadcasts_stay_small(codec):
    _, frames = codec.encode(Serialize(np.broadcast_to(np.float64(1), (1000, 1000))))
    assert sum(map(len, frames)) == 8


class Mine(np.ndarray):
    pass


def test_subclasses_are_left_to_distributed(channel):
    received = channel.send(Serialize(np.arange(3).view(Mine)))
    assert type(received) is type(channel.send_by_tcp(Serialize(np.arange(3).view(Mine))))


def test_a_serializer_of_a_user_wins(channel):
    def dump(array):
        return {"mine": True}, [b"!"]

    dask_serialize.register(np.ndarray)(dump)
    dask_deserialize.register(np.ndarray)(lambda header, frames: (header, bytes(frames[0])))
    try:
        assert channel.send(Serialize(np.arange(3))) == ({"mine": True}, b"!")
    finally:
        dask_serialize.register(np.ndarray)(serialize_numpy_ndarray)
        dask_deserialize.register(np.ndarray)(deserialize_numpy_ndarray)


def test_a_deserializer_of_a_user_wins(codec):
    header, frames = codec.encode(Serialize(np.arange(3)))
    dask_deserialize.register(np.ndarray)(lambda header, frames: header["shape"])
    try:
        assert codec.decode(header, frames) == (3,)
    finally:
        dask_deserialize.register(np.ndarray)(deserialize_numpy_ndarray)


def test_a_family_of_a_user_wins(channel):
    own = families["dask"]
    families["dask"] = (lambda x: ({}, [b"?"]), lambda header, frames: bytes(frames[0]), False)
    try:
        assert channel.send(Serialize(np.arange(3))) == b"?"
    finally:
        families["dask"] = own


def test_undeserialized_arrays_can_be_deserialized_by_distributed(codec, channel):
    message = {"x": Serialize(np.arange(6.0).reshape(2, 3, order="F"))}
    header, frames = codec.encode(message)
    passed = codec.decode(header, channel.receive(frames), deserialize=False)["x"]
    np.testing.assert_array_equal(
        merge_and_deserialize(passed.header, passed.frames), message["x"].data
    )


def test_many_dtypes_do_not_fill_the_memory(channel):
    for length in range(1, 600):
        array = np.zeros(2, f"S{length}")
        assert channel.send(Serialize(array)).dtype == array.dtype


@pytest.mark.parametrize("wrap", [lambda array: array, memoryview], ids=["array", "memoryview"])
def test_objects_of_more_than_2_gib_are_one_frame(codec, wrap):
    array = np.empty(3 << 30, "u1")  # never touched, so never in memory
    header, frames = codec.encode({"x": Serialize(wrap(array))})
    assert len(header) < 500 and [frame.nbytes for frame in frames] == [3 << 30]
    assert np.shares_memory(np.asarray(frames[0]), array)
    assert np.shares_memory(np.asarray(codec.decode(header, frames, False)["x"].frames[0]), array)

"""False headers are refused before anything is allocated or unpickled."""

import re
import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
from distributed.protocol import Serialize, ToPickle
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_fabric.codec.codec import Codec
from dask_fabric.comm.serialize.distributed import make_dialect
from dask_fabric.errors import ProtocolError


class Guarded:
    """A codec that only records what it would deserialize."""

    def __init__(self):
        self.deserialized = []
        self.codec = Codec(
            make_dialect()._replace(
                pickle_loads=self._note,
                merge_and_deserialize=self._note,
                decompress=lambda names, frames, *limits: list(frames),
            )
        )

    def _note(self, *args, **kwargs):
        self.deserialized.append(args)
        return "deserialized"

    def decode(self, header, frames, **options):
        self.deserialized.clear()
        return self.codec.decode(header, frames, **options)


@pytest.fixture(scope="module")
def guarded():
    return Guarded()


def array_entry(flags=1, ndim=None, dtype=b"<f8", shape=(3,)):
    ndim = len(shape) if ndim is None else ndim
    return struct.pack(f"<4B{len(dtype)}s{len(shape)}Q", 1, flags, ndim, len(dtype), dtype, *shape)


def body_entry(kind=3, frames=0, body=b"pickle", nbytes=None):
    return struct.pack("<BIQ", kind, frames, len(body) if nbytes is None else nbytes) + body


def header_of(*entries, count=None, main=None):
    count = len(entries) if count is None else count
    main = msgpack.packb([{"__Payload__": i + 1} for i in range(count)]) if main is None else main
    return struct.pack("<BI", 0xC1, count) + b"".join(entries) + main


def collection_header(kind, headers=(), lengths=()):
    return {
        "is-collection": True,
        "type-serialized": kind,
        "sub-headers": headers,
        "frame-lengths": lengths,
    }


FRAME = [bytearray(24)]
BUT_FIRST = body_entry()


@pytest.mark.parametrize(
    ("header", "frames", "complaint"),
    [
        (b"", [], "ends before"),
        (b"\xc1", [], "table of payloads"),
        (b"\xc1\xff\xff\xff\xff", [], "claims 4294967295 payloads"),
        (header_of(count=1 << 31, main=b"\x90"), [], "claims 2147483648 payloads"),
        (header_of(BUT_FIRST), [b""], "have 0 frames, 1 came"),
        (b"\xa1x", [b""], "1 frames came with a message without payloads"),
        (header_of(BUT_FIRST, array_entry()), [], "without its frame"),
        (header_of(BUT_FIRST, array_entry()), [bytearray(23)], "24 bytes came in a frame of 23"),
        (header_of(BUT_FIRST, array_entry(flags=4)), FRAME, "unknown bits"),
        (header_of(BUT_FIRST, array_entry(ndim=65, shape=(1,) * 65)), FRAME, "65 dimensions"),
        (header_of(BUT_FIRST, array_entry(ndim=64)), FRAME, "table of payloads wants"),
        (header_of(BUT_FIRST, array_entry(shape=(1 << 62, 4))), FRAME, "larger than any memory"),
        (header_of(BUT_FIRST, array_entry(shape=(1 << 63,))), FRAME, "larger than any memory"),
        (header_of(array_entry(shape=(0, 1 << 62, 4))), [b""], "larger than any memory"),
        (header_of(array_entry(shape=(0, 4))), FRAME, "0 bytes came in a frame of 24"),
        *(
            (header_of(BUT_FIRST, array_entry(dtype=dtype)), FRAME, "dtype")
            for dtype in (
                b"",
                b"|O",
                b"O",
                b"<f8,<f8",
                b"<i8\0",
                b"|V8",
                b"|S0",
                b"<U0",
                b"f8",
                b"=f8",
                b"<f9",
                b"<f08",
                b"<M8[x]",
                b"<M8[1]",
                b"<f8[s]",
                b"\xff\xff\xff",
                b"<",
                b"<i8" * 40,
                b"(2,)f8",
                b"|S99999999999999999999",
                b"<T16",
                b"float64",
            )
        ),
        (header_of(BUT_FIRST, body_entry(kind=0)), [], "unknown kind 0"),
        (header_of(BUT_FIRST, body_entry(kind=6)), [], "unknown kind 6"),
        (header_of(BUT_FIRST, body_entry(frames=1)), [], "claims 1 frames of 0"),
        (header_of(BUT_FIRST, body_entry(frames=1 << 31)), FRAME, "claims 2147483648 frames of 1"),
        (header_of(BUT_FIRST, body_entry(nbytes=1 << 40)), [], "wants 1099511627776 more bytes"),
        (header_of(BUT_FIRST, body_entry(nbytes=(1 << 64) - 1)), [], "more bytes"),
        (header_of(BUT_FIRST, body_entry(kind=4)), [], "pickle came without its frame"),
        (header_of(BUT_FIRST, main=b""), [], "ends before"),
        (header_of(BUT_FIRST, main=b"\x81\xab__Payload__\x02"), [], "refers to a payload"),
        (header_of(BUT_FIRST, main=b"\x92\x81\xab__Payload__\x01"), [], "ends before"),
        (header_of(BUT_FIRST, main=b"\x81\xab__Payload__\x01\x01"), [], "goes on behind"),
        (header_of(BUT_FIRST, main=b"\x92\x81\xab__Payload__\x01\xc1"), [], "0xc1"),
        (header_of(BUT_FIRST, main=b"\x81\xd9\x0b__Payload__\xcd\xff\xff"), [], "refers to"),
        (b"\xdd\xff\xff\xff\xff\x01", [], "ends before"),
        (b"\xdf\xff\xff\xff\xff\x01", [], "ends before"),
        (b"\xc6\xff\xff\xff\xffx", [], "ends before"),
        (b"\xdd\x00\x01\x00\x00" * 1000 + b"\x01" * 66_000, [], "ends before"),
    ],
)
@pytest.mark.parametrize("deserialize", [True, False])
def test_lies_are_named(guarded, header, frames, complaint, deserialize):
    with pytest.raises(ProtocolError, match=complaint):
        guarded.decode(header, frames, deserialize=deserialize)
    assert not guarded.deserialized
    assert guarded.codec.offload_bytes(header, frames) >= 0


DEEP = b"\x91" * 5000 + b"\x01"
MALFORMED = [DEEP, b"\xa2\xff\xfe", b"\x81\x80\x01", b"\x81\x91\x80\x01", b"\xd4\xff\x00"]


@pytest.mark.parametrize("malformed", MALFORMED, ids=lambda msgpack: msgpack[:4].hex())
@pytest.mark.parametrize("deserialize", [True, False])
def test_msgpack_that_cannot_be_decoded_breaks_the_protocol(guarded, malformed, deserialize):
    special = msgpack.packb({"__Set__": True, "as-list": [1]})
    for header in (
        malformed,
        b"\x92" + special + malformed,
        header_of(BUT_FIRST, main=malformed),
        header_of(body_entry(kind=2, body=malformed)),
    ):
        with pytest.raises(ProtocolError, match="malformed"):
            guarded.decode(header, [], deserialize=deserialize)
        assert not guarded.deserialized


@pytest.mark.parametrize(
    ("kind", "header", "complaint"),
    [
        (2, [1], "is a tuple, not a map"),
        (5, 1, "is a int, not a map"),
        (5, {}, "pickle is missing"),
        (2, {"compression": 1}, "compressions of a payload are 1"),
        (5, {"pickled-obj": b"", "compression": "zlib"}, "compressions of a payload are 'zlib'"),
        (5, {"pickled-obj": "text"}, "pickle is missing"),
        (5, {"pickled-obj": b"", "compression": ["zlib"]}, "1 compressions of 0 frames"),
        (2, {"compression": [None, 3, {}]}, "3 compressions of 0 frames"),
        (2, {"compression": [{}]}, "compression of a frame is {}"),
        (2, {"split-num-sub-frames": 3}, "split-num-sub-frames of a payload is 3"),
        (2, {"split-num-sub-frames": [0]}, "split-offsets of a payload is None"),
        (2, {"split-num-sub-frames": [0], "split-offsets": []}, "1 frames in parts .* 0 offsets"),
        (2, {"split-num-sub-frames": [1.0], "split-offsets": [0]}, "1.0 parts of a frame"),
        (2, {"split-num-sub-frames": [-1], "split-offsets": [0]}, "-1 parts of a frame"),
        (2, {"split-num-sub-frames": [0], "split-offsets": [1]}, "begin at 1"),
        (2, {"split-num-sub-frames": [1], "split-offsets": [0]}, "1 parts of frames, 0 came"),
        (2, {"serializer": []}, "serializer of a payload is ()"),
        (2, {"is-collection": True}, "sub-headers of a payload is None"),
        (2, collection_header("object"), "collection of payloads is a 'object'"),
        (2, collection_header("list", [{}]), "1 parts of a collection have 0 lengths"),
        (2, collection_header("list", [1], [0]), "without header or length"),
        (2, collection_header("list", [{}], ["0"]), "without header or length"),
        (2, collection_header("list", [{}], [1]), "1 frames of 0 left"),
        (2, collection_header("list", [{}], [-1]), "-1 frames of 0 left"),
        (2, collection_header("dict", [{}], [0]), "without its key"),
        (
            2,
            collection_header("set", [collection_header("")], [0]),
            "collection of payloads is a ''",
        ),
    ],
)
def test_headers_of_payloads_that_lack_their_structure(guarded, kind, header, complaint):
    entry = body_entry(kind=kind, body=msgpack.packb(header))
    with pytest.raises(ProtocolError, match=complaint):
        guarded.decode(header_of(entry), [])
    assert not guarded.deserialized


def test_no_frame_is_taken_for_two(guarded):
    parts = {"split-num-sub-frames": [1] * 3, "split-offsets": [0] * 3}
    entry = body_entry(kind=2, frames=1, body=msgpack.packb(parts))
    with pytest.raises(ProtocolError, match="1 parts of a frame begin at 0"):
        guarded.decode(header_of(entry), FRAME)
    assert not guarded.deserialized


REFERENCES = [
    b"\x92\x81\xab__Payload__\x01\x81\xab__Payload__\x01",
    b"\x92\x81\xab__Payload__\x01\x82\xab__Payload__\x01\xab__Payload__\x01",
    b"\x92\x81\xab__Payload__\x01\x81\xab__Payload__\xd0\x01",
]


@pytest.mark.parametrize("main", REFERENCES)
@pytest.mark.parametrize("deserialize", [True, False])
def test_a_payload_is_deserialized_once(guarded, main, deserialize):
    with pytest.raises(ProtocolError, match="refers to payload 1 twice"):
        guarded.decode(header_of(BUT_FIRST, main=main), [], deserialize=deserialize)
    assert len(guarded.deserialized) == 1


@pytest.mark.parametrize("kind", [2, 5])
@pytest.mark.parametrize("deserialize", [True, False])
def test_the_header_of_a_payload_must_be_whole(guarded, kind, deserialize):
    for body in (b"", b"\x81", b"\xdd\x7f\xff\xff\xff", b"\x80\x80", b"\xc1"):
        with pytest.raises(ProtocolError, match=r"ends before|goes on behind|0xc1"):
            guarded.decode(header_of(body_entry(kind=kind, body=body)), [], deserialize=deserialize)


@pytest.mark.parametrize("error", [ValueError, TypeError, OverflowError, UnicodeError, KeyError])
def test_an_object_that_cannot_be_deserialized_fails_with_its_own_error(error):
    def fail(*args, **kwargs):
        raise error("of the user's object")

    codec = Codec(make_dialect()._replace(pickle_loads=fail, merge_and_deserialize=fail))
    for payload in (ToPickle({1}), Serialize({"a": {1}})):
        header, frames = codec.encode([payload])
        with pytest.raises(error, match="of the user's object"):
            codec.decode(header, frames)


def test_an_enum_that_is_not_known_here_is_no_fault_of_the_protocol(codec):
    unknown = {"__Enum__": True, "name": "x", "__module__": "distributed.x", "__name__": "X"}
    with pytest.raises(ImportError):
        codec.decode(msgpack.packb(unknown), [])


def test_what_the_lies_are_made_of_is_fine_when_true(guarded):
    header = header_of(BUT_FIRST, array_entry(), body_entry(kind=4, frames=1, body=b""))
    first, array, second = guarded.decode(header, [*FRAME, b"pickle"])
    assert (first, second) == ("deserialized", "deserialized")
    assert array.tolist() == [0, 0, 0]


MESSAGES = [
    {"op": "ping", "n": -5, "big": 1 << 40, "f": 2.5, "s": {1, 2}, "b": b"x" * 300, "t": "y" * 300},
    {"data": {"k": Serialize(np.arange(6.0).reshape(2, 3)), "p": ToPickle([1, 2])}},
    [Serialize({"a": np.arange(3)}), Serialize(np.zeros((2, 2), "M8[ns]", order="F"))],
    [ToPickle(b"z" * 70_000), ToPickle(np.arange(3)), Serialize("text")],
]


@pytest.fixture(scope="module")
def samples(codec):
    encoded = [codec.encode(message) for message in MESSAGES]
    return [(header, [bytes(frame) for frame in frames]) for header, frames in encoded]


@st.composite
def mutations(draw):
    """Functions that spoil a header."""

    def at(data):
        return draw(st.integers(0, max(0, len(data) - 1)))

    def spoil(header):
        header = bytearray(header)
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(st.sampled_from(["byte", "bit", "cut", "insert", "number"]))
            where = at(header)
            if kind == "byte":
                header[where : where + 1] = bytes([draw(st.integers(0, 255))])
            elif kind == "bit" and header:
                header[where] ^= 1 << draw(st.integers(0, 7))
            elif kind == "cut":
                del header[where : where + draw(st.integers(1, 20))]
            elif kind == "insert":
                header[where:where] = draw(st.binary(max_size=20))
            else:
                number = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
                header[where : where + 8] = struct.pack("<Q", number)
        return bytes(header)

    return spoil


def spoil_frames(draw, frames):
    frames = list(frames)
    kind = draw(st.sampled_from(["none", "none", "drop", "add", "resize", "swap"]))
    if kind == "drop" and frames:
        frames.pop()
    elif kind == "add":
        frames.append(b"more")
    elif kind == "resize" and frames:
        frames[0] = frames[0][:-1] or b"x"
    elif kind == "swap":
        frames.reverse()
    return frames


@settings(max_examples=500)
@given(data=st.data(), deserialize=st.booleans())
def test_spoiled_messages_do_no_harm(guarded, samples, data, deserialize):
    header, frames = data.draw(st.sampled_from(samples))
    header = data.draw(mutations())(header)
    frames = spoil_frames(data.draw, frames)
    tracemalloc.start()
    try:
        guarded.decode(header, frames, deserialize=deserialize)
    except ProtocolError as error:
        # What msgpack itself refuses may stand behind a payload, as may a second reference to it.
        assert not guarded.deserialized or re.search("malformed|twice", str(error))
    except MemoryError:
        raise
    except Exception:  # of msgpack or of distributed, as an ordinary message may cause
        pass
    finally:
        _, peak_nbytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_nbytes < 2_000_000


@given(header=st.binary(max_size=300), frames=st.lists(st.binary(max_size=40), max_size=3))
def test_noise_does_no_harm(guarded, header, frames):
    for noise in (header, b"\xc1" + header):
        try:
            guarded.decode(noise, frames)
        except ProtocolError as error:
            assert not guarded.deserialized or re.search("malformed|twice", str(error))
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            pass


items = (
    st.none()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
)
trees = st.recursive(
    items,
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner, max_size=40),
)


@given(message=trees, data=st.data())
def test_msgpack_is_refused_only_where_it_is_not_whole(codec, message, data):
    header = msgpack.packb(message)
    expected = msgpack.unpackb(header, use_list=False, strict_map_key=False)
    assert msgpack.packb(codec.decode(header, [])) == msgpack.packb(expected)
    end = data.draw(st.integers(0, len(header) - 1))
    with pytest.raises(ProtocolError):
        codec.decode(header[:end], [])

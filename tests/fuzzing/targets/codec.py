"""Messages: the table of payloads, their headers, arrays, compressed frames, and msgpack itself.

Nothing is unpickled here: what a peer pickles is code of its own.
"""

from __future__ import annotations

import struct
import zlib

import msgpack
import numpy as np
from distributed.protocol import Serialize, to_serialize
from distributed.protocol.serialize import ToPickle

from dask_fabric.codec.codec import Codec
from dask_fabric.comm.serialize import decompression
from dask_fabric.comm.serialize.distributed import codec as real
from dask_fabric.errors import LimitError

from ..pieces import Input, expand, many, part
from ..registry import target

_LIMIT_BYTES = 1 << 22
_FILL_BYTES = 128 << 10  # of a header: of more objects none is decoded in an event loop
_ARRAY, _PICKLED = 1, 5
_MAIN = msgpack.packb({"__Payload__": 1})


class Refused(Exception):
    """Stands for what distributed does with what is meant for it."""


def _refuse(*args, **kwargs):
    raise Refused


def _decode_special(item: dict) -> object:
    try:
        return real.dialect.msgpack_decode_default(item)
    except Exception as error:  # not ours: enumerations and sets of distributed
        raise Refused from error


class Dialect:
    """Distributed's, but for what would unpickle or run what a peer sends."""

    pickle_loads = staticmethod(_refuse)
    merge_and_deserialize = staticmethod(_refuse)
    msgpack_decode_default = staticmethod(_decode_special)

    def __getattr__(self, name: str) -> object:
        return getattr(real.dialect, name)


_codec = Codec(Dialect())


def _decoded(header: bytes, frames: list, deserialize: bool) -> object:
    """Decode a message; None where distributed would go on."""
    try:
        _codec.offload_bytes(header, frames, deserialize)
        return _codec.decode(header, frames, deserialize, None, _LIMIT_BYTES)
    except (Refused, zlib.error):
        return None
    except KeyError:  # a compression that nobody has
        return None
    except TypeError as error:
        if "NumPy writes no dtype as" not in str(error):
            raise
        return None


def _split(message: object) -> bytes:
    """Give a message as an input: its header, then its frames."""
    header, frames = real.encode(message)
    return part(header) + b"".join(part(bytes(frame)) for frame in frames)


_SMALL = np.arange(7, dtype="<i8")
MESSAGES = [
    {"op": "ping", "reply": True, "nested": [1, 2.5, None, "text", b"bytes", {"k": (1, 2)}]},
    {"x": to_serialize(_SMALL), "y": [to_serialize(np.zeros((3, 4), order="F")), "z"]},
    {"when": to_serialize(np.array(["2020-01-01"], "<M8[25s]")), "s": to_serialize(np.array("ab"))},
    {"o": to_serialize({"a": [1, "x", _SMALL]}), "t": ToPickle(len), "u": Serialize("text")},
    [{"op": "a", "d": to_serialize(_SMALL)}, {"op": "b"}, {"e": to_serialize(b"b" * 700)}],
]
_NAMES = (
    "__Payload__ __Set__ __Enum__ __Serialized__ as-list data serializer sub-header dtype shape "
    "strides writeable compression split-num-sub-frames split-offsets is-collection sub-headers "
    "frame-lengths type-serialized tuple list set dict key pickled-obj num-sub-frames zlib lz4 "
    "dask pickle error refused typestr <M8[25s] <m8[s/2] |S5 <U3 <f8"
)
WORDS = [msgpack.packb(name) for name in _NAMES.split()]
WORDS += [b"\xc1" + struct.pack("<I", 1), _MAIN, many(1 << 16), many(40_000)]


@target([bytes([bit]) + _split(one) for one in MESSAGES for bit in (0, 1)], WORDS, share=4)
def whole_message(data: bytes) -> None:
    """A header with its table, and frames."""
    given = Input(data)
    deserialize = bool(given.number() & 1)
    header = expand(given.part(), _FILL_BYTES)
    frames = []
    while given:
        frames.append(bytearray(expand(given.part())))
    _decoded(header, frames, deserialize)


def _headers(message: object) -> list[tuple[int, int, bytes]]:
    """Give kind, count of frames and body of the payloads of a message that are no arrays."""
    header, _ = real.encode(message)
    found, at = [], 5
    for _ in range(struct.unpack_from("<I", header, 1)[0]):
        kind, frame_count, nbytes = struct.unpack_from("<BIQ", header, at)
        if kind == _ARRAY:
            break
        at += 13 + nbytes
        found.append((kind, frame_count, header[at - nbytes : at]))
    return found


_BODIES = [one for message in MESSAGES[3:4] for one in _headers(message)]
_BODIES += [
    (3, 1, msgpack.packb({"serializer": "dask", "compression": ["zlib"]})),
    (3, 2, msgpack.packb({"split-num-sub-frames": [1, 1], "split-offsets": [0, 1]})),
    (_PICKLED, 1, msgpack.packb({"pickled-obj": b"\x80\5N.", "compression": [None]})),
    (
        3, 2,
        msgpack.packb({
            "is-collection": True, "type-serialized": "dict", "frame-lengths": [1, 1],
            "sub-headers": [{"key": "a", "serializer": "dask"}, {"key": "b", "dtype": "<m8[s]"}],
        }),
    ),
]  # fmt: skip


@target(
    [bytes([bit, kind, count]) + body for kind, count, body in _BODIES for bit in (0, 1)],
    WORDS,
    share=3,
)
def payload_header(data: bytes) -> None:
    """The header of one payload, in a table whose lengths are right."""
    given = Input(data)
    deserialize, kind, count = given.number() & 1, given.number(), given.number() % 16
    body = expand(given.rest(), _FILL_BYTES)
    entry = struct.pack("<BIQ", kind % 8, count, len(body)) + body
    frames = [bytearray(zlib.compress(bytes(100))) for _ in range(count)]
    _decoded(b"\xc1" + struct.pack("<I", 1) + entry + _MAIN, frames, bool(deserialize))


@target(
    [bytes([flags, ndim]) + part(text) + struct.pack("<4Q", 2, 3, 1, 0)
     for flags, ndim, text in ((1, 1, b"<i8"), (3, 2, b"|S5"), (0, 0, b"<U3"), (1, 4, b">c16"),
                               (1, 1, b"<M8[25s]"), (2, 3, b"|b1"))],
    [b"<M8[as]", b">m8[2ns]", b"|u1", b"<f16", b"<c32", b"|S", b"|V8", b"|O8", b"<f2"],
    share=2,
)  # fmt: skip
def array(data: bytes) -> None:
    """An array whose frame has the right size; NumPy agrees, and it can be sent on."""
    given = Input(data)
    flags, ndim, text = given.number(), given.number() % 66, given.part()[:255]
    lengths = [given.number(8) for _ in range(ndim)]
    nbytes = _nbytes_of(text, lengths)
    entry = bytes([_ARRAY, flags, ndim, len(text)]) + text
    entry += b"".join(length.to_bytes(8, "little") for length in lengths)
    header = b"\xc1" + struct.pack("<I", 1) + entry + _MAIN
    found = _decoded(header, [bytearray(nbytes)], True)
    assert found.dtype == np.dtype(text.decode()) and list(found.shape) == lengths
    again, frames = real.encode(to_serialize(found))
    assert _decoded(again, [bytearray(frame) for frame in frames], True).shape == found.shape
    passed = _decoded(header, [bytearray(nbytes)], False)
    assert tuple(passed.header["sub-header"]["shape"]) == found.shape


def _nbytes_of(text: bytes, lengths: list[int]) -> int:
    digits = bytes(byte for byte in text[2:].partition(b"[")[0] if 48 <= byte < 58)[:9]
    nbytes = int(digits or b"0") * (4 if text[1:2] == b"U" else 1)
    for length in lengths:
        nbytes *= length
    return nbytes if nbytes <= 1 << 16 else 0


@target(
    [
        msgpack.packb(MESSAGES[0]),
        b"\xdd\0\0\x27\x10" + many(10_000),
        msgpack.packb([1 << 63, -1.5]),
    ],
    WORDS,
    share=3,
)
def plain_message(data: bytes) -> None:
    """Msgpack without payloads; what decodes and is encoded again decodes the same."""
    header = expand(data, _FILL_BYTES)
    if header[:1] == b"\xc1":
        return
    found = _decoded(header, [], True)
    if found is None or b"__" in header:
        return
    again, frames = real.encode(found)
    third = real.encode(_decoded(again, [bytearray(frame) for frame in frames], True))
    assert frames or third == (again, frames)


_COMPRESSIONS = ("zlib", "lz4", "snappy", "zstd", None, "blosc", False)
_ZEROS = zlib.compress(bytes(200_000), 9)


_ZSTD = [b"\x28\xb5\x2f\xfd" + bytes([mode]) + bytes(12) for mode in (0, 0x20, 0x60, 0xA3)]


@target(
    [
        b"\0" + part(_ZEROS) + b"\4" + part(b"plain"),
        b"\1" + part(bytes(8)) + b"\2" + part(b"\xff" * 6),
        *(b"\3" + part(frame) for frame in _ZSTD),
    ]
)
def compressed(data: bytes) -> None:
    """Compressed frames: what they become stays below the limit of a message."""
    given = Input(data)
    names, frames = [], []
    while given and len(names) < 8:
        names.append(_COMPRESSIONS[given.number() % len(_COMPRESSIONS)])
        frames.append(given.part())
    assert isinstance(decompression.growth_bytes(names, frames), int)
    total_bytes = sum(map(len, frames))
    try:
        made = decompression.decompress(names, frames, total_bytes, 1 << 18)
    except (zlib.error, KeyError, ImportError):
        return
    except LimitError:
        assert any(names)
        raise
    assert sum(memoryview(frame).nbytes for frame in made) <= max(1 << 18, total_bytes)

"""Decompressed sizes are limited by `fabric.limits.message`."""

import pickle
import struct
import tracemalloc
import zlib

import msgpack
import numpy as np
import pytest
from distributed.comm import CommClosedError
from distributed.protocol import Serialize, Serialized, ToPickle, serialize
from distributed.protocol.compression import Compression, compressions

from dask_fabric.comm.serialize.decompression import decompress, growth_bytes
from dask_fabric.comm.serialize.distributed import codec
from dask_fabric.errors import LimitError, MessageTooLargeError

from .pairs import opened_pair

MEBI = 1 << 20
ZSTD = b"\x28\xb5\x2f\xfd"
# What the libraries write for zeros: a size, and what the size of the rest does not matter for.
CLAIMS = {
    "lz4, 2 GB": ("lz4", struct.pack("<I", 0x7E000000) + b"\0", 0x7E000000),
    "lz4, cut": ("lz4", b"\x05", 5),
    "snappy": ("snappy", b"\x80\x80\x80\x08rest", 16 * MEBI),
    "snappy, most": ("snappy", b"\xff\xff\xff\xff\x0frest", 2**32 - 1),
    "snappy, cut": ("snappy", b"\x80", 0),
    "zstd, one byte": ("zstd", ZSTD + b"\x20\xc8rest", 200),
    "zstd, two bytes": ("zstd", ZSTD + b"\x60\x00\x01rest", 512),
    "zstd, four bytes": ("zstd", ZSTD + b"\xa0" + struct.pack("<I", 3 * MEBI) + b"rest", 3 * MEBI),
    "zstd, eight bytes": ("zstd", ZSTD + b"\xe0" + struct.pack("<Q", 2**60) + b"rest", 2**60),
    "zstd, a window and a dictionary": (
        "zstd", ZSTD + b"\x83\x70\1\2\3\4" + struct.pack("<I", 9 * MEBI), 9 * MEBI
    ),
    "zstd, no size": ("zstd", ZSTD + b"\x00\x70rest", 0),
    "zstd, cut": ("zstd", ZSTD, 0),
    "zstd, foreign": ("zstd", b"rest of it", 0),
}  # fmt: skip


@pytest.fixture
def decompressed(monkeypatch):
    """The frames that reach the compression libraries; these need not be installed."""
    frames = []
    for name in ("lz4", "snappy", "zstd", "own"):
        function = Compression(name, bytes, lambda frame: frames.append(frame) or bytes(100))
        monkeypatch.setitem(compressions, name, function)
    return frames


@pytest.mark.parametrize(("name", "frame", "nbytes"), CLAIMS.values(), ids=CLAIMS.keys())
def test_what_a_frame_claims_is_looked_at_before_it_is_decompressed(
    decompressed, name, frame, nbytes
):
    assert growth_bytes([name], [frame]) == nbytes - len(frame)
    if nbytes > 100:
        with pytest.raises(LimitError, match=rf"of {nbytes} .*fabric\.limits\.message"):
            decompress([name], [frame], len(frame), nbytes - 1)
        assert not decompressed
    assert decompress([None, name], [b"x", frame], 1 + len(frame), nbytes + 101)[0] == b"x"
    assert decompressed == [frame]


def test_what_is_known_only_afterwards_counts_too(decompressed):
    with pytest.raises(LimitError):
        decompress(["own"], [b"frame"], 5, 99)
    assert decompress(["own", "own"], [b"frame", b"frame"], 10, 200) == [bytes(100)] * 2
    with pytest.raises(LimitError):
        decompress(["own", "own"], [b"frame", b"frame"], 10, 199)


def test_zlib_stops_at_the_limit():
    frame = zlib.compress(bytes(64 * MEBI))
    tracemalloc.start()
    try:
        with pytest.raises(LimitError):
            decompress(["zlib"], [frame], len(frame), 4 * MEBI)
        assert tracemalloc.get_traced_memory()[1] < 12 * MEBI
        made = decompress(["zlib"], [frame], len(frame), 64 * MEBI)
        assert tracemalloc.get_traced_memory()[1] < 90 * MEBI  # not twice what was made
        assert made == [bytes(64 * MEBI)]
    finally:
        tracemalloc.stop()
    assert decompress(["zlib"], [frame], len(frame), 64 * MEBI) == [bytes(64 * MEBI)]
    with pytest.raises(zlib.error):
        decompress(["zlib"], [frame[:-3]], len(frame) - 3, 64 * MEBI)
    with pytest.raises(zlib.error):
        decompress(["zlib"], [b"junk"], 4, 64 * MEBI)
    assert decompress(["zlib"], [zlib.compress(b"")], 8, 0) == [b""]


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("nbytes", [1, 65_536, MEBI, MEBI + 1, 3 * MEBI + 17])
def test_zlib_in_pieces(nbytes, level):
    rng = np.random.default_rng(nbytes)
    data = rng.integers(0, 256, nbytes, "u1") * (rng.random(nbytes) < 0.3)  # some of it is zeros
    frame = zlib.compress(data.astype("u1").tobytes(), level)
    (made,) = decompress(["zlib"], [frame], len(frame), len(frame) + nbytes)
    assert made == data.astype("u1").tobytes()


@pytest.mark.parametrize("message", [Serialize(bytes(MEBI)), ToPickle(np.zeros(MEBI // 8))])
def test_all_payloads_of_a_message_count_together(message):
    header, frames = codec.encode([message] * 3, context={"compression": "zlib"})
    size = len(header) + sum(len(frame) for frame in frames)
    assert size < MEBI // 10
    assert len(codec.decode(header, frames, limit_bytes=3 * MEBI + 5000)) == 3
    with pytest.raises(LimitError):
        codec.decode(header, frames, limit_bytes=3 * MEBI)


def test_an_encoding_knows_what_compression_saved(decompressed):
    encoding = codec.begin([Serialize(bytes(MEBI))], context={"compression": "zlib"})
    _, (frame,) = encoding.finish()
    assert encoding.saved_bytes == MEBI - len(frame)
    passed_on = Serialized({"compression": ("lz4",)}, [struct.pack("<I", MEBI) + b"\0"])
    encoding = codec.begin([passed_on, Serialized(*serialize(b"x"))])
    encoding.finish()
    assert encoding.saved_bytes == MEBI - 5


@pytest.fixture
async def pair():
    async with opened_pair("fabric+tcp", {"fabric.limits.message": "1 MiB"}) as pair:
        yield pair


async def test_a_bomb_ends_the_comm_and_both_ends_say_why(pair):
    a, b = pair
    bomb = zlib.compress(bytes(64 * MEBI))
    fields = {"compression": ["zlib"], "pickled-obj": pickle.dumps(None, protocol=5)}
    body = msgpack.packb(fields)
    entry = struct.pack("<BIQ", 5, 1, len(body)) + body
    a._channel.send(b"\xc1\x01\0\0\0" + entry + b"\x81\xab__Payload__\x01", [bomb])
    for end in (b, a):
        with pytest.raises(
            CommClosedError, match=r"decompressed message .*fabric\.limits\.message"
        ):
            await end.read()


async def test_what_the_peer_would_not_decompress_is_not_sent(pair):
    a, b = pair
    a.handshake_options = {"compression": "zlib"}
    with pytest.raises(MessageTooLargeError, match=r"fabric\.limits\.message"):
        await a.write({"op": "x", "data": Serialize(bytes(2 * MEBI))})
    await a.write(Serialize(bytes(MEBI // 2)))
    assert await b.read() == bytes(MEBI // 2)

"""Which work goes to another thread, with the same result."""

import asyncio
import logging
import struct
import threading

import msgpack
import numpy as np
import pandas as pd
import pytest
from dask._task_spec import DataNode, Task, TaskRef
from distributed.protocol import Pickled, Serialize, ToPickle, serialize
from distributed.protocol.serialize import Serialized

from dask_fabric.codec.codec import Codec
from dask_fabric.comm.serialize.distributed import make_dialect
from dask_fabric.errors import LimitError

THRESHOLD = 10_000_000
big = np.zeros(20_000_000, "u1")


@pytest.mark.parametrize(
    "message",
    [
        {"op": "ping", "data": b"x" * THRESHOLD * 2},
        Serialize(big),
        ToPickle(big),
        {"status": "OK", "data": {"k": Serialize(big), "l": Serialize(big.reshape(2, -1).T)}},
        Serialize({"k": big, "l": [big, big]}),
        Serialize(b"x" * THRESHOLD * 2),
        Serialize(bytearray(THRESHOLD * 2)),
        Serialized(*serialize(big)),
        Pickled({"pickled-obj": b"x" * THRESHOLD * 2}, []),
        [Serialize(None), Serialize(1), ToPickle(2.5), Serialize("text"), ToPickle(sum)],
        Serialize(pd.DataFrame({"a": np.arange(10)})),
        ToPickle(Task("k", sum, big, TaskRef("l"), [Task("m", max, {"n": big})])),
    ],
)
def test_cheap_messages_are_finished_inline(codec, message):
    assert codec.begin(message).offload_bytes < THRESHOLD


@pytest.mark.parametrize(
    "message",
    [
        Serialize(pd.DataFrame({"a": np.arange(2_000_000)})),
        Serialize("x" * THRESHOLD * 2),
        ToPickle(["x" * 1_000_000] * 20),
        ToPickle(Task("k", sum, [1, DataNode("l", "x" * THRESHOLD * 2)])),
        ToPickle([{"a": [i, "x" * 1_000_000]} for i in range(150)]),
        ToPickle({"k": [pd.DataFrame({"a": np.arange(2_000_000)})]}),
        Serialize(np.zeros((9_000_000, 4))[:, ::2]),
        [Serialize("x" * 6_000_000), Serialize("x" * 6_000_000)],
    ],
)
def test_work_is_offloaded(codec, message):
    assert codec.begin(message).offload_bytes > THRESHOLD


@pytest.mark.parametrize("message", [Serialize(big), ToPickle([big]), Serialize(bytes(big))])
def test_compression_is_work(codec, message):
    assert codec.begin(message, context={"compression": "zlib"}).offload_bytes >= len(big)
    assert codec.begin(message, context={"compression": None}).offload_bytes < THRESHOLD


def test_what_cannot_be_measured_is_offloaded(codec, caplog):
    class Endless:
        def __sizeof__(self):
            raise RecursionError("too deep to measure")

    with caplog.at_level(logging.ERROR):
        assert codec.begin(ToPickle(Endless())).offload_bytes > THRESHOLD


def test_an_encoding_is_finished_in_another_thread(codec, channel):
    message = {"x": Serialize({"a": [1, 2], "b": "c"}), "y": Serialize(np.arange(3))}
    encoding = codec.begin(message)
    results = []
    thread = threading.Thread(target=lambda: results.append(encoding.finish()))
    thread.start()
    thread.join()
    ((header, frames),) = results
    received = codec.decode(header, channel.receive(frames))
    assert received["x"] == {"a": [1, 2], "b": "c"} and received["y"].tolist() == [0, 1, 2]


def test_arrays_are_cheap_to_decode_and_pickles_are_not(codec):
    frame = pd.DataFrame({"a": np.arange(2_000_000)})
    for message, is_cheap in [
        ({"op": "ping"}, True),
        (Serialize(big), True),
        ([Serialize(big), Serialize(frame)], False),
        (ToPickle("x" * THRESHOLD * 2), False),
    ]:
        header, frames = codec.encode(message)
        assert (codec.offload_bytes(header, frames) < THRESHOLD) == is_cheap


def test_many_pickles_and_large_text_are_work(codec):
    message = [ToPickle("x" * 50_000 + str(i)) for i in range(3_000)]
    header, frames = codec.encode(message)
    work = codec.offload_bytes(header, frames)
    assert work > THRESHOLD or (work < 0 and codec.is_long(header, frames))
    assert codec.offload_bytes(*codec.encode({"op": "x" * 200_000_000})) > THRESHOLD
    assert codec.offload_bytes(*codec.encode({"op": [5] * 200_000})) == 0


@pytest.mark.parametrize("message", [Serialize(big), ToPickle([big])])
def test_what_is_compressed_is_decompressed_in_another_thread(codec, message):
    """Some KiB of it may be gigabytes, and nobody knows before."""
    header, frames = codec.encode(message, context={"compression": "zlib"})
    assert sum(map(len, frames)) < 100_000
    assert codec.offload_bytes(header, frames) > THRESHOLD
    # A scheduler passes on what was serialized, but unpickles.
    is_work = codec.offload_bytes(header, frames, False) > THRESHOLD
    assert is_work == isinstance(message, ToPickle)


MANY = b"\xdd" + struct.pack(">I", 300_000) + b"\x80" * 300_000  # empty maps
REFERENCE = msgpack.packb({"__Payload__": 1})
LONG = {
    "maps": MANY,
    "maps of a payload": b"\xc1\1\0\0\0"
    + struct.pack("<BIQ", 2, 0, len(MANY) + 3)
    + b"\x81\xa1x"
    + MANY
    + REFERENCE,
    "payloads": b"\xc1"
    + struct.pack("<I", 10_000)
    + (struct.pack("<BIQ", 2, 0, 1) + b"\x80") * 10_000
    + REFERENCE,
    "long": msgpack.packb("x" * 2_000_000),
}


@pytest.mark.parametrize("name", LONG)
def test_no_loop_decodes_very_many_objects(codec, name):
    assert codec.is_long(LONG[name], [])
    assert codec.offload_bytes(LONG[name], []) < 0


@pytest.mark.parametrize(
    "message",
    [{"op": "ping"}, ["x" * 500_000], [Serialize(None)] * 500, {str(i): i for i in range(10_000)}],
)
def test_a_loop_decodes_few_objects(codec, message):
    assert not codec.is_long(*codec.encode(message))


@pytest.mark.parametrize("header", [b"\x92" * 50_000, b"\xc1\xff\xff\xff\xff" + bytes(50_000)])
def test_what_is_malformed_is_refused_at_once(codec, header):
    assert not codec.is_long(header, [])


@pytest.mark.parametrize("name", ["maps", "maps of a payload", "payloads"])
async def test_others_run_while_very_many_objects_are_decoded(codec, name):
    """Msgpack does not release the GIL by itself."""
    turns = 0
    decoding = asyncio.get_running_loop().run_in_executor(None, codec.decode, LONG[name], [], False)
    while not decoding.done():
        await asyncio.sleep(0)
        turns += 1
    await decoding
    assert turns > 5


@pytest.mark.parametrize("name", ["maps", "maps of a payload"])
def test_decoded_objects_count_towards_the_limit_of_a_message(codec, name):
    with pytest.raises(LimitError, match=r"bytes when decoded.*fabric\.limits\.message"):
        codec.decode(LONG[name], [], False, None, 10_000_000)
    codec.decode(LONG[name], [], False, None, 100_000_000)


def test_what_is_decoded_in_pieces_is_the_same(codec):
    message = {"k": ["é" * 20_000, -1, 2.5, None, b"x" * 40_000, {"a": {1, 2}}] * 3, 7: {}}
    message["many"] = [{}] * 50_000
    header, frames = codec.encode(message)
    assert codec.is_long(header, frames)
    assert codec.decode(header, frames) == msgpack_like(message)


def msgpack_like(item):
    """Lists arrive as tuples, as under tcp."""
    if isinstance(item, (list, tuple)):
        return tuple(map(msgpack_like, item))
    return {k: msgpack_like(v) for k, v in item.items()} if isinstance(item, dict) else item


def test_failures_to_decode_are_logged_ten_times_a_minute(caplog):
    codec = Codec(make_dialect())
    for _ in range(200):
        with pytest.raises(ImportError):
            codec.decode(
                msgpack.packb(
                    {"__Enum__": True, "name": "x", "__module__": "distributed.x", "__name__": "X"}
                ),
                [],
            )
    assert 0 < len(caplog.records) <= 10

"""What is worth another thread, and that finishing there is all the same."""

import logging
import threading

import numpy as np
import pandas as pd
import pytest
from dask._task_spec import DataNode, Task, TaskRef
from distributed.protocol import Pickled, Serialize, ToPickle, serialize
from distributed.protocol.serialize import Serialized

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
    assert codec.offload_bytes(*codec.encode(message)) > THRESHOLD
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

"""Frames in device memory: which of them the codec passes on, and which it refuses."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import pytest
from distributed.protocol import Serialized, to_serialize

from dask_fabric.errors import ProtocolError
from dask_fabric.memory import device
from dask_fabric.memory.device import StagedFrame

from ..device import Array, StandIn

FAMILIES = ("cuda", "dask", "pickle")


@pytest.fixture
def gpu():
    runtime = StandIn()
    device.install(runtime)
    yield runtime
    device.install(None)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_device_frames_are_the_objects_of_the_serializer(codec, gpu, compression):
    if compression:
        pytest.importorskip(compression)
    array, host = gpu.array(np.arange(6000.0)), np.arange(3)
    message = {"x": [to_serialize(array), to_serialize({"a": array, "b": b"host"})]}
    message["y"] = to_serialize(host)
    context = {"compression": compression}
    header, frames = codec.encode(message, serializers=FAMILIES, context=context)
    on_device = [frame for frame in frames if type(frame) is Array]
    assert len(on_device) == 2 and all(x.memory is array.memory for x in on_device)
    assert codec.offload_bytes(header, frames) < 2000  # device frames are not read
    got = codec.decode(header, frames)
    assert got["x"][0].memory is array.memory and got["x"][1]["a"].memory is array.memory
    assert bytes(got["x"][1]["b"]) == b"host"
    np.testing.assert_array_equal(got["y"], host)


def test_plain_arrays_keep_their_own_kind(codec):
    header, _ = codec.encode(to_serialize(np.arange(3)), serializers=FAMILIES)
    assert header == codec.encode(to_serialize(np.arange(3)))[0]


def test_what_is_passed_on_keeps_belonging_on_a_device(codec, gpu):
    header, frames = codec.encode(to_serialize(gpu.array(np.arange(6))), serializers=FAMILIES)
    staged = [StagedFrame.over(bytes(frame.nbytes)) for frame in frames]
    passed = codec.decode(header, staged, deserialize=False)
    assert type(passed) is Serialized
    _, frames = codec.encode(passed)
    assert len(frames) == 1 and frames[0] is staged[0]


def test_an_array_of_host_memory_does_not_come_on_a_device(codec, gpu):
    header, _ = codec.encode(to_serialize(np.arange(3)))
    for deserialize in (True, False):
        with pytest.raises(ProtocolError, match="a frame of device memory"):
            codec.decode(header, [gpu.array(np.arange(3))], deserialize=deserialize)


def test_a_table_of_no_payloads_is_none_of_the_codec(codec):
    with pytest.raises(ProtocolError, match="a table of no payloads"):
        codec.decode(struct.pack("<BI", 0xC1, 0) + msgpack.packb({}), [])

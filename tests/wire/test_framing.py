"""Records are built here by hand, from docs/wire-protocol.md, and not by the code under test."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_fabric.errors import LimitError, ProtocolError
from dask_fabric.memory import pool
from dask_fabric.memory.pool import statistics
from dask_fabric.wire.frames import Control
from dask_fabric.wire.message_reader import MessageReader
from dask_fabric.wire.path import Path
from dask_fabric.wire.records import close_record, error_record, paths_record
from dask_fabric.wire.states import STATES

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MESSAGE, ACKNOWLEDGE, ERROR, CLOSE, REQUEST, FRAMES, PATHS = range(1, 8)
CMA, UCX = 1, 2
HOST_MEMORY, CUDA_MEMORY = 0, 1


def record(sequence, header, frames):
    table = b"".join(ENTRY.pack(len(frame), 0, 0, 0, 0) for frame in frames)
    prefix = PREFIX.pack(MESSAGE, 0, 0, len(frames), len(header), sequence)
    return prefix + table + header + b"".join(frames)


CMA_PATH = Path("cma", CMA, 1 << HOST_MEMORY, 8)
UCX_HOST_PATH = Path("ucx", UCX, 1 << HOST_MEMORY)
UCX_DEVICE_PATH = Path("ucx", UCX, 1 << CUDA_MEMORY)


def assembler(header=1 << 24, message=1 << 28, frames=10_000, paths=(), devices=None):
    reader = MessageReader(header, message, frames)
    reader.open(paths, devices)
    return reader


def as_bytes(messages):
    return [(bytes(header), [bytes(frame) for frame in frames]) for header, frames in messages]


def feed(target, data, size):
    return [
        message
        for start in range(0, len(data), size)
        for message in target.receive_data(data[start : start + size])
    ]


blobs = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 200_000).map(lambda n: (b"0123456789abcdef" * (n // 16 + 1))[:n]),
)


@given(
    st.lists(st.tuples(blobs, st.lists(blobs, max_size=5)), max_size=5),
    st.sampled_from([1, 7, 23, 4096, 65536, 1 << 20]),
)
def test_messages_arrive_whole_however_the_bytes_are_cut(messages, size):
    if size < 4096:
        messages = [(h[:300], [frame[:300] for frame in frames]) for h, frames in messages]
    data = b"".join(record(i, header, frames) for i, (header, frames) in enumerate(messages))
    target = assembler()
    assert as_bytes(feed(target, data, size)) == messages
    assert target.message_count == len(messages)


def test_each_frame_has_writeable_memory_of_its_own():
    data = record(0, b"h", [b"a" * 10, b"b" * 100_000])
    ((_, (small, large)),) = assembler().receive_data(data)
    for frame in (small, large):
        assert not frame.readonly and frame.contiguous and frame.format == "B"
    small[:] = b"x" * 10
    assert bytes(large) == b"b" * 100_000
    assert small.obj is not large.obj


def test_memory_of_a_frame_belongs_to_an_owner_that_distributed_knows():
    in_use_count = statistics()["in_use_count"]
    data = record(0, b"h" * 70_000, [b"a" * 10, b"b" * 65_536])
    target = assembler()
    ((header, (small, large)),) = target.receive_data(data)
    assert isinstance(small.obj, bytearray)
    for view in (header, large):
        owner = view.obj
        assert type(owner) is np.ndarray and owner.base is None and owner.flags.owndata
        assert (view.format, view.ndim, view.readonly) == ("B", 1, False)
    array = np.ndarray((8192,), "i8", buffer=large)
    del target, header, small, large, view, owner
    assert statistics()["in_use_count"] == in_use_count + 1
    del array
    assert statistics()["in_use_count"] == in_use_count


def test_many_frames_need_no_more_than_they_bring():
    frames = [b"%d" % i for i in range(9_999)]
    (message,) = as_bytes(feed(assembler(), record(0, b"h" * 70_000, frames), 10_000))
    assert message == (b"h" * 70_000, frames)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (PREFIX.pack(9, 0, 0, 0, 0, 0), "unknown kind 9"),
        (PREFIX.pack(0, 0, 0, 0, 0, 0), "unknown kind 0"),
        (PREFIX.pack(ACKNOWLEDGE, 0, 0, 1, 0, 0), "malformed record of kind 2"),
        (PREFIX.pack(REQUEST, 0, 0, 0, 1, 0), "malformed record of kind 5"),
        (PREFIX.pack(FRAMES, 0, 0, 0, 0, 0), "not requested"),
        (PREFIX.pack(PATHS, 0, 0, 0, 5000, 0), "malformed record of kind 7"),
        (PREFIX.pack(MESSAGE, 1, 0, 0, 0, 0), "reserved"),
        (PREFIX.pack(MESSAGE, 0, 7, 0, 0, 0), "reserved"),
        (PREFIX.pack(MESSAGE, 0, 0, 0, 0, 5), "message 5 where 0 was due"),
        (PREFIX.pack(CLOSE, 0, 0, 1, 0, 0), "malformed record of kind 4"),
        (PREFIX.pack(ERROR, 0, 0, 0, 5000, 0), "malformed record of kind 3"),
        (PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(1, 3, 0, 0, 0), "not negotiated"),
        (PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(1, 0, 1, 0, 0), "not negotiated"),
        (PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(1, 0, 0, 0, 8), "not negotiated"),
        (close_record() + b"x" * 24, "close record"),
    ],
)
def test_a_violation_is_named_and_told_to_the_peer(data, text):
    with pytest.raises(ProtocolError, match=text) as caught:
        assembler().receive_data(data)
    with pytest.raises(ProtocolError, match=text):  # what the peer makes of the reply
        assembler().receive_data(caught.value.reply)


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (PREFIX.pack(MESSAGE, 0, 0, 0, 2**64 - 1, 0), "header"),
        (PREFIX.pack(MESSAGE, 0, 0, 2**32 - 1, 0, 0), "frames"),
        (PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + ENTRY.pack(2**64 - 1, 0, 0, 0, 0), "message"),
        (
            PREFIX.pack(MESSAGE, 0, 0, 2, 9, 0) + 2 * ENTRY.pack(2**63 - 5, 0, 0, 0, 0),
            "message",
        ),
        (
            PREFIX.pack(MESSAGE, 0, 0, 3, 9, 0) + 3 * ENTRY.pack(400, 0, 0, 0, 0),
            "message",
        ),
    ],
)
def test_a_claim_above_a_limit_names_the_key(data, key):
    with pytest.raises(LimitError, match=rf"fabric\.limits\.{key} "):
        assembler(header=1000, message=1000, frames=10).receive_data(data)


def test_a_claim_at_the_limit_passes():
    target = assembler(header=8, message=1000, frames=1)
    data = record(0, b"h" * 8, [b"f" * 992])
    assert as_bytes(target.receive_data(data)) == [(b"h" * 8, [b"f" * 992])]


def test_a_header_counts_towards_the_limit_of_its_message():
    data = record(0, b"h" * 1000, [])
    assert assembler(header=2000, message=1000).receive_data(data) == [(b"h" * 1000, [])]
    with pytest.raises(LimitError, match=r"message of 1001 .*fabric\.limits\.message "):
        assembler(header=2000, message=1000).receive_data(record(0, b"h" * 1001, []))


def test_the_error_of_the_peer_is_reported():
    with pytest.raises(ProtocolError, match="the peer ended the connection: no, thanks"):
        assembler().receive_data(error_record("no, thanks"))


def test_an_error_record_is_bounded():
    assert len(error_record("é" * 10_000)) == PREFIX.size + 4096


def test_close_is_noted():
    target = assembler()
    assert target.receive_data(record(0, b"last", []) + close_record()) == [(b"last", [])]
    assert target.records.remote == STATES.index("CLOSING")


@given(st.binary(max_size=300))
def test_junk_gives_messages_or_an_error_of_ours(data):
    target = assembler(header=10_000, message=10_000, frames=100)
    try:
        target.receive_data(data)
    except ProtocolError as error:
        assert str(error)


def test_a_claim_costs_no_more_than_what_arrived(clean_memory):
    target = assembler(frames=2**32 - 1)
    before_bytes = pool.statistics()["in_use_bytes"]
    prefix = PREFIX.pack(MESSAGE, 0, 0, 2**32 - 1, 0, 0)
    for byte in prefix + bytes(63 * ENTRY.size):
        target.receive_data(bytes([byte]))
    assert pool.statistics()["in_use_bytes"] - before_bytes == 128 << 10  # to read into
    target.receive_data(ENTRY.pack(1, 0, 0, 0, 0) * 20_000)
    assert pool.statistics()["in_use_bytes"] - before_bytes < 1 << 20


def test_memory_for_small_frames_is_not_taken_far_ahead_of_the_stream():
    frame_count, frame_bytes = 100_000, 800
    table = ENTRY.pack(frame_bytes, 0, 0, 0, 0) * frame_count
    target = assembler(frames=frame_count)
    tracemalloc.start()
    try:
        target.receive_data(PREFIX.pack(MESSAGE, 0, 0, frame_count, 0, 0) + table)
        assert tracemalloc.get_traced_memory()[0] < 8 << 20
    finally:
        tracemalloc.stop()
    for part in range(0, frame_count * frame_bytes, 1 << 20):
        size = min(1 << 20, frame_count * frame_bytes - part)
        messages = target.receive_data(bytes(size))
    ((_, frames),) = messages
    assert len(frames) == frame_count and {len(frame) for frame in frames} == {frame_bytes}


@pytest.mark.parametrize("kind", [ACKNOWLEDGE, REQUEST])
def test_answers_about_offers(kind):
    (answer,) = assembler().receive_data(PREFIX.pack(kind, 0, 0, 0, 0, 77))
    assert (type(answer), answer.kind, answer.sequence) == (Control, kind, 77)


def test_refusals_that_no_peer_would_take_are_not_sent():
    assert paths_record(bytes(4096)).endswith(bytes(4096))
    with pytest.raises(ValueError, match="4097 bytes of refusals; at most 4096"):
        paths_record(bytes(4097))


def test_what_the_client_says_of_paths():
    (answer,) = assembler().receive_data(paths_record(b"\x80"))
    assert (answer.kind, answer.content) == (PATHS, b"\x80")


def offer(sequence, header, sizes, inline=b""):
    """A message that offers frames at made-up addresses, and brings one inline at its end."""
    table = b"".join(ENTRY.pack(size, CMA, 0, 0, 8) for size in sizes)
    table += ENTRY.pack(len(inline), 0, 0, 0, 0)
    descriptors = b"".join(struct.pack("<Q", 4096 + 16 * i) for i in range(len(sizes)))
    prefix = PREFIX.pack(MESSAGE, 0, 0, len(sizes) + 1, len(header), sequence)
    return prefix + table + descriptors + header + inline


@pytest.mark.parametrize("inline_bytes", [0, 10, 200_000])
@pytest.mark.parametrize("size", [7, 1 << 20])
def test_offered_frames_get_memory_and_do_not_come_on_the_stream(inline_bytes, size):
    target = assembler(paths=[CMA_PATH])
    data = offer(0, b"h", [65_536, 100_000], b"i" * inline_bytes)
    ((header, frames),) = feed(target, data, size)
    assert frames[:2] == [None, None]  # until they are fetched
    target.place_offered(frames)
    (following,) = feed(target, record(1, b"next", []), size)
    assert (bytes(header), [len(frame) for frame in frames]) == (
        b"h",
        [65_536, 100_000, inline_bytes],
    )
    assert bytes(frames[2]) == b"i" * inline_bytes
    assert following == (b"next", [])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (ENTRY.pack(65_536, CMA + 1, 0, 0, 0), "not negotiated"),
        (ENTRY.pack(65_536, 255, 0, 0, 8), "not negotiated"),
        (ENTRY.pack(65_536, CMA + 32, 0, 0, 8), "not negotiated"),
        (ENTRY.pack(65_536, CMA, 1, 0, 8), "not negotiated"),
        (ENTRY.pack(65_536, 0, 0, 0, 8), "not negotiated"),
        (ENTRY.pack(65_535, CMA, 0, 0, 8), "too small"),
        (ENTRY.pack(65_536, CMA, 0, 0, 7), "descriptor of 7 bytes"),
        (ENTRY.pack(65_536, CMA, 0, 0, 2**32 - 1), "descriptor of 4294967295 bytes"),
    ],
)
def test_an_offer_must_be_one_that_was_negotiated(data, text):
    with pytest.raises(ProtocolError, match=text):
        assembler(paths=[CMA_PATH]).receive_data(PREFIX.pack(MESSAGE, 0, 0, 1, 0, 0) + data)


def test_an_offer_counts_towards_the_limit():
    data = offer(0, b"h", [65_536, 100_000])
    with pytest.raises(LimitError, match=r"fabric\.limits\.message "):
        assembler(message=165_000, paths=[CMA_PATH]).receive_data(data)


# ---------------------------------------------------------------- frames of devices


class OnDevice:
    """A frame that no host code can read."""

    def __init__(self, nbytes):
        self.nbytes = nbytes


class Devices:
    capacity_bytes = 1 << 30

    def allocate(self, nbytes):
        if nbytes > self.capacity_bytes:
            raise MemoryError(nbytes)
        return OnDevice(nbytes)

    def span_of(self, frame):
        return (0xDEAD0000 if frame.nbytes else 0, frame.nbytes, 0)

    def stage(self, memory):
        return ("staged", memory)


def device_assembler(paths=(), **limits):
    return assembler(paths=[*paths, UCX_DEVICE_PATH], devices=Devices(), **limits)


def message_of(entries, header=b"h", descriptors=b"", inline=b""):
    prefix = PREFIX.pack(MESSAGE, 0, 0, len(entries), len(header), 0)
    return prefix + b"".join(entries) + descriptors + header + inline


def on_device(nbytes):
    return ENTRY.pack(nbytes, UCX, CUDA_MEMORY, 0, 0)


EMPTY_ON_DEVICE = ENTRY.pack(0, 0, CUDA_MEMORY, 0, 0)


@pytest.mark.parametrize("size", [7, 1 << 20])
@pytest.mark.parametrize("inline_bytes", [3, 200_000])
def test_frames_of_devices_have_memory_there(size, inline_bytes):
    entries = [
        on_device(1), ENTRY.pack(inline_bytes, 0, 0, 0, 0), EMPTY_ON_DEVICE, on_device(1 << 20),
        ENTRY.pack(65_536, CMA, 0, 0, 8),
    ]  # fmt: skip
    inline = b"i" * inline_bytes
    data = message_of(entries, descriptors=struct.pack("<Q", 4096), inline=inline)
    target = device_assembler(paths=[CMA_PATH])
    ((header, frames),) = feed(target, data, size)
    target.place_offered(frames)
    kinds = [type(frame) for frame in frames]
    assert kinds == [OnDevice, memoryview, OnDevice, OnDevice, memoryview]
    assert [frame.nbytes for frame in frames] == [1, inline_bytes, 0, 1 << 20, 65_536]
    assert bytes(header) == b"h" and bytes(frames[1]) == inline


def test_many_small_frames_of_devices():
    data = message_of([on_device(1)] * 5000, header=b"h" * 70_000)
    target = device_assembler()
    ((_, frames),) = feed(target, data, 10_000)
    target.place_offered(frames)
    assert len(frames) == 5000 and {type(frame) for frame in frames} == {OnDevice}


def test_a_full_device_leaves_host_memory():
    devices = Devices()
    devices.capacity_bytes = 99
    target = assembler(paths=[UCX_DEVICE_PATH], devices=devices)
    ((_, frames),) = target.receive_data(message_of([on_device(100)]))
    target.place_offered(frames)
    ((kind, memory),) = frames
    assert kind == "staged" and memory.nbytes == 100 and not memory.readonly


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (ENTRY.pack(65_536, UCX, HOST_MEMORY, 0, 0), "not negotiated"),  # ucx is for devices only
        (ENTRY.pack(65_536, CMA, CUDA_MEMORY, 0, 8), "not negotiated"),  # and cma is not
        (ENTRY.pack(65_536, UCX, 2, 0, 0), "not negotiated"),
        (ENTRY.pack(65_536, UCX, CUDA_MEMORY, 1, 0), "not negotiated"),
        (ENTRY.pack(65_536, 3, CUDA_MEMORY, 0, 0), "not negotiated"),
        (ENTRY.pack(65_536, 255, CUDA_MEMORY, 0, 0), "not negotiated"),
        (ENTRY.pack(65_536, 0, CUDA_MEMORY, 0, 0), "not negotiated"),  # inline, and not empty
        (ENTRY.pack(0, UCX, CUDA_MEMORY, 0, 0), "not negotiated"),
        (ENTRY.pack(0, 0, CUDA_MEMORY, 0, 8), "descriptor of 8 bytes"),
        (ENTRY.pack(65_536, UCX, CUDA_MEMORY, 0, 8), "descriptor of 8 bytes"),
    ],
)
def test_a_frame_of_a_device_comes_as_was_negotiated(entry, text):
    with pytest.raises(ProtocolError, match=text):
        device_assembler(paths=[CMA_PATH]).receive_data(message_of([entry]))


@pytest.mark.parametrize("entry", [on_device(65_536), on_device(1), EMPTY_ON_DEVICE])
@pytest.mark.parametrize("paths", [(), (CMA_PATH, UCX_HOST_PATH)])
def test_who_has_no_device_takes_no_frame_of_one(entry, paths):
    with pytest.raises(ProtocolError, match="not negotiated"):
        assembler(paths=paths).receive_data(message_of([entry]))


def test_frames_of_devices_count_towards_the_limit():
    with pytest.raises(LimitError, match=r"fabric\.limits\.message "):
        device_assembler(message=99_999).receive_data(message_of([on_device(50_000)] * 2))

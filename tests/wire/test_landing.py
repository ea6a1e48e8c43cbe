"""Memory of receiving: while bytes are missing, and when the comm is idle again."""

import random
import struct
import sys

import pytest

from dask_fabric.memory import pool
from dask_fabric.wire.message_reader import MessageReader

from ..memory.conftest import flags_of

PREFIX = struct.Struct("<BBHIQQ")
ENTRY = struct.Struct("<QBBHI")
MIB = 1 << 20
AHEAD_BYTES = 64 * MIB  # what peers may make resident that they do not send, all together


def head(sequence, header_bytes, sizes):
    """A message up to where its header begins."""
    table = b"".join(ENTRY.pack(nbytes, 0, 0, 0, 0) for nbytes in sizes)
    return PREFIX.pack(1, 0, 0, len(sizes), header_bytes, sequence) + table


def record(sequence, header, frames=()):
    return head(sequence, len(header), [len(f) for f in frames]) + header + b"".join(frames)


def assembler():
    reader = MessageReader(1 << 24, 1 << 34, 100_000)
    reader.open()
    return reader


def resident_bytes():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:")) << 10


def has_huge_pages(memory):
    """Whether the kernel was asked for them where a frame lies."""
    return "hg" in flags_of(memory.obj.ctypes.data)


pytestmark = pytest.mark.usefixtures("clean_memory")


# ---------------------------------------------------------------- idle again

BURSTS = {
    "small messages": [record(i, b"x" * 1000) for i in range(1000)],
    "very many frames": [record(0, b"", [b"frame"] * 10_000)],
    "very many larger frames": [record(0, b"", [b"f" * 3000] * 10_000)],
    "a large header": [record(0, b"h" * MIB)],
    "a large frame": [record(0, b"", [b"f" * (3 * MIB)]), record(1, b"after")],
    "a table and nothing else": [record(0, b"", [b""] * 20_000)],
}


@pytest.mark.parametrize("burst", BURSTS.values(), ids=BURSTS)
@pytest.mark.parametrize("piece", [1000, 16 << 10, 10 * MIB])
def test_after_a_burst_a_comm_is_as_small_as_before(burst, piece):
    before = pool.statistics()["in_use_bytes"]
    targets = [assembler() for _ in range(10)]
    size = sys.getsizeof(targets[0])
    data = b"".join(burst)
    for target in targets:
        count = 0
        for start in range(0, len(data), piece):
            count += len(target.receive_data(data[start : start + piece]))
        assert count == len(burst)
        assert sys.getsizeof(target) <= size + 1024
    assert pool.statistics()["in_use_bytes"] == before


def test_a_comm_that_has_received_nothing_has_no_buffers():
    before = pool.statistics()["in_use_bytes"]
    targets = [assembler() for _ in range(100)]
    assert pool.statistics()["in_use_bytes"] == before
    assert all(sys.getsizeof(target) == sys.getsizeof(targets[0]) for target in targets)


def test_what_waits_for_the_rest_of_its_record_counts_in_the_size_of_a_comm():
    target = assembler()
    size = sys.getsizeof(target)
    data = record(0, b"x" * 1000)
    assert target.receive_data(data[:500]) == []
    assert sys.getsizeof(target) == size + (128 << 10)
    assert target.receive_data(data[500:]) == [(b"x" * 1000, [])]
    assert sys.getsizeof(target) == size


@pytest.mark.parametrize("seed", range(5))
def test_comms_that_take_turns_keep_their_bytes_apart(seed):
    """They pass their staging buffer on to each other, but not its content."""
    choose = random.Random(seed)
    comms = []
    for name in b"abcdefgh":
        frames = [bytes([name]) * choose.choice([0, 10, 70_000, 300_000]) for _ in range(20)]
        headers = [bytes([name, i]) * choose.choice([1, 100, 40_000]) for i in range(20)]
        data = b"".join(record(i, headers[i], [frames[i]]) for i in range(20))
        comms.append((assembler(), data, list(zip(headers, frames, strict=True)), []))
    offsets = [0] * len(comms)
    while any(offsets[i] < len(comm[1]) for i, comm in enumerate(comms)):
        i = choose.randrange(len(comms))
        target, data, _, received = comms[i]
        piece = choose.choice([1, 20, 1000, 20_000, 200_000])
        received += target.receive_data(data[offsets[i] : offsets[i] + piece])
        offsets[i] += piece
    for _, _, sent, received in comms:
        assert [(bytes(header), bytes(frame)) for header, (frame,) in received] == sent


# ---------------------------------------------------------------- claims


@pytest.mark.resident
def test_what_is_claimed_is_not_resident_before_it_arrives():
    before = resident_bytes()
    targets = [assembler() for _ in range(200)]
    for number, target in enumerate(targets):
        target.receive_data(head(0, 0, [(3 + number % 5) * MIB]) + b"x")
    assert resident_bytes() - before <= AHEAD_BYTES + 8 * MIB  # of objects


@pytest.mark.resident
def test_claims_between_frames_that_arrive_are_not_resident_either():
    """Frames share huge pages with neighbours that arrive, not with those that never do."""
    kept, targets = [], []
    before = resident_bytes()
    frame = bytes(2 * MIB + 300_000)
    for _ in range(100):
        target = assembler()
        kept += target.receive_data(record(0, b"", [frame]))
        targets.append(assembler())
        targets[-1].receive_data(head(0, 0, [3 * MIB]) + b"x")
    arrived_bytes = 100 * len(frame)
    assert resident_bytes() - before <= 1.05 * arrived_bytes + AHEAD_BYTES + 8 * MIB
    assert all(bytes(frames[0]) == frame for _, frames in kept)


def test_recycled_memory_that_was_never_filled_is_no_way_around():
    pool.configure(max_idle_bytes=1 << 30)
    for _ in range(2):  # the second time in the memory of the first
        before = resident_bytes()
        targets = [assembler() for _ in range(100)]
        for target in targets:
            target.receive_data(head(0, 0, [3 * MIB]) + b"x")
        assert resident_bytes() - before <= AHEAD_BYTES + 4 * MIB


def test_a_frame_without_huge_pages_arrives_whole_and_later_ones_have_them():
    waiting = [assembler() for _ in range(16)]
    for target in waiting:
        target.receive_data(head(0, 0, [2 * MIB]) + b"x")
    content = random.Random(1).randbytes(5 * MIB)
    target = assembler()
    ((_, (frame,)),) = target.receive_data(record(0, b"", [content]))
    assert bytes(frame) == content and not has_huge_pages(frame)

    address = frame.obj.ctypes.data
    del frame, waiting[3]  # one of the sixteen is gone
    ((_, (frame,)),) = target.receive_data(record(1, b"", [content]))
    assert frame.obj.ctypes.data == address
    assert bytes(frame) == content and has_huge_pages(frame)

    waiting[0].receive_data(b"x" * (2 * MIB - 1))  # and one is whole
    others = [assembler() for _ in range(2)]
    frames = [other.receive_data(record(0, b"", [content]))[0][1][0] for other in others]
    assert all(has_huge_pages(frame) for frame in frames)

"""Received bytes go to the staging buffer, or directly to their final memory."""

import pytest

from .ends import CLOSE, MESSAGE, MIB, End, contents, record

STAGING_BYTES = 128 << 10
LARGE = bytes(range(256)) * 8000


def map_len(frames):
    return [len(frame) for frame in frames]


def test_the_rest_of_a_large_frame_goes_to_its_own_memory():
    end = End(paths=[])
    data = record(MESSAGE, sizes=[len(LARGE)]) + LARGE + record(MESSAGE, 1)
    used = end.core.feed(data)
    assert used < len(LARGE)
    assert end.core.next_message() is None
    assert end.core.incoming.missing_bytes == len(data) - used - len(record(MESSAGE, 1))
    missing_bytes = end.core.incoming.missing_bytes
    assert end.core.feed(data[used:]) == missing_bytes  # and not what is behind the frame
    assert end.core.incoming.missing_bytes == 0
    assert contents([end.core.next_message()]) == [(b"", [LARGE])]
    assert contents(end.receive(record(MESSAGE, 1))) == [(b"", [])]


def test_the_gap_of_several_frames_is_filled_in_their_order():
    end = End(paths=[])
    frames = [LARGE[:100_000], b"", LARGE[1:70_000], b"s", LARGE[7:200_000]]
    data = record(MESSAGE, content=b"h", sizes=map_len(frames)) + b"".join(frames)
    assert contents(end.receive(data)) == [(b"h", frames)]


@pytest.mark.parametrize("size", [1, 23, 24, 25, 1000, 16_384])
def test_messages_are_whole_however_they_are_cut(size):
    end = End(paths=[])
    frames = [b"f" * 30, b"", LARGE[:3000]]
    data = b"".join(record(MESSAGE, n, b"h", map_len(frames)) + b"".join(frames) for n in range(3))
    messages = []
    for at in range(0, len(data), size):
        messages += end.receive(data[at : at + size])
    assert contents(messages) == [(b"h", frames)] * 3


def test_what_nobody_reads_is_kept_and_the_owner_is_told_when_it_is_much():
    end = End(paths=[])
    message = record(MESSAGE, 0, b"x" * 1000)
    count = 0
    while not end.core.incoming.staging_is_full():
        end.store(message[:16] + count.to_bytes(8, "little") + message[24:])
        count += 1
    assert count * len(message) >= STAGING_BYTES > (count - 1) * len(message)
    end.store(record(CLOSE))  # an owner that reads on nevertheless loses nothing
    assert contents(end.messages()) == [(b"x" * 1000, [])] * count
    assert not end.core.incoming.staging_is_full()


def test_a_message_of_very_many_frames_takes_several_calls_and_no_more_bytes():
    end = End(paths=[])
    data = record(MESSAGE, sizes=[0] * 20_000)
    message, calls = None, 0
    while data:
        data = data[end.core.feed(data) :]
        message = end.core.next_message()
        assert message is None
    while message is None:
        assert end.core.reader.has_more_work()
        message = end.core.next_message()
        calls += 1
    assert calls > 1
    assert contents([message]) == [(b"", [b""] * 20_000)]
    assert not end.core.reader.has_more_work()


def test_a_claim_takes_no_memory_far_ahead_of_its_bytes():
    end = End(paths=[])
    end.receive(record(MESSAGE, sizes=[50_000] * 1000))
    assert 0 < end.core.incoming.missing_bytes <= MIB + 50_000

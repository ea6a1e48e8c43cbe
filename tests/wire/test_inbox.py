"""Messages wait for their frames and for those before them, and are delivered in order."""

import pytest

from dask_fabric.errors import ProtocolError

from .ends import (
    ACKNOWLEDGE,
    CLOSED_HERE,
    FAILED,
    FRAMES,
    MESSAGE,
    REQUEST,
    WANT_FETCH,
    End,
    TablePath,
    contents,
    kinds_of,
    offer,
    record,
)

LARGE = bytes(range(256)) * 280
EFAULT = 14


def ends():
    return End(), End()


def test_what_comes_behind_a_message_that_is_fetched_waits():
    near, far = ends()
    near.send(b"1", [LARGE])
    near.send(b"2", [b"inline"])
    near.send(b"3")
    assert far.receive(near.take()) == []
    assert far.core.wants & WANT_FETCH
    transfer = far.core.next_transfer()
    assert far.messages() == []
    far.fetch(near, transfer)
    assert contents(far.messages()) == [(b"1", [LARGE]), (b"2", [b"inline"]), (b"3", [])]
    assert kinds_of(far.take()) == [ACKNOWLEDGE]
    assert (len(far.core.inbox), far.core.inbox.nbytes) == (0, 0)


def test_one_message_at_a_time_is_fetched():
    near, far = ends()
    near.send(b"1", [LARGE])
    near.send(b"2", [LARGE])
    far.receive(near.take())
    transfer = far.core.next_transfer()
    assert transfer.frames.sequence == 0
    assert far.core.next_transfer() is None
    far.fetch(near, transfer)
    assert contents(far.messages()) == [(b"1", [LARGE])]
    assert far.core.next_transfer().frames.sequence == 1


def test_frames_that_cannot_be_fetched_are_requested_and_come_by_the_stream():
    near, far = ends()
    near.send(b"1", [LARGE, b"inline", LARGE[::-1]])
    near.send(b"2", [LARGE])
    far.receive(near.take())
    far.core.end_transfer(far.core.next_transfer(), EFAULT)
    requests = far.take()
    assert kinds_of(requests) == [REQUEST]
    assert far.core.next_transfer() is None  # the next one waits: at most one is requested
    near.receive(requests)
    frames = near.take()
    assert kinds_of(frames) == [FRAMES]
    assert contents(far.receive(frames)) == [(b"1", [LARGE, b"inline", LARGE[::-1]])]
    assert far.core.next_transfer().frames.sequence == 1
    assert far.take() == b""


@pytest.mark.parametrize("size", [1, 25, 60_000])
def test_requested_frames_come_whole_however_they_are_cut(size):
    near, far = ends()
    near.send(b"", [LARGE, LARGE[::-1]])
    far.receive(near.take())
    far.core.end_transfer(far.core.next_transfer(), EFAULT)
    near.receive(far.take())
    messages, head = [], 100
    while data := near.take(size if head > 0 else 60_000):
        head -= len(data)
        assert messages == []
        messages += far.receive(data)
    assert contents(messages) == [(b"", [LARGE, LARGE[::-1]])]


@pytest.mark.parametrize("is_stuck", [False, True])
def test_memory_that_something_may_still_write_to_is_not_used_again(is_stuck):
    near, far = ends()
    near.send(b"", [LARGE])
    far.receive(near.take())
    transfer = far.core.next_transfer()
    kept = list(transfer.frames.frames)
    ((_, _, _, memory),) = transfer.frames.views()
    far.core.end_transfer(transfer, EFAULT, is_stuck=is_stuck)
    near.receive(far.take())
    ((_, (frame,)),) = far.receive(near.take())
    memory[:5] = b"late!"
    assert (bytes(frame) == LARGE) == is_stuck
    assert len(kept) == 1


def test_frames_that_were_fetched_already_are_a_violation():
    near, far = ends()
    near.send(b"", [LARGE])
    far.receive(near.take())
    far.fetch(near)
    assert contents(far.messages()) == [(b"", [LARGE])]
    with pytest.raises(ProtocolError, match="which were not requested"):
        far.receive(record(FRAMES, 0, sizes=[len(LARGE)]))


@pytest.mark.parametrize("sequence, sizes", [(1, [65_536]), (0, [65_537]), (0, []), (0, [1, 1])])
def test_other_frames_than_were_requested_are_a_violation(sequence, sizes):
    far = End()
    far.receive(offer(0, [65_536]))
    far.receive(offer(1, [65_536]))
    far.core.end_transfer(far.core.next_transfer(), EFAULT)
    with pytest.raises(ProtocolError):
        far.receive(record(FRAMES, sequence, sizes=sizes))


def test_messages_in_the_place_of_requested_frames_are_limited():
    far = End(limit_bytes=200_000)
    far.receive(offer(0, [65_536]))
    far.core.end_transfer(far.core.next_transfer(), EFAULT)
    with pytest.raises(ProtocolError, match="messages instead of the frames"):
        for number in range(1, 1000):
            far.receive(record(MESSAGE, number, b"x" * 10_000))
    assert 200_000 <= 65_536 + 10_000 * number <= 300_000


@pytest.mark.parametrize("outcome", [CLOSED_HERE, FAILED])
def test_the_end_drops_what_has_not_its_frames_and_all_behind_it(outcome):
    near, far = ends()
    for header, frames in ((b"1", [LARGE]), (b"2", []), (b"3", [LARGE]), (b"4", [])):
        near.send(header, frames)
    far.receive(near.take())
    far.fetch(near)
    assert contents([far.core.next_message()]) == [(b"1", [LARGE])]
    far.core.end(outcome)
    assert contents([far.core.next_message()]) == [(b"2", [])]
    assert far.core.next_message() is None
    assert far.core.wants & WANT_FETCH  # which cannot be any more
    far.core.drop_unready()
    assert far.core.next_message() is None
    assert far.core.next_transfer() is None
    assert len(far.core.inbox) == 0


def test_very_many_frames_are_fetched_in_windows():
    near, far = ends()
    frames = [LARGE[:65_536]] * 300
    near.send(b"", frames)
    far.receive(near.take())
    counts = []
    while (transfer := far.core.next_transfer()) is not None:
        counts.append(transfer.frames.count)
        assert far.messages() == []
        far.fetch(near, transfer)
    assert sum(counts) == 300
    assert len(counts) > 1
    assert counts[0] * 8192 <= 1 << 20  # what a claim may cost ahead of its bytes
    assert kinds_of(far.take()) == [ACKNOWLEDGE]
    assert contents(far.messages()) == [(b"", frames)]


def test_frames_by_two_paths_are_fetched_by_one_after_the_other():
    near, far = (End([TablePath(16, 68_000), TablePath(17, 65_536)]) for _ in range(2))
    frames = [LARGE[:65_536], LARGE, b"inline", LARGE[1:], LARGE[:66_000]]
    near.send(b"", frames)
    far.receive(near.take())
    numbers = []
    while (transfer := far.core.next_transfer()) is not None:
        numbers.append((transfer.path.number, transfer.frames.count))
        far.fetch(near, transfer)
    assert numbers == [(16, 2), (17, 2)]
    assert kinds_of(far.take()) == [ACKNOWLEDGE]
    assert contents(far.messages()) == [(b"", frames)]

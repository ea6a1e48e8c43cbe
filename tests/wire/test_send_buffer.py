"""Bytes that wait for the socket: complete records, in order, each byte once."""

import gc
import weakref

import numpy as np
import pytest

from .ends import (
    ENTRY,
    INLINE_BYTES,
    MESSAGE,
    MIB,
    PATH_NUMBER,
    PREFIX,
    TOKEN,
    End,
    contents,
    kinds_of,
)

SIZES = (0, 1, 999, 1000, 1001, 4096, 4097, 40_000, 65_535, 3 * MIB)


def frame_of(nbytes):
    return (bytes(range(251)) * (nbytes // 251 + 1))[:nbytes]


@pytest.mark.parametrize("size", [1, 7, 1000, 65_536, 1 << 40])
def test_bytes_leave_in_order_however_many_at_a_time(size):
    end = End(paths=[])
    expected = b""
    for number, nbytes in enumerate(SIZES[:7] if size == 1 else SIZES):
        frames = [frame_of(nbytes), b"small"]
        end.send(b"header", frames)
        expected += PREFIX.pack(MESSAGE, 0, 0, 2, 6, number)
        expected += b"".join(ENTRY.pack(len(frame), 0, 0, 0, 0) for frame in frames)
        expected += b"header" + b"".join(frames)
    assert end.core.outgoing.pending_bytes == len(expected)
    taken = bytearray()
    while piece := end.take(size):
        taken += piece
        assert len(taken) + end.core.outgoing.pending_bytes == len(expected)
    assert taken == expected


def test_messages_may_be_put_behind_what_is_partly_sent():
    near, far = End(paths=[]), End(paths=[])
    messages = []
    for number in range(200):
        near.send(b"%d" % number, [frame_of(number * 100)])
        messages += far.receive(near.take(5000))
    messages += far.receive(near.take())
    assert contents(messages) == [(b"%d" % n, [frame_of(n * 100)]) for n in range(200)]


def test_a_frame_on_offer_leaves_its_entry_and_its_descriptor():
    end = End()
    nbytes = end.send(b"h", [b"inline", bytes(70_000)])
    assert end.take() == (
        PREFIX.pack(MESSAGE, 0, 0, 2, 1, 0)
        + ENTRY.pack(6, 0, 0, 0, 0)
        + ENTRY.pack(70_000, PATH_NUMBER, 0, 0, TOKEN.size)
        + TOKEN.pack(0)
        + b"hinline"
    )
    assert nbytes == 24 + 2 * 16 + 1 + 6 + 70_000


@pytest.mark.parametrize("nbytes, is_copied", [(INLINE_BYTES, True), (50_000, False)])
def test_what_is_small_is_copied_and_what_is_large_is_not(nbytes, is_copied):
    end = End()
    frame = bytearray(nbytes)
    end.send(b"", [frame])
    frame[:] = b"x" * nbytes
    assert end.take().endswith(b"\0" * nbytes if is_copied else b"x" * nbytes)


def test_a_large_frame_is_let_go_when_it_has_left():
    end = End()
    frame = np.zeros(50_000, np.uint8)
    lives = weakref.ref(frame)
    end.send(b"", [frame])
    del frame
    end.take(40_000)
    assert lives() is not None
    end.take()
    gc.collect()
    assert lives() is None


def spoiled(end):
    """Frames of which the last cannot be sent."""
    return [b"x" * 3000, memoryview(bytes(100))[::2]]


def refused(end):
    end.path.fails = True
    return [b"x" * 3000, bytes(100_000)]


@pytest.mark.parametrize("faulty, error", [(spoiled, BufferError), (refused, OSError)])
@pytest.mark.parametrize("before", [0, 1, 3000])
def test_a_message_that_cannot_be_sent_leaves_nothing(faulty, error, before):
    near, far = End(), End()
    near.send(b"before", [b"b" * before])
    pending_bytes = near.core.outgoing.pending_bytes
    with pytest.raises(error):
        near.send(b"faulty", faulty(near))
    assert near.core.outgoing.pending_bytes == pending_bytes
    assert len(near.core.outbox) == 0
    near.path.fails = False
    near.send(b"after", [b"a"])
    data = near.take()
    assert kinds_of(data) == [MESSAGE, MESSAGE]
    assert contents(far.receive(data)) == [(b"before", [b"b" * before]), (b"after", [b"a"])]


def test_the_end_forgets_what_waits():
    end = End()
    frame = np.zeros(50_000, np.uint8)
    lives = weakref.ref(frame)
    end.send(b"", [frame])
    del frame
    end.core.end(1)
    assert (end.core.outgoing.pending_bytes, end.take()) == (0, b"")
    gc.collect()
    assert lives() is None

"""Frames on offer are kept until the peer's answer, and then released."""

import gc
import weakref

import numpy as np
import pytest

from dask_fabric.errors import ProtocolError

from .ends import (
    ACKNOWLEDGE,
    CLOSED_HERE,
    FAILED,
    FRAMES,
    MESSAGE,
    REQUEST,
    WANT_ANSWER,
    WANT_ATTENTION,
    End,
    TablePath,
    kinds_of,
    record,
)

LARGE = b"x" * 70_000


def leases_of(end):
    return len(end.core.outbox), end.core.outbox.unanswered_count, end.core.outbox.in_flight_bytes


def test_only_frames_on_offer_are_in_flight():
    end = End()
    end.send(b"h" * 5000, [b"small", LARGE, LARGE, b"y" * 65_535])
    assert leases_of(end) == (1, 1, 140_000)
    end.send(b"nothing on offer", [b"small"])
    assert leases_of(end) == (1, 1, 140_000)
    assert end.core.is_busy()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_lease_ends_when_its_message_is_acknowledged(order):
    end = End()
    for nbytes in (65_536, 70_000, 80_000):
        end.send(b"", [bytes(nbytes)])
    end.take()
    left = 65_536 + 70_000 + 80_000
    for number in order:
        end.receive(record(ACKNOWLEDGE, number))
        left -= (65_536, 70_000, 80_000)[number]
        assert end.core.outbox.in_flight_bytes == left
    assert end.path.released == list(order)
    assert leases_of(end) == (0, 0, 0)
    assert not end.core.is_busy()


@pytest.mark.parametrize("kind", [ACKNOWLEDGE, REQUEST])
def test_an_answer_about_nothing_is_a_violation(kind):
    end = End()
    end.send(b"", [b"inline"])
    for number in (0, 1, 1 << 63):
        with pytest.raises(ProtocolError, match="which offers nothing"):
            end.receive(record(kind, number))


@pytest.mark.parametrize("first", [ACKNOWLEDGE, REQUEST])
@pytest.mark.parametrize("second", [ACKNOWLEDGE, REQUEST])
def test_a_second_answer_is_a_violation(first, second):
    end = End()
    end.send(b"", [LARGE])
    end.receive(record(first))
    end.core.take_notices()
    with pytest.raises(ProtocolError, match="which offers nothing"):
        end.receive(record(second))
    assert end.path.released == [0]


def test_what_is_requested_is_sent_and_kept_until_then():
    end = End()
    frame = np.frombuffer(bytearray(LARGE), np.uint8)
    lives = weakref.ref(frame)
    end.send(b"", [frame])
    del frame
    end.take()
    end.receive(record(REQUEST))
    assert end.core.wants == WANT_ANSWER | WANT_ATTENTION
    assert leases_of(end) == (0, 0, 0)
    assert lives() is not None
    assert end.core.is_busy()
    data = end.take(50_000)
    assert lives() is not None
    data += end.take()
    gc.collect()
    assert lives() is None
    assert kinds_of(data) == [FRAMES]
    assert data.endswith(LARGE)


def test_a_frame_on_offer_is_let_go_when_it_is_acknowledged():
    end = End()
    frame = np.frombuffer(bytearray(LARGE), np.uint8)
    lives = weakref.ref(frame)
    end.send(b"", [frame])
    del frame
    end.take()
    end.path.offered.clear()
    assert lives() is not None
    end.receive(record(ACKNOWLEDGE))
    assert lives() is None


def test_at_the_end_nothing_stays_on_offer():
    end = End()
    end.send(b"", [LARGE, LARGE])
    end.send(b"", [LARGE])
    end.core.end(CLOSED_HERE)
    assert sorted(end.path.released) == [0, 1, 2]
    assert leases_of(end) == (0, 0, 0)
    assert not end.core.is_busy()
    assert end.take() == b""


@pytest.mark.parametrize("kind", [ACKNOWLEDGE, REQUEST])
@pytest.mark.parametrize("number", [0, 1, 2, 1 << 40])
def test_what_was_not_read_before_the_end_is_checked_as_before(kind, number):
    """Nothing behind a violation is delivered, also if the connection broke meanwhile."""
    end = End()
    end.send(b"", [b"inline"])
    end.send(b"", [LARGE])
    end.send(b"", [LARGE])
    end.receive(record(ACKNOWLEDGE, 2))
    kinds, numbers = [MESSAGE, MESSAGE, kind, MESSAGE], [0, 1, number, 2]
    end.store(b"".join(map(record, kinds, numbers)))
    for _ in range(2):
        end.core.end(FAILED)
    assert end.core.next_message() is not None
    if number == 1:  # the only message whose frames are on offer
        assert len(end.messages()) == 2
        end.receive(record(MESSAGE, 3))
    with pytest.raises(ProtocolError, match="which offers nothing"):
        end.receive(record(kind, number))


def test_a_message_by_two_paths_has_one_lease():
    large, small = TablePath(16, 100_000), TablePath(17, 65_536)
    end = End([large, small])
    end.send(b"", [bytes(65_536), bytes(100_000), bytes(70_000)])
    assert leases_of(end) == (1, 1, 235_536)
    assert sorted(map(len, large.offered.values())) == [100_000]
    assert sorted(map(len, small.offered.values())) == [65_536, 70_000]
    end.receive(record(ACKNOWLEDGE))
    assert (large.released, small.released) == ([0], [0, 1])
    assert leases_of(end) == (0, 0, 0)

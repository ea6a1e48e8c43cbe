"""One end of a connection: deliveries, requests to its owner, and ends."""

import pytest

from dask_fabric.errors import ChannelClosedError, ProtocolError
from dask_fabric.wire.records import paths_record

from .ends import (
    ACKNOWLEDGE,
    CLOSE,
    CLOSED_HERE,
    CLOSING,
    DONE,
    ERROR,
    FAILED,
    FRAMES,
    MESSAGE,
    NOTICE_BROKEN,
    NOTICE_FELL_BACK,
    NOTICE_PATHS,
    REQUEST,
    WANT_ANSWER,
    WANT_ATTENTION,
    WANT_END,
    WANT_FETCH,
    WANT_LOOK,
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


def map_len(frames):
    return [len(frame) for frame in frames]


# ---------------------------------------------------------------- answers


def test_answers_are_processed_where_nobody_reads():
    near = End()
    near.send(b"", [LARGE])
    near.send(b"", [LARGE])
    near.store(record(ACKNOWLEDGE, 0) + record(REQUEST, 1))
    assert near.path.released == [0, 1]
    assert near.core.wants & WANT_ANSWER
    assert kinds_of(near.take()) == [MESSAGE, MESSAGE, FRAMES]


def test_answers_behind_a_message_that_nobody_reads_wait_for_its_reader():
    near = End()
    near.send(b"", [LARGE])
    near.store(record(MESSAGE, 0, b"unread") + record(ACKNOWLEDGE, 0))
    assert near.path.released == []
    assert contents([near.core.next_message()]) == [(b"unread", [])]
    assert near.path.released == [0]


def test_what_fell_back_is_counted_and_told():
    near = End()
    for _ in range(2):
        near.send(b"", [LARGE])
    near.receive(record(REQUEST, 0))
    assert near.core.wants & WANT_ATTENTION
    assert near.core.take_notices() == [(NOTICE_FELL_BACK, 1, near.path)]
    near.receive(record(REQUEST, 1))
    assert near.core.take_notices() == [(NOTICE_FELL_BACK, 2, near.path)]
    assert not near.core.wants & WANT_ATTENTION
    assert near.core.take_notices() == []


def test_a_broken_path_offers_nothing_until_it_works_again():
    near = End([TablePath(16), TablePath(17)])
    first, second = near.paths
    for path in near.paths:
        assert near.core.stop_offering(path)
        assert not near.core.stop_offering(path)  # it is said once
    assert near.core.take_notices() == [(NOTICE_BROKEN, None, path) for path in near.paths]
    near.send(b"", [LARGE])
    near.core.resume_offering(second)
    near.send(b"", [LARGE])
    near.core.resume_offering(first)  # it is preferred again
    near.send(b"", [LARGE])
    assert [len(path.offered) for path in near.paths] == [1, 1]
    assert near.core.stop_offering(first)  # and may break again
    assert near.core.take_notices() == [(NOTICE_BROKEN, None, first)]


@pytest.mark.parametrize(
    "claim", [offer(0, [1 << 20]), record(MESSAGE, 0, sizes=[5]), record(MESSAGE, 0, bytes(101))]
)
def test_nothing_of_a_stranger_is_fetched_or_stored(claim):
    near = End()
    near.core.expect_first(100)
    near.core.feed(claim)
    with pytest.raises(ProtocolError, match="a first message that is too large"):
        near.core.next_message()
    assert not near.core.wants & WANT_FETCH


def test_only_the_first_message_is_expected_to_be_small():
    near = End()
    near.core.expect_first(100)
    near.core.feed(record(MESSAGE, 0, bytes(100)) + record(MESSAGE, 1, bytes(101)))
    assert contents([near.core.next_message()]) == [(bytes(100), [])]
    assert contents([near.core.next_message()]) == [(bytes(101), [])]


@pytest.mark.parametrize("is_read", [True, False])
def test_paths_are_used_before_the_record_behind_them_is_read(is_read):
    """The client may offer frames as soon as it has sent PATHS."""
    near, far = End(), End(paths=[])
    near.send(b"", [LARGE])
    near.core.close()
    data = paths_record(b"\x80") + near.take()
    assert far.core.feed(data) == len(data)
    process = far.core.next_message if is_read else far.core.read_unawaited
    assert process() is None
    assert far.core.take_notices()[0][0] == NOTICE_PATHS
    far.core.use(near.path)
    assert process() is None
    assert far.core.wants & WANT_FETCH
    far.fetch(near)
    assert contents([far.core.next_message()]) == [(b"", [LARGE])]


def test_what_stands_behind_a_notice_is_looked_at_later():
    """No further bytes may come to prompt it."""
    near = End()
    near.send(b"", [LARGE])
    near.send(b"", [LARGE])
    data = record(MESSAGE, 0, b"m") + record(REQUEST, 0) + record(ACKNOWLEDGE, 1)
    assert near.core.feed(data) == len(data)
    assert contents([near.core.next_message()]) == [(b"m", [])]
    assert near.core.wants & (WANT_ATTENTION | WANT_LOOK) == WANT_ATTENTION | WANT_LOOK
    near.core.take_notices()
    near.core.read_unawaited()
    assert near.path.released == [0, 1]


# ---------------------------------------------------------------- closing


def test_a_close_follows_what_was_sent_and_is_followed_by_frames_alone():
    near = End()
    near.send(b"1", [LARGE])
    near.core.close()
    assert kinds_of(near.take()) == [MESSAGE, CLOSE]
    assert near.core.is_busy()
    near.store(record(REQUEST, 0))
    assert kinds_of(near.take()) == [FRAMES]
    assert not near.core.is_busy()


def test_a_side_that_closes_looks_behind_messages_for_its_answers():
    near = End()
    near.send(b"1", [LARGE])
    near.core.close()
    near.store(record(MESSAGE, 0, b"lost") + offer(1, [65_536]) + record(ACKNOWLEDGE, 0))
    assert near.path.released == [0]
    assert not near.core.wants & WANT_FETCH


def test_nothing_is_delivered_behind_a_message_that_was_dropped():
    near = End()
    near.send(b"1", [LARGE])
    near.core.close()
    near.store(record(MESSAGE, 0, b"lost"))
    assert near.receive(record(MESSAGE, 1, b"behind") + record(ACKNOWLEDGE, 0)) == []
    assert near.path.released == [0]
    assert near.receive(record(MESSAGE, 2, b"behind")) == []
    near.core.end(CLOSED_HERE)
    assert near.messages() == []


@pytest.mark.parametrize("frames", [[], [LARGE]])
def test_who_reads_while_this_side_closes_is_given_what_comes(frames):
    near = End()
    near.send(b"1", frames)
    near.core.close()
    assert contents(near.receive(record(MESSAGE, 0, b"read"))) == [(b"read", [])]


@pytest.mark.parametrize("is_reading", [True, False])
def test_a_peer_that_closes_too_answers_nothing_any_more(is_reading):
    near = End()
    near.send(b"1", [LARGE])
    near.core.close()
    (near.receive if is_reading else near.store)(record(CLOSE))
    assert near.core.wants & WANT_END


def test_what_a_closing_peer_has_on_offer_is_fetched_before_anybody_reads():
    near, far = ends()
    near.send(b"1", [b"small"])
    near.send(b"2", [LARGE])
    near.send(b"3", [LARGE])
    near.core.close()
    far.store(near.take())
    assert far.core.remote == CLOSING
    for _ in range(2):
        assert far.core.wants & WANT_FETCH
        far.fetch(near)
        far.core.look_ahead()
    near.store(far.take())
    assert not near.core.is_busy()
    far.core.end(FAILED)
    expected = [(b"1", [b"small"]), (b"2", [LARGE]), (b"3", [LARGE])]
    assert contents(far.messages()) == expected


def test_a_close_that_stands_behind_a_message_is_looked_at_soon():
    near, far = ends()
    near.send(b"1")
    near.send(b"2", [LARGE])
    near.core.close()
    data = near.take()
    assert far.core.feed(data) == len(data)
    assert contents([far.core.next_message()]) == [(b"1", [])]
    assert far.core.wants & WANT_LOOK
    far.core.read_unawaited()
    assert far.core.wants & WANT_FETCH


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "was lost \\(its process died"),
        (record(MESSAGE, 0, b"whole"), "was lost \\(its process died"),
        (record(MESSAGE, 0, b"cut")[:-1], "in the middle of a message"),
        (record(MESSAGE, sizes=[500_000]), "in the middle of a message"),
        (record(CLOSE), "the peer closed the connection"),
        (record(MESSAGE, 0, b"whole") + record(CLOSE), "the peer closed the connection"),
    ],
)
def test_the_end_of_the_stream_has_a_reason(data, reason):
    far = End()
    far.receive(data)
    error = far.core.lose_stream()
    with pytest.raises(ChannelClosedError, match=reason):
        raise error


def test_a_close_that_nobody_has_read_is_an_orderly_end_too():
    far = End()
    data = record(MESSAGE, 0, b"unread") + record(CLOSE)
    assert far.core.feed(data) == len(data)
    assert str(far.core.lose_stream()) == "the peer closed the connection"
    far.core.end(FAILED)
    assert contents(far.messages()) == [(b"unread", [])]


@pytest.mark.parametrize("answer", [record(ACKNOWLEDGE), record(REQUEST), paths_record(b"\x80")])
def test_after_the_end_answers_are_passed_over(answer):
    near = End()
    near.send(b"", [LARGE])
    near.store(record(MESSAGE, 0, b"1") + answer + record(MESSAGE, 1, b"2"))
    near.core.end(FAILED)
    assert contents(near.messages()) == [(b"1", []), (b"2", [])]
    assert near.path.released == [0]
    assert near.core.take_notices() == []
    assert near.take() == b""


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_message_of_very_many_frames_becomes_whole_after_the_end(is_begun):
    far = End()
    frames = [b"abc"[: n % 4] for n in range(20_000)]
    far.store(record(MESSAGE, sizes=map_len(frames)) + b"".join(frames))
    far.store(record(MESSAGE, 1, b"behind"))
    if is_begun:
        assert far.core.next_message() is None
    far.core.end(FAILED)
    assert contents([far.core.next_message()]) == [(b"", frames)]
    assert contents([far.core.next_message()]) == [(b"behind", [])]


def test_a_message_that_will_never_be_whole_is_dropped():
    far = End()
    far.receive(record(MESSAGE, 0, b"1") + record(MESSAGE, 1, sizes=[500_000]) + bytes(1000))
    far.core.lose_stream()
    far.core.end(FAILED)
    assert far.messages() == []
    assert not far.core.is_in_message(True)


def test_the_staged_rest_of_a_dropped_message_is_not_read_as_records():
    far = End()
    frame = record(MESSAGE, 0, b"forged")
    far.store((record(MESSAGE, sizes=[len(frame)] * 20_000) + frame * 20_000)[:-1])
    assert far.core.next_message() is None
    far.core.end(FAILED)
    assert far.messages() == []
    assert not far.core.is_in_message(True)


VIOLATIONS = [
    record(9),
    record(ACKNOWLEDGE, 7),
    record(MESSAGE, 7),
    record(ERROR, content=b"a reason"),
]


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_nothing_is_delivered_from_behind_a_violation(violation):
    far = End()
    data = violation + record(MESSAGE, 0, b"behind") + record(CLOSE)
    assert far.core.feed(data) == len(data)
    with pytest.raises(ProtocolError):
        far.core.next_message()
    far.core.end(FAILED, True)
    assert far.messages() == []


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_what_came_before_a_violation_stays_readable(violation):
    near, far = ends()
    near.send(b"1", [LARGE])
    near.send(b"2")
    far.receive(near.take())
    transfer = far.core.next_transfer()
    near.core.close()  # so that nobody has to read for the violation to be noticed
    far.store(near.take())
    far.fetch(near, transfer)
    assert far.core.feed(violation) == len(violation)
    with pytest.raises(ProtocolError):
        far.core.read_unawaited()
    far.core.end(FAILED, True)
    assert contents(far.messages()) == [(b"1", [LARGE]), (b"2", [])]


def test_after_the_end_of_the_stream_nothing_may_follow():
    far = End()
    far.core.lose_stream()
    assert far.core.remote == DONE
    with pytest.raises(ProtocolError, match="after the close record"):
        far.receive(record(MESSAGE, 0))


# ---------------------------------------------------------------- what is awaited


def test_a_side_knows_whether_the_peer_has_to_send_more():
    far = End()
    assert not far.core.is_in_message(True)
    far.receive(record(MESSAGE, 0, b"cut")[:-1])
    assert far.core.is_in_message(True)
    assert not far.core.is_in_message(False)  # where nobody reads, whole messages may be there
    far.receive(b"t" + offer(1, [65_536]))
    assert not far.core.is_in_message(True)
    far.core.end_transfer(far.core.next_transfer(), EFAULT)
    assert far.core.is_in_message(False)
    far.receive(record(FRAMES, 1, sizes=[65_536]) + bytes(65_536))
    assert not far.core.is_in_message(True)

"""The table of states is complete, and other events are refused."""

import pytest

from dask_fabric.errors import ChannelClosedError, ProtocolError
from dask_fabric.wire.states import EVENTS, STATES, transitions

from .ends import (
    ACKNOWLEDGE,
    CLOSE,
    CLOSING,
    DONE,
    ERROR,
    FRAMES,
    GREETING,
    MESSAGE,
    OPEN,
    PATHS,
    REQUEST,
    Connection,
    End,
    kinds_of,
    offer,
    record,
)

RECORDS = {
    "MESSAGE": record(MESSAGE),
    "answer": record(ACKNOWLEDGE),
    "FRAMES": record(FRAMES, sizes=[65536]),
    "PATHS": record(PATHS),
    "CLOSE": record(CLOSE),
    "ERROR": record(ERROR, content=b"a reason"),
}


def peer_in(state):
    """An end whose peer's half is in a state."""
    if state == "GREETING":
        return Connection(1000, 1000, 1000, 0)
    end = End()
    if state == "CLOSING":
        end.receive(record(CLOSE))
    elif state == "DONE":
        end.core.lose_stream()
    assert STATES[end.core.remote] == state
    return end.core


def test_the_table_is_what_the_protocol_says():
    assert transitions() == {
        "GREETING": {"hello": "OPEN", "ERROR": "DONE", "end of stream": "DONE"},
        "OPEN": {
            "MESSAGE": "OPEN",
            "answer": "OPEN",
            "FRAMES": "OPEN",
            "PATHS": "OPEN",
            "CLOSE": "CLOSING",
            "ERROR": "DONE",
            "end of stream": "DONE",
        },
        "CLOSING": {"FRAMES": "CLOSING", "end of stream": "DONE"},
        "DONE": {"end of stream": "DONE"},
    }


def test_the_table_has_every_state_and_every_event():
    table = transitions()
    assert tuple(table) == STATES
    assert {event for row in table.values() for event in row} == set(EVENTS)
    assert all(STATES.index(after) >= STATES.index(before) for before, row in table.items()
               for after in row.values())  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", RECORDS)
def test_a_record_that_its_state_does_not_allow_is_refused(state, event):
    core = peer_in(state)
    before = core.remote
    assert core.feed(RECORDS[event]) == len(RECORDS[event])
    allowed = transitions()[state].get(event)
    if allowed is None or event in ("answer", "FRAMES", "ERROR"):
        # An answer to nothing, and what was not requested, are violations in every state.
        with pytest.raises(ProtocolError):
            core.next_message()
    else:
        core.next_message()
    if allowed is None:
        assert core.remote == before
    elif event != "FRAMES":
        assert STATES[core.remote] == allowed


@pytest.mark.parametrize("flags, reserved", [(1, 0), (0, 1)])
def test_reserved_bits_are_refused(flags, reserved):
    with pytest.raises(ProtocolError, match="reserved bits are set"):
        End().receive(record(MESSAGE, flags=flags, reserved=reserved))


def test_a_side_that_closes_goes_through_its_states_once():
    end = Connection(1000, 1000, 1000, 0)
    assert end.local == GREETING
    end.opened()
    assert end.local == OPEN
    end.close()
    end.close()
    assert end.local == CLOSING
    assert kinds_of(end.take_outgoing(1000)) == [CLOSE]
    end.end(1)
    assert end.local == DONE


def test_a_side_that_closes_before_the_hellos_sends_nothing():
    end = Connection(1000, 1000, 1000, 0)
    end.close()
    assert end.local == CLOSING
    with pytest.raises(ChannelClosedError, match="being closed on this side"):
        end.send(b"late", [])
    assert end.take_outgoing(1000) == b""
    end.opened()
    with pytest.raises(ChannelClosedError, match="being closed on this side"):
        end.send(b"late", [])


def test_a_side_that_has_closed_sends_no_message():
    end = End()
    end.core.close()
    with pytest.raises(ChannelClosedError):
        end.send(b"late")
    assert kinds_of(end.take()) == [CLOSE]


@pytest.mark.parametrize("error, answer", [(0, ACKNOWLEDGE), (14, REQUEST)])
def test_a_side_that_has_closed_answers_nothing(error, answer):
    for closes in (False, True):
        end = End()
        end.receive(offer(0, [65536]))
        transfer = end.core.next_transfer()
        if closes:
            end.core.close()
        end.core.end_transfer(transfer, error)
        assert kinds_of(end.take()) == ([CLOSE] if closes else [answer])

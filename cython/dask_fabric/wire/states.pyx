"""The states of a connection: everything about them is in this module, and in no other.

Theory of operation
-------------------
A connection has two halves: what this side sends (*local*) and what its peer sends (*remote*). Both
go through the same states, each by its own events, so one table describes them::

    GREETING --hello--> OPEN --CLOSE record--> CLOSING --end of the stream--> DONE

* GREETING: the hellos are being exchanged; no record is sent.
* OPEN: every record may be sent.
* CLOSING: a CLOSE record was sent. Its sender writes no further message and no answer. It still
  writes FRAMES records that its peer requests, and waits until its offers are acknowledged.
* DONE: nothing follows. The end of the stream leads here from every state, an ERROR record from
  those before CLOSING.

`Outcome` says whether, and how, the connection as a whole has ended.

The diagram in ``docs/wire-protocol.md`` and ``docs/architecture.md`` is drawn from `transitions`.
"""

STATES = ("GREETING", "OPEN", "CLOSING", "DONE")
EVENTS = ("hello", "MESSAGE", "answer", "FRAMES", "PATHS", "CLOSE", "ERROR", "end of stream")

cdef signed char TABLE[HALF_COUNT][EVENT_COUNT]
#            hello    MESSAGE  answer   FRAMES   PATHS    CLOSE    ERROR  end of stream
TABLE[0] = [OPEN,    REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, DONE,  DONE]
TABLE[1] = [REFUSED, OPEN,    OPEN,    OPEN,    OPEN,    CLOSING, DONE,  DONE]
TABLE[2] = [REFUSED, REFUSED, REFUSED, CLOSING, REFUSED, REFUSED, REFUSED, DONE]
TABLE[3] = [REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, DONE]


cdef int after(int half, int event) noexcept nogil:
    """The state after an event in a state; `REFUSED` where that is a violation."""
    return TABLE[half][event] if event >= 0 else <int> REFUSED


def transitions():
    """Return the table of states, for documentation and tests.

    Returns
    -------
    dict of str to dict of str to str
        State -> event -> next state; events that are not allowed are left out.
    """
    return {
        state: {
            event: STATES[TABLE[row][column]]
            for column, event in enumerate(EVENTS) if TABLE[row][column] != REFUSED
        }
        for row, state in enumerate(STATES)
    }

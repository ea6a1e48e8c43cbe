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

def transitions() -> dict[str, dict[str, str]]:
    """Return the table of states, for documentation and tests.

    Returns
    -------
    dict of str to dict of str to str
        State -> event -> next state; events that are not allowed are left out.
    """

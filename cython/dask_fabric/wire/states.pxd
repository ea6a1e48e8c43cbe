"""The states of a connection: everything about them is in this module, and in no other."""

cdef enum Half:                 # what one side may still send
    GREETING = 0                # its hello
    OPEN = 1                    # everything
    CLOSING = 2                 # frames that the peer requested
    DONE = 3                    # nothing
    HALF_COUNT = 4

cdef enum Event:
    HELLO_DONE = 0              # both hellos are exchanged
    MESSAGE_SENT = 1            # this and the next ones: by the side that the half belongs to
    ANSWER_SENT = 2             # ACKNOWLEDGE or REQUEST
    FRAMES_SENT = 3
    PATHS_SENT = 4
    CLOSE_SENT = 5
    ERROR_SENT = 6
    END_OF_STREAM = 7           # or this process has ended the connection
    EVENT_COUNT = 8
    UNKNOWN_EVENT = -1          # allowed in no state

cdef enum:
    REFUSED = -1                # in the table: the event is not allowed in that state

cdef enum Outcome:
    LIVE = 0
    CLOSED_HERE = 1
    FAILED = 2                  # also closed or abandoned by the peer: see the channel's error
    FORKED = 3                  # this is a forked child, the connection is its parent's

cdef int after(int half, int event) noexcept nogil

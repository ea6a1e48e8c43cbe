"""The receive queue: messages that wait for their frames or for a reader, in order.

Usually it is empty: a message without frames on offer is delivered as it is read. A message with
such frames waits here until they are fetched, and so do the messages behind it.
"""

from collections import deque
from itertools import islice

cimport cython


@cython.auto_pickle(False)
@cython.final
cdef class InboundMessage:
    """A message that waits for its frames, or for a reader."""


@cython.auto_pickle(False)
@cython.final
cdef class Inbox:
    """The messages of a connection that are not delivered yet."""

    def __len__(self):
        return 0 if self.messages is None else len(self.messages)

    @property
    def is_fetching(self):
        """Whether frames of a message are being fetched."""
        return self.fetching is not None

    cdef add(self, InboundMessage message):
        if self.messages is None:
            self.messages = deque()     # most comms never need one
        self.nbytes += message.nbytes
        self.messages.append(message)

    cdef tuple pop(self):
        """Remove and return the first message, which must be READY."""
        cdef InboundMessage first = self.messages.popleft()
        self.nbytes -= first.nbytes
        return first.message

    cdef InboundMessage next_to_fetch(self):
        """The first message in state OFFERED; None while one is being fetched or requested."""
        cdef InboundMessage message
        if self.fetching is not None or self.requested is not None:
            return None
        for message in self.messages or ():
            if message.state == OFFERED:
                return message
        return None

    cdef bint drop_unready(self) except -1:
        """Drop the first message that is not ready, and all behind it, to keep the order.

        Returns
        -------
        bool
            Whether there was one.
        """
        cdef InboundMessage message
        for index, message in enumerate(self.messages or ()):
            if message.state != READY:
                self.messages = deque(islice(self.messages, index))
                return True
        return False

    cdef clear(self):
        self.messages = None
        self.nbytes = 0

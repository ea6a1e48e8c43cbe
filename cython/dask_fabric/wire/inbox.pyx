"""Messages that have come and are not delivered yet, in their order.

Mostly there are none: a message without frames on offer is delivered as it is read. Those with such
frames wait here until these are fetched, and so does what came behind them.
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
    """The messages of a connection that are not delivered."""

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
        """Deliver the first message, which is ready."""
        cdef InboundMessage first = self.messages.popleft()
        self.nbytes -= first.nbytes
        return first.message

    cdef InboundMessage next_to_fetch(self):
        """The first message whose frames are neither here nor under way; None while some are."""
        cdef InboundMessage message
        if self.fetching is not None or self.requested is not None:
            return None
        for message in self.messages or ():
            if message.state == OFFERED:
                return message
        return None

    cdef bint drop_unready(self) except -1:
        """Drop the first message that is not ready and all behind it, which would be out of order.

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

"""The receive queue: messages that wait for their frames or for a reader, in order.

Usually it is empty: a message without frames on offer is delivered as it is read. A message with
such frames waits here until they are fetched, and so do the messages behind it.
"""

from typing import Final

class InboundMessage:
    """A message that waits for its frames, or for a reader."""

class Inbox:
    """The messages of a connection that are not delivered yet."""

    nbytes: Final[int]

    def __len__(self): ...
    @property
    def is_fetching(self):
        """Whether frames of a message are being fetched."""

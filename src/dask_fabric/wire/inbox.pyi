"""Messages that have come and are not delivered yet, in their order.

Mostly there are none: a message without frames on offer is delivered as it is read. Those with such
frames wait here until these are fetched, and so does what came behind them.
"""

from typing import Final

class InboundMessage:
    """A message that waits for its frames, or for a reader."""

class Inbox:
    """The messages of a connection that are not delivered."""

    nbytes: Final[int]

    def __len__(self): ...
    @property
    def is_fetching(self):
        """Whether frames of a message are being fetched."""

"""Nonces in registered memory, and room for those that are read from peers.

Theory of operation
-------------------
A nonce is 16 random bytes that a peer reads, to find out whether it reads the right memory. The
process has one, by which a peer is proven before the first frame (`worker`). Each comm has one
more, which is overwritten before the comm frees or changes frames on offer (`Nonce.revoke`). The
peer reads it after all frames of a transfer: if it has changed, the frames may be something else.
The end of the stream alone does not show that: the network may deliver it late, or lose it.

All nonces, and what is read of the peers', are *cells* of a few pages that are registered once:
a card has room for a limited number of registrations, and comms are many.
"""

from typing import Final

class Nonce:
    """Random bytes of this process in memory that peers can read.

    Attributes
    ----------
    value : bytes
        The bytes there, until they are revoked.

    Raises
    ------
    OSError
        No memory can be registered.
    """

    value: Final[bytes]

    def __init__(self): ...
    @property
    def place(self):
        """The address and the key by which a peer reads it."""
    def revoke(self) -> None:
        """Overwrite the bytes: what a peer reads from now on is not meant for it any more."""

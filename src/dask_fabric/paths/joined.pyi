"""Connections that have joined a comm, to carry its large frames beside the stream.

A path may need further connections to the same peer. Each is dialled and accepted like a comm, with
the same handshake. Then it leaves its channel (`dask_fabric.engine.detach`), and the path moves
bytes through it by jobs of native threads. This is what a path sees of it.
"""

from typing import Final

class JoinedSocket:
    """A connection without protocol: bytes in order, in both directions.

    Attributes
    ----------
    is_encrypted : bool
        Whether it is inside TLS.
    """

    is_encrypted: Final[bool]

    def end_sending(self):
        """Tell the peer that this side sends nothing more."""
    def close(self):
        """Close it at once; no job may use it."""
    def forked(self):
        """In a forked child: close the copy of the socket."""

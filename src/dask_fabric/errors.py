"""Every error that dask-fabric raises of its own, as one tree.

Errors of the operating system pass as the ``OSError`` that they are. At the border to Dask
(``dask_fabric.comm``) what ends a comm becomes ``CommClosedError``, with one of these as its cause.
"""

from __future__ import annotations


class FabricError(Exception):
    """Base class of all errors of dask-fabric."""


class ConfigError(FabricError, ValueError):
    """A value in the configuration is not usable; the message names the key."""


class ProtocolError(FabricError):
    """The peer sent bytes that the wire protocol does not allow.

    Attributes
    ----------
    reply : bytes
        What to send before closing, so that the other end too sees a clear error; may be empty.
    """

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message)
        self.reply = reply


class ForeignProtocolError(ProtocolError):
    """Whoever is at the other end does not speak the fabric protocol at all."""


class VersionMismatchError(ProtocolError):
    """The peer speaks the fabric protocol in a version that this one cannot."""


class RefusedError(ProtocolError):
    """One side turned the other away at the handshake; the message is the reason that it gave."""


class LimitError(ProtocolError):
    """The peer claims a size above a configured limit; the message names the limit's key."""


class MessageTooLargeError(FabricError):
    """The peer has said that it refuses such a message, which therefore was not sent."""


class ChannelClosedError(FabricError):
    """The channel is closed: by this side, by the peer, or by an error that it carries as cause."""


class ForkedError(ChannelClosedError):
    """The channel belongs to the parent of this forked process."""


class LibraryError(FabricError):
    """A call of the library of a path failed.

    Attributes
    ----------
    status : int
        The library's own number; negative.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnavailableError(FabricError):
    """What was asked for cannot be had here; the message says why and what to do."""


class BenchError(FabricError):
    """Something cannot be measured; the text says what, and what to do."""


class PairError(BenchError):
    """Two processes that measure cannot be started, or one does not answer any more."""


class HistoryError(FabricError):
    """A file is no history of jobs, or cannot be used as one; the text says why."""

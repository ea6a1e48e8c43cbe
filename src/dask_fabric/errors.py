"""All errors of dask-fabric, as one tree.

Errors of the operating system stay ``OSError``. At the interface to Dask (``dask_fabric.comm``) an
error that ends a comm is raised as ``CommClosedError``, with one of these as its cause.
"""

from __future__ import annotations

import copy


class FabricError(Exception):
    """Base class of all errors of dask-fabric."""


class ConfigError(FabricError, ValueError):
    """A value in the configuration is invalid; the message names the key."""


class ProtocolError(FabricError):
    """The peer sent bytes that the wire protocol does not allow.

    Attributes
    ----------
    reply : bytes
        Bytes to send before closing, so that the peer sees a clear error too; may be empty.
    """

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message)
        self.reply = reply


class ForeignProtocolError(ProtocolError):
    """The peer does not speak the fabric protocol at all."""


class VersionMismatchError(ProtocolError):
    """The peer speaks an incompatible version of the fabric protocol."""


class RefusedError(ProtocolError):
    """One side refused the other in the handshake; the message is its reason."""


class UnprovenError(ProtocolError):
    """The peer has not proved who it is, or somebody between the two changes what they send."""


class LimitError(ProtocolError):
    """The peer claims a size above a configured limit; the message names the limit's key."""


class MessageTooLargeError(FabricError):
    """A message exceeds the limits that the peer announced, and was not sent."""


class ChannelClosedError(FabricError):
    """The channel is closed: by this side, by the peer, or by the error in ``__cause__``."""


class StalledError(ChannelClosedError):
    """The peer has sent or taken nothing for too long, in the middle of a message."""


class ForkedError(ChannelClosedError):
    """The channel belongs to the parent of this forked process."""


class LibraryError(FabricError):
    """A call of a path's library failed.

    Attributes
    ----------
    status : int
        The library's own error number; negative.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnavailableError(FabricError):
    """A requested feature is unavailable here; the message gives reason and remedy."""


class BenchError(FabricError):
    """Something cannot be measured; the message gives reason and remedy."""


class PairError(BenchError):
    """The two processes of a measurement cannot be started, or one stopped answering."""


class HistoryError(FabricError):
    """A file is not a history of jobs, or cannot be used; the message says why."""


def without_traceback(error: BaseException) -> BaseException:
    """Copy an exception without its traceback, which would keep stack frames and messages alive.

    The original keeps its traceback: it may be propagating to the caller.
    """
    try:
        return copy.copy(error)
    except Exception:  # some exception classes cannot be copied
        return ChannelClosedError(f"{type(error).__name__}: {error}")

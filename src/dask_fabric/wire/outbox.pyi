"""Leases: frames that were offered, and must stay in memory until the peer has fetched them.

Each message with frames on offer has a *lease* on their memory. It ends when the peer has answered
and no job of this side reads the memory any more.
"""

from typing import Final

from dask_fabric.wire.frames import FrameSet

class Lease:
    """Keeps the offered frames of one message in memory."""

    frames: Final[FrameSet]
    is_answered: Final[bool]
    is_staging: Final[bool]

class Outbox:
    """The open leases of a connection."""

    in_flight_bytes: Final[int]
    unanswered_count: Final[int]

    def __init__(self): ...
    def __len__(self): ...

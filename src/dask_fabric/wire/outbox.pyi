"""What a connection has sent and must still keep: the frames that its peer may fetch.

Each message with frames on offer has a *lease* on their memory. It ends when the peer has answered,
and no path sends from the memory any more.
"""

from typing import Final

from dask_fabric.wire.frames import FrameSet

class Lease:
    """The frames of one message that are on offer, until nobody needs their memory any more."""

    frames: Final[FrameSet]
    is_answered: Final[bool]
    is_staging: Final[bool]

class Outbox:
    """The open leases of a connection."""

    in_flight_bytes: Final[int]
    unanswered_count: Final[int]

    def __init__(self): ...
    def __len__(self): ...

"""Where the bytes of a stream are received: in a staging buffer, or in their final memory."""

from typing import Final

class ReceiveBuffer:
    """The staging buffer, and the vectors of what is being received in place.

    Whoever reads puts bytes where `room` says, and reports them to `received`.
    """

    missing_bytes: Final[int]

    def __init__(self): ...
    def __sizeof__(self):
        """With its own buffers, and without what is being received in place."""
    def staging_is_full(self) -> bool: ...

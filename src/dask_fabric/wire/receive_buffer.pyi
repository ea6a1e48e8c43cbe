"""The memory that a stream is received into: a staging buffer, or the final memory of frames."""

from typing import Final

class ReceiveBuffer:
    """A staging buffer, and the vectors of frames that are received in place.

    The reader writes bytes to `room` and reports them by `received`.
    """

    missing_bytes: Final[int]

    def __init__(self): ...
    def __sizeof__(self):
        """Includes its own buffers, but not the frames received in place."""
    def staging_is_full(self) -> bool: ...

"""The bytes that a connection has still to send, in order.

Small data is copied into chunks, so that many small messages leave in one call. Frames above the
inline limit are sent from their own memory, which the buffer keeps alive until then. A record is
queued whole or not at all.
"""

from typing import Final

new_owners = list

class DeviceFrame:
    """A frame of device memory, and its address."""

class SendBuffer:
    """Bytes and frames that wait for the socket."""

    pending_bytes: Final[int]

    def __init__(self, inline_bytes: int = 0): ...
    def __sizeof__(self):
        """Includes its own buffers, but not the frames."""

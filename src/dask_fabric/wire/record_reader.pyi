"""Parses and checks the records in a receive buffer.

Sans-I/O. The format is documented in docs/wire-protocol.md: a prefix of 24 bytes, a table with an
entry of 16 bytes per frame, descriptors of frames on offer, the header, and the frames.

Nothing is allocated here. A record is described to the caller once its whole table has arrived and
was checked against the limits and the peer's state.
"""

from typing import Final

from dask_fabric.wire.inbox import Inbox
from dask_fabric.wire.receive_buffer import ReceiveBuffer

class RecordReader:
    """Finds the records in a receive buffer, and checks them.

    Parameters
    ----------
    buffer : ReceiveBuffer
    inbox : Inbox
    header_bytes_limit, message_bytes_limit : int
        The most bytes of one header, and of one message with its frames.
    frame_count_limit : int
        The most frames of one message.

    Notes
    -----
    A claim is checked against the limits before it costs memory, and the entries of a table are
    checked once each, as they arrive.
    """

    buffer: Final[ReceiveBuffer]
    remote: Final[int]
    message_count: Final[int]

    def __init__(
        self,
        buffer: ReceiveBuffer,
        inbox: Inbox,
        header_bytes_limit: int,
        message_bytes_limit: int,
        frame_count_limit: int,
    ): ...

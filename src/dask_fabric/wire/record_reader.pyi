"""Parses and checks the records in a receive buffer.

Theory of operation
-------------------
The format is documented in docs/wire-protocol.md: a prefix of 24 bytes, a table with an entry of 16
bytes per frame, descriptors of frames on offer, the header, and the frames.

`next` looks at the bytes in the receive buffer. It describes a record (`Record`) once its whole
table has arrived and is valid; header and frames may still be missing. It neither allocates
anything nor consumes a byte. The caller does both, as the kind of record requires, and then calls
`finish_table`, which applies the record to the state of the peer's half.

`next` may be called many times before a long table is complete. So that its work follows the
arriving bytes, each entry is checked once: `checked_count` entries are done, and the other
`checked_` fields have their sums. Each claim is compared with the limits before the caller can
allocate for it.

Two methods look ahead, without consuming anything. `control_is_next`: an answer about our own
frames is processed even while no reader waits. `ends_in_close`: a CLOSE behind messages that nobody
reads must be seen. Its 24 bytes may also be the end of a frame, so the records are walked through.
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

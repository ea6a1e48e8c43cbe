"""Assembles messages from the records that arrive; larger frames are received in place.

Theory of operation
-------------------
Bytes first arrive in the staging buffer of `ReceiveBuffer`. `RecordReader` finds the next record
there and checks it. What follows depends on the record:

* A small message is copied out of the staging buffer once it is complete (`_copy_out`).
* A larger one is *filled*: it is received directly into its final memory. Its table is copied
  aside, header and frames are allocated, and their addresses are given to the `ReceiveBuffer` as
  vectors (`_begin_filling`). The message is complete when no byte of them is missing.
* FRAMES, the answer to a request, is filled in the same way, into frames of an earlier message
  that is still in the `Inbox` (`_begin_requested`).
* Other records are returned as a `Control`; an ERROR is raised.

A frame on offer has no bytes in the stream. It goes to `offered`, without memory, and is None in
the list of frames until it was fetched. The owner takes `offered` together with the message.

Memory and time follow the bytes that have arrived, not the sizes that the peer claims. So frames
are allocated in steps: in each at most `TURN_FRAMES`, whose cost (`cost_of`) is not above the bytes
filled so far plus `AHEAD_BYTES`. A large frame costs little at first: its pages are not resident
before they are written. If a step needs no further bytes, `has_more_work` is true afterwards, and
the owner calls `next_record` again in a later turn of the event loop.
"""

from collections.abc import Iterable
from typing import Any, Final

from dask_fabric.wire.frames import Control
from dask_fabric.wire.inbox import Inbox
from dask_fabric.wire.metrics import Metrics
from dask_fabric.wire.path import Path
from dask_fabric.wire.receive_buffer import ReceiveBuffer
from dask_fabric.wire.record_reader import RecordReader

class MessageReader:
    """Turns the bytes of a stream into messages and other records.

    Parameters
    ----------
    header_bytes_limit, message_bytes_limit, frame_count_limit : int
        As for `RecordReader`.

    Notes
    -----
    The owner writes received bytes to `ReceiveBuffer.room`, reports them by `received`, and calls
    `next_record`. While `has_more_work`, it calls that again without further bytes. Frames on offer
    get no memory here: the owner takes them (`take_offered`) and calls `place` before each fetch.
    """

    buffer: Final[ReceiveBuffer]
    records: Final[RecordReader]
    inbox: Final[Inbox]
    metrics: Final[Metrics]

    def __init__(
        self, header_bytes_limit: int, message_bytes_limit: int, frame_count_limit: int
    ): ...
    def __sizeof__(self):
        """Includes its own buffers, but not the frames received in place."""
    def open(self, paths: Iterable[Path] = (), devices=None):
        """Begin to read records; for tests, which have no connection.

        Parameters
        ----------
        paths : iterable of Path
            Those by which frames may be on offer.
        devices : object
            What makes memory for frames of devices: ``allocate(nbytes)`` gives a frame of device
            memory, or raises `MemoryError`; ``span_of(frame)`` gives its address first;
            ``stage(memory)`` makes a frame over host memory that belongs on a device.
        """
    def receive_data(
        self, data: bytes
    ) -> list[tuple[bytes | memoryview, list[memoryview]]] | Control:
        """Process received bytes, and return the records that they complete.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        list of (tuple of (bytes or memoryview, list of memoryview)) or Control
            Header and frames of each message.

        Raises
        ------
        ProtocolError, LimitError
            As `next_record`.
        """
    def place_offered(self, frames: list[Any]):
        """Allocate the offered frames of the last message.

        Parameters
        ----------
        frames : list
            The frames of that message, None for those on offer; these are replaced.
        """
    @property
    def message_count(self): ...
    def has_more_work(self) -> bool:
        """Whether `next_record` can continue without further bytes."""
